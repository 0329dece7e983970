"""What a visitor prefers, of ``/api/v1/settings``, as values of Create's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from fewstep.studio import dial
from fewstep.studio.client import Api
from fewstep.studio.orders import Form

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


async def early(api: Api, form_: Form, values: Sequence[Any]) -> list[Any]:
    """Values of all of Create's inputs, with where its dial will stand if the form has not been filled yet.

    Somebody types and draws before the page knows its model: without a student the server would draw with the
    teacher, which takes many times longer than what the dial says a moment later.

    Raises:
        ApiError: the server does not answer.
    """
    named = form_.values(*values)
    if named.get("student"):  # a form that was filled always has one, or the teacher
        return [*values]
    wanted = await form(api, ("model", "stop"))
    if not wanted.get("student"):
        models = (await api.get("/api/v1/models"))["models"]
        usual = next((one["name"] for one in models if one["default"]), models[0]["name"])
        model = await api.get(f"/api/v1/models/{quote(wanted.get('model') or usual, safe='')}")
        wanted |= dial.usual(model).values()
    changed = {name: value for name, value in wanted.items() if value is not None}
    own = [changed.get(name, value) for name, value in named.items()]
    return [*own, *values[len(own) :]]


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
