"""Settings that come back into the form: from a picture's record, and from a pasted text of parameters.

Both give values by name of `fewstep.studio.orders.FIELDS`; what they do not tell is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fewstep.errors import DataError
from fewstep.prompt import infotext
from fewstep.prompt.networks import cut_networks

_SAME: Final = (
    "prompt", "negative_prompt", "model", "num_inference_steps", "guidance_scale", "guidance_rescale",
    "solver", "eta", "seed", "width", "height", "clip_skip", "emphasis", "insist", "deterministic",
)  # fmt: skip
_SOLVERS: Final = {shown.lower(): solver for solver, shown in reversed([*infotext.SAMPLERS.items()])}
_FROM_ONE: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "Steps": ("num_inference_steps", int),
    "Sampler": ("solver", lambda text: _SOLVERS[text.lower()]),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Model": ("model", str),
    "Student": ("student", str),
    "Eta": ("eta", float),
    "Guidance rescale": ("guidance_rescale", float),
    "Clip skip": ("clip_skip", lambda text: max(int(text) - 1, 0)),
    "Variation seed": ("variation_seed", int),
    "Variation seed strength": ("variation_strength", float),
}


def of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the form that draw a picture again, as far as a form without its start picture can.

    Args:
        record: of a picture of the history.
    """
    found = {name: record[name] for name in _SAME if record.get(name) is not None}
    found["student"] = (record.get("student") or {}).get("name") or "none"
    found.setdefault("eta", -1)
    variation = record.get("variation") or {}
    found["variation_seed"] = variation.get("seed", -1)
    found["variation_strength"] = variation.get("strength", 0)
    tagged = {network.name for network in cut_networks(str(record.get("prompt") or ""))[1]}
    found["adapters"] = [
        {"name": one["name"], "weight": one["weight"]}
        for one in record.get("adapters") or ()
        if one["name"] not in tagged
    ]
    for name, usual in (("emphasis", "original"), ("insist", False), ("clip_skip", 0)):
        found.setdefault(name, usual)
    # What the prompt and the styles became is all that is known.
    return {**found, "styles": []}


def of_text(text: str) -> dict[str, Any] | None:
    """Values of the form for a text of parameters, of fewstep or of the web UI; None when it is none.

    A value that cannot be read is left out, as is what the form has no place for.
    """
    try:
        read = infotext.read(text)
    except DataError:
        return None
    if "Steps" not in read.fields and "Seed" not in read.fields:
        return None
    found: dict[str, Any] = {"prompt": read.prompt, "negative_prompt": read.negative_prompt}
    for key, (name, of) in _FROM_ONE.items():
        if key in read.fields:
            try:
                found[name] = of(read.fields[key])
            except (ValueError, KeyError):
                continue
    width, by, height = read.fields.get("Size", "").lower().partition("x")
    if by and width.isdigit() and height.isdigit():
        found |= {"width": int(width), "height": int(height)}
    # A text that names no student is of a model itself: one that stands in the form must not draw it.
    return {"student": "none", **found}
