"""What a visitor prefers, of ``/api/v1/settings``, as values of Create's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from fewstep.studio import dial
from fewstep.studio.client import Api

FORM: Final = ("model", "width", "height", "n", "stop")
"""Preferences that the form begins with."""


async def form(api: Api, names: tuple[str, ...] = FORM) -> dict[str, Any]:
    """Values by name of `fewstep.studio.orders.FIELDS`; None for what is left to the model or the server.

    Args:
        api: of the visitor.
        names: of the preferences that count.

    Raises:
        ApiError: the server does not answer.
    """
    prefers = (await api.get("/api/v1/settings"))["values"]
    own = [name for name in names if name != "stop"]
    found: dict[str, Any] = {name: prefers[name] for name in own}
    models = (await api.get("/api/v1/models"))["models"]
    there = [one["name"] for one in models]
    if found.get("model", there[0]) not in there:
        found["model"] = None
    if prefers["stop"] is not None and "stop" in names:
        usual = next((one["name"] for one in models if one["default"]), there[0])
        chosen = prefers["model"] if prefers["model"] in there else usual
        model = await api.get(f"/api/v1/models/{quote(chosen, safe='')}")
        found |= stop(model, prefers["stop"]).values()
    return found


def stop(model: Mapping[str, Any], wanted: str) -> dial.Stop:
    """The dial's stop of a model that is nearest to what is preferred.

    Args:
        model: of ``/api/v1/models/NAME``.
        wanted: a number of steps, or ``teacher``.
    """
    stops = dial.stops(model)
    if wanted == "teacher" or len(stops) == 1:
        return stops[-1]
    return min(stops[:-1], key=lambda one: abs(one.steps - int(wanted)))
