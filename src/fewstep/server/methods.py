"""The recipe of a distillation by a method, for any teacher and any length.

lcm and dmd2 are short and stand here. The others are the package's own recipes for emoji-128, with what
belongs to that model exchanged: guidance, lengths, prompts.
"""

from __future__ import annotations

import json
from typing import Any, Final

IMAGES: Final = 20_000
"""Of an order that says nothing of its length."""
_MOST: Final = 10_000_000
"""Of an order by the clock."""
GRIDS: Final = 4
"""Sample grids of the longest stage."""


def recipe(
    method: str,
    *,
    steps: int | None,
    images: int | None,
    minutes: float | None,
    batch: int,
    guidance: float,
    prompts: list[str],
    grids: int | None = None,
) -> dict[str, Any]:
    """Everything of a recipe but its data and its teacher.

    Args:
        method: ``flash``, ``lightning``, ``lcm``, ``dmd2`` or ``progressive``.
        steps: of the student, 1, 2, 4 or 8; None is 4. Of lcm it is not asked.
        images: of all stages together; None is `IMAGES`, and with minutes as many as
            there is time for; with minutes it is the most of every stage.
        minutes: of all stages together.
        batch: images of an optimiser step.
        guidance: scale that the teacher draws with; 1 for none.
        prompts: of the sample grids; none draw none.
        grids: of the longest stage; None is `GRIDS`.
    """
    stages = _stages(method, steps or 4, guidance)
    whole = sum(stage["stop"]["images"] for stage in stages)
    total = images or IMAGES
    for stage in stages:
        share = stage["stop"]["images"] / whole
        if minutes is None:
            _lengths(stage, max(batch, round(total * share)), batch)
        else:  # how far it comes is not known: what is counted within a stage stays as it is
            stage["stop"] = {"images": images or _MOST, "hours": minutes / 60 * share}
    # How far it is, and its losses: every 25 steps, fifty times in a short stage.
    logged = max(1, min(25 * batch, *(stage["stop"]["images"] // 50 for stage in stages)))
    values: dict[str, Any] = {
        "kind": "distillation", "seed": 0, "stages": stages, "runtime": {"log_images": logged},
    }  # fmt: skip
    if prompts and grids != 0:
        longest = max(stage["stop"]["images"] for stage in stages)
        every = max(batch, longest // (grids or GRIDS)) if minutes is None else 2_000
        values["samples"] = {"every_images": every, "prompts": prompts}
    return values


def _stages(method: str, steps: int, guidance: float) -> list[dict[str, Any]]:
    if method == "lcm":
        ranged = [2.0, 8.0] if guidance != 1.0 else [1.0, 1.0]
        section = {
            "method": "lcm",
            "guidance": ranged,
            "num_steps": 16,
            "boundary_scaling": 0.0,
            "distance": "l2",
            "weighting": "snr_plus_one",  # or the points of little noise are lost
        }
        return [_stage("lcm", section, 1e-4)]
    if method == "dmd2":
        times = [float(round(1000 * (steps - i) / steps) - 1) for i in range(steps)]
        section = {"method": "dmd2", "guidance_scale": guidance, "timesteps": times}
        return [{**_stage("dmd2", section, 2e-5), "student_every": 5}]
    stages = _shipped(method)
    if method in ("progressive", "lightning"):
        stages = [stage for stage in stages if stage["methods"][0]["student_steps"] >= steps]
    for stage in stages:
        for section in stage["methods"]:
            if "guidance_scale" in section:
                section["guidance_scale"] = guidance
            for phase in section.get("phases", ()):
                phase["guidance"] = [1.0, 1.0] if guidance == 1.0 else [0.75 * guidance, 1.5 * guidance]
            if method == "flash":
                section["student_steps"] = steps
    return stages


def _stage(name: str, section: dict[str, Any], rate: float) -> dict[str, Any]:
    return {
        "name": name, "teacher": "base", "methods": [section], "stop": {"images": IMAGES},
        "optimiser": {"learning_rate": rate}, "ema": {"half_life_images": 2000},
    }  # fmt: skip


def _shipped(method: str) -> list[dict[str, Any]]:
    import yaml

    from fewstep.data.backgrounds import recipe_folder

    text = (recipe_folder("emoji-128") / f"{method}.yaml").read_text(encoding="utf-8")
    # Through JSON: what two stages share in the file must be changed in each.
    stages: list[dict[str, Any]] = json.loads(json.dumps(yaml.safe_load(text)))["stages"]
    return stages


def _lengths(stage: dict[str, Any], images: int, batch: int) -> None:
    """A stage of another length: what is counted within it shrinks and grows with it."""
    factor = images / stage["stop"]["images"]
    stage["stop"] = {"images": images}
    optimiser_steps = max(1, images // batch)
    if "critic_warmup_steps" in stage:
        stage["critic_warmup_steps"] = min(stage["critic_warmup_steps"], optimiser_steps // 10)
    if warmup := stage.get("schedule", {}).get("warmup_images"):
        stage["schedule"]["warmup_images"] = min(warmup, images // 10)
    for section in stage["methods"]:
        for phase in section.get("phases", ()):
            phase["steps"] = max(1, round(phase["steps"] * factor))
        renoise = (section.get("discriminator") or {}).get("renoise")
        if renoise and "later_from_step" in renoise:
            renoise["later_from_step"] = max(1, round(renoise["later_from_step"] * factor))
