"""Settings that do not fit a checkpoint: what was asked, what its contract wants, and why, in a sentence.

Nothing is refused here. The engine warns, takes what the contract wants, or what was asked where the user
insists. Models of the method ``base`` take any solver, spacing and size that the rest of the code takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.timesteps import make_grid
from fewstep.errors import UsageError

SIZE_FACTOR = 1.5
"""Pictures with up to so many times more or fewer pixels than a native size fit, in any shape. Our choice:
the authors say that other shapes work, and give no bounds."""


@dataclass(frozen=True, slots=True)
class Unfit:
    """One setting that does not fit."""

    setting: str
    """The argument of `unfit`."""
    asked: Any
    wanted: Any
    """What fits, of the same kind as ``asked``; "explicit" for ``spacing`` means times of the contract."""
    sentence: str
    """What, why, and what to use instead; one line without a full stop."""


_NAMES = {
    "lightning": "{}-Lightning",
    "flash": "Flash {}",
    "lcm": "{} LCM",
    "tcd": "{} TCD",
    "hyper-sd": "Hyper-{}",
    "add": "{}-Turbo",
    "pcm": "{} PCM",
    "dmd2": "{} DMD2",
}
_FAMILIES = {
    "sd15": "SD1.5",
    "sd21": "SD2.1",
    "sdxl": "SDXL",
    "ssd-1b": "SSD-1B",
    "pixart-alpha": "PixArt",
    "sd3": "SD3",
}
_STEPS = {
    "lcm": "each step jumps to clean data and adds fresh noise",
    "tcd": "each step jumps past its goal and diffuses back",
    "euler_a": "each step adds some fresh noise",
}
_STRAIGHT = frozenset({"ddim", "euler"})
"""One method under two names: the first-order step of the same equation."""
_ALSO = {"add": frozenset({"euler", "euler_a"})}
"""Solvers of a method besides the contract's: the authors use both, one for each of their models."""


def describe(contract: SamplingContract) -> str:
    """A checkpoint's name from its contract, for sentences: "SDXL-Lightning", "this flash student"."""
    if contract.method in _NAMES and contract.base_family in _FAMILIES:
        return _NAMES[contract.method].format(_FAMILIES[contract.base_family])
    return "this model" if contract.method == "base" else f"this {contract.method} student"


def unfit(
    contract: SamplingContract,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float | None = None,
    negative_prompt: str = "",
    solver: str | None = None,
    spacing: str | None = None,
    prediction_type: str | None = None,
    size: tuple[int, int] | None = None,
    strength: float | None = None,
    name: str | None = None,
) -> list[Unfit]:
    """The settings that do not fit; None is what was not asked for.

    Args:
        contract: of the checkpoint.
        num_inference_steps: N.
        guidance_scale: 1 is none. 0, which model cards say for none, would leave the prompt out.
        guidance_rescale: 0 is none.
        negative_prompt: empty is none.
        solver: by name; one that does not exist does not fit either.
        spacing: by name. It fits if it visits the same times.
        prediction_type: what the network is taken to predict.
        size: (width, height) in pixels, each at least 1.
        strength: of image-to-image. It does not fit if it leaves no step of those that fit: one is run.
        name: of the checkpoint, for the sentences; None is `describe`.
    """
    who = name or describe(contract)
    few = contract.method != "base"
    found: list[Unfit | None] = []
    steps = contract.num_inference_steps
    if num_inference_steps is not None:
        wrong = _steps(contract, who, num_inference_steps)
        steps = wrong.wanted if wrong else num_inference_steps
        found.append(wrong)
    scale = contract.guidance_scale
    if guidance_scale is not None:
        wrong = _guidance(contract, who, guidance_scale)
        scale = wrong.wanted if wrong else guidance_scale
        found.append(wrong)
    if guidance_rescale and contract.guidance == "off":
        found.append(
            Unfit(
                "guidance_rescale", guidance_rescale, 0.0,
                f"guidance rescale {guidance_rescale:g} on {who} has no effect: it draws without guidance; "
                "use 0",
            )
        )  # fmt: skip
    if negative_prompt:
        found.append(_negative_prompt(contract, who, negative_prompt, scale))
    if few and solver is not None:
        found.append(_solver(contract, who, solver))
    if few and spacing is not None:
        found.append(_spacing(contract, who, spacing, steps))
    if prediction_type is not None and prediction_type != contract.prediction_type:
        own = contract.prediction_type
        found.append(
            Unfit(
                "prediction_type", prediction_type, own,
                f"prediction type {prediction_type} on {who} draws noise: its network gives {own}; use {own}",
            )
        )  # fmt: skip
    if few and size is not None:
        found.append(_size(contract, who, size))
    if strength is not None and not strength * steps >= 1.0:
        least = -(-100 // steps) / 100
        found.append(
            Unfit(
                "strength", strength, least,
                f"strength {strength:g} leaves none of {steps} steps, so one is run; use {least:g} or more",
            )
        )  # fmt: skip
    return [wrong for wrong in found if wrong is not None]


def _steps(contract: SamplingContract, who: str, asked: int) -> Unfit | None:
    allowed = contract.allowed_steps
    if allowed is None:
        try:
            contract.grid(asked)
        except UsageError:
            wanted = contract.num_inference_steps
            text = f"{asked} steps on {who}: there are not so many times to visit; use {wanted}"
            return Unfit("num_inference_steps", asked, wanted, text)
        return None
    if asked in allowed:
        return None
    wanted = min(allowed, key=lambda count: (abs(count - asked), count))
    text = f"{asked} steps on {who}: its weights were made for {_listed(allowed)}; use {wanted}"
    return Unfit("num_inference_steps", asked, wanted, text)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) + (" step" if counts == (1,) else " steps")


