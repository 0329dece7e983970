"""From what a picture's file says, of whatever tool, to the settings that Create takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from fewstep.prompt import infotext
from fewstep.studio import recalled

_MOST: Final = 1 << 62
_TEXTS: Final = ("prompt", "negative_prompt", "model", "solver", "emphasis")
_WHOLE: Final = ("num_inference_steps", "seed", "width", "height", "clip_skip")
_NUMBERS: Final = ("guidance_scale", "guidance_rescale", "eta")
_FLAGS: Final = ("insist", "deterministic")
_OTHER: Final[Mapping[str, tuple[str, ...]]] = {
    "num_inference_steps": ("steps",),
    "seed": ("seed", "noise_seed"),
    "guidance_scale": ("cfg", "cfg_scale", "guidance_scale", "scale"),
}
_SOLVERS: Final[Mapping[str, str]] = {
    **{shown.lower(): own for own, shown in reversed(list(infotext.SAMPLERS.items()))},
    **{own: own for own in infotext.SAMPLERS}, "euler_ancestral": "euler_a", "k_euler_ancestral": "euler_a",
    "k_euler": "euler", "uni_pc": "unipc", "k_dpmpp_2m": "dpmpp_2m", "dpm++ 2m karras": "dpmpp_2m",
}  # fmt: skip
"""Names of other tools, in small letters, by ours."""


def record(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As much of a record as a form needs, of types that a form takes; empty where nothing is known.

    Args:
        facts: of ``/api/v1/info``. All of it is from a file, so anything may stand anywhere.
    """
    if (own := facts.get("record")) is not None and "seed" in own:
        return _clean(own)
    if facts.get("parameters") and (values := recalled.of_text(facts["parameters"])) is not None:
        student = values.pop("student", None)
        variation = {"seed": values.get("variation_seed"), "strength": values.get("variation_strength")}
        return _clean({**values, "student": {"name": student}, "variation": variation})
    return _clean(_of_others(facts)) if facts.get("prompt") or facts.get("settings") else {}


def _of_others(facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = facts.get("settings") or {}
    found = {"prompt": facts.get("prompt"), "negative_prompt": facts.get("negative_prompt")}
    for name, theirs in _OTHER.items():
        found[name] = next((settings[one] for one in theirs if one in settings), None)
    names = (settings.get(one) for one in ("sampler_name", "name", "sampler", "scheduler"))
    models = facts.get("models")
    if isinstance(models, list) and models and isinstance(models[0], str):
        found["model"] = _name(models[0])
    found["solver"] = next(
        (_SOLVERS[str(one).lower()] for one in names if str(one).lower() in _SOLVERS), None
    )
    return found


def _name(file: str) -> str:
    """Of a model as it would be called here, from the name of its file."""
    name = re.split(r"[/\\]", file)[-1]
    return re.sub(r"\.(safetensors|ckpt|pt)$", "", name)


def _clean(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: given[name] for name in _TEXTS if isinstance(given.get(name), str)}
    for name in _WHOLE:
        if (value := _number(given.get(name))) is not None and value >= 0:
            found[name] = int(value)
    for name in _NUMBERS:
        if (value := _number(given.get(name))) is not None:
            found[name] = value
    found |= {name: True for name in _FLAGS if given.get(name) is True}
    student = given.get("student")
    if isinstance(student, Mapping) and isinstance(student.get("name"), str):
        found["student"] = {"name": student["name"]}
    variation = given.get("variation")
    if isinstance(variation, Mapping):
        seed, strength = _number(variation.get("seed")), _number(variation.get("strength"))
        if seed is not None and strength is not None and 0 < strength <= 1:
            found["variation"] = {"seed": int(seed), "strength": strength}
    adapters = given.get("adapters")
    if isinstance(adapters, list):
        found["adapters"] = [
            {"name": one["name"], "weight": _number(one.get("weight"))}
            for one in adapters[:16]
            if isinstance(one, Mapping) and isinstance(one.get("name"), str)
        ]
    return found


def _number(value: Any) -> float | int | None:
    if isinstance(value, str) and len(value) < 40:
        try:
            value = float(value) if "." in value else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) and abs(value) < _MOST else None