def _guidance(contract: SamplingContract, who: str, asked: float) -> Unfit | None:
    if asked == 1.0:  # none at all is always possible
        return None
    if asked == 0.0 and contract.guidance != "embedded":
        text = f"guidance 0 on {who} leaves the prompt out: a model card's 0 for none is 1 here; use 1"
        return Unfit("guidance_scale", asked, 1.0, text)
    effect = "oversaturates" if asked > 1.0 else "weakens the prompt"
    if contract.guidance == "off":
        text = f"guidance {asked:g} on {who} {effect}: it draws without guidance; use 1"
        return Unfit("guidance_scale", asked, 1.0, text)
    if contract.guidance_range is None:
        return None
    low, high = contract.guidance_range
    if low <= asked <= high:
        return None
    wanted = high if asked > high else low
    if low <= 1.0:
        why = f"{effect}: guidance is in its weights already, and {low:g} to {high:g} is all it takes"
    else:
        why = f"is not what it was made for: that is {low:g} to {high:g}"
    return Unfit("guidance_scale", asked, wanted, f"guidance {asked:g} on {who} {why}; use {wanted:g}")


def _negative_prompt(contract: SamplingContract, who: str, asked: str, scale: float) -> Unfit | None:
    if contract.guidance == "embedded":
        why = "its guidance is inside the network"
    elif contract.guidance == "off" or not contract.negative_prompt_effective:
        why = "it draws without guidance"
    elif scale == 1.0:
        why = "it works through guidance, and 1 is none"
    else:
        return None
    text = f"the negative prompt has no effect on {who}: {why}; leave it out"
    return Unfit("negative_prompt", asked, "", text)


def _solver(contract: SamplingContract, who: str, asked: str) -> Unfit | None:
    own = contract.solver
    straight = {asked, own} <= _STRAIGHT and not contract.eta
    if asked == own or straight or asked in _ALSO.get(contract.method, ()):
        return None
    why = _STEPS.get(own, "each step is one straight jump to the next of its times")
    text = f"solver {asked} on {who} goes where its weights were not trained: {why}; use {own}"
    return Unfit("solver", asked, own, text)


def _spacing(contract: SamplingContract, who: str, asked: str, steps: int) -> Unfit | None:
    own = contract.grid(steps)
    wanted = "explicit" if steps in contract.timesteps else contract.spacing
    if asked == wanted:
        return None
    schedule = contract.make_schedule()
    try:
        grid = make_grid(
            schedule, asked, steps, start=contract.start_timestep, steps_offset=contract.steps_offset
        )
    except UsageError:
        text = f"{asked} spacing on {who}: there are no such times for it; use {wanted}"
        return Unfit("spacing", asked, wanted, text)
    if np.array_equal(grid, own):
        return None
    text = f"{asked} spacing on {who} visits {_times(grid)}: it was made for {_times(own)}; use {wanted}"
    return Unfit("spacing", asked, wanted, text)


def _times(grid: Sequence[float] | np.ndarray[Any, Any]) -> str:
    shown = [f"{time:.4g}" for time in grid[:-1]]
    return ", ".join(shown if len(shown) <= 4 else [*shown[:3], "…"])


def _size(contract: SamplingContract, who: str, asked: tuple[int, int]) -> Unfit | None:
    pixels = asked[0] * asked[1]

    def factor(native: tuple[int, int]) -> float:
        area = native[0] * native[1]
        return max(pixels / area, area / pixels)

    nearest = min(contract.native_sizes, key=factor)
    if asked in contract.native_sizes or factor(nearest) <= SIZE_FACTOR:
        return None
    effect = "repeats things" if pixels > nearest[0] * nearest[1] else "loses shapes"
    own = f"{nearest[0]}x{nearest[1]}"
    text = f"{asked[0]}x{asked[1]} pixels on {who} {effect}: it was made for {own}; use {own}"
    return Unfit("size", asked, nearest, text)
