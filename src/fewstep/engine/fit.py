"""Settings that do not fit a model of few steps: said, and put right, or kept where the user insists.

Models of the method ``base`` and whatever a student was not made for are not decided here: the first take
anything that is in range, the second are refused (`fewstep.engine.choice`), since the model itself is there
for that. A size that does not fit is drawn all the same.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.solvers import get_solver
from fewstep.diffusion.timesteps import SPACINGS
from fewstep.diffusion.unfit import Unfit, unfit
from fewstep.engine.checks import MAX_GUIDANCE
from fewstep.errors import CheckpointError, UsageError

_OPTIONS = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_rescale": "guidance rescale",
    "solver": "solver",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was asked for; None is what was not."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    solver: str | None = None


def fitted(
    contract: SamplingContract, asked: Settings, *, insist: bool
) -> tuple[SamplingContract, Settings, list[str]]:
    """What is drawn with in place of what was asked for.

    Args:
        contract: of whoever draws.
        asked: in range; what does not fit the contract is dealt with here.
        insist: keep it all the same.

    Returns:
        The contract, made wider where the user insists on what it excludes; the settings; a warning for each
        that does not fit.

    Raises:
        UsageError: a solver that does not exist.
    """
    if contract.method == "base":
        return contract, asked, []
    if asked.solver is not None:
        get_solver(asked.solver)
    given = {name: getattr(asked, name) for name in _OPTIONS}
    if asked.guidance_scale is not None and not math.isfinite(asked.guidance_scale):
        del given["guidance_scale"]  # refused later, with what is in range
    found = unfit(contract, **given)
    warnings = [_said(one, insist=insist) for one in found]
    if insist:
        return _widened(contract, found), asked, warnings
    return contract, dataclasses.replace(asked, **{one.setting: one.wanted for one in found}), warnings


def spaced(
    contract: SamplingContract, spacing: str, steps: int, *, insist: bool
) -> tuple[SamplingContract, list[str]]:
    """The contract with another spacing of its times, where that fits whoever draws.

    Args:
        contract: of whoever draws.
        spacing: a name of `fewstep.diffusion.timesteps.SPACINGS`, but not ``explicit``.
        steps: how many times are visited.
        insist: take it all the same.

    Returns:
        The contract, as it was where the spacing visits the same times or does not fit; warnings.

    Raises:
        UsageError: a spacing that does not exist.
    """
    if spacing not in SPACINGS or spacing == "explicit":
        known = ", ".join(name for name in SPACINGS if name != "explicit")
        raise UsageError(f"spacing {spacing!r:.100} is not known: give one of {known}")
    if spacing == contract.spacing and steps not in contract.timesteps:
        return contract, []
    found = unfit(contract, num_inference_steps=steps, spacing=spacing)
    warnings = [_said(one, insist=insist) for one in found if one.setting == "spacing"]
    if contract.method != "base" and not (warnings and insist):
        return contract, warnings
    try:
        return dataclasses.replace(contract, spacing=spacing, timesteps={}), warnings
    except CheckpointError as error:  # a contract checks its own default steps
        raise UsageError(f"spacing {spacing} with this model: {error}") from None


def _said(one: Unfit, *, insist: bool) -> str:
    if insist:
        return f"{one.sentence} ({_shown(one.asked)} is kept, as you insist)"
    return f"{one.sentence} (done; --insist keeps {_shown(one.asked)})"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _widened(contract: SamplingContract, found: list[Unfit]) -> SamplingContract:
    changes: dict[str, Any] = {}
    for one in found:
        if one.setting == "num_inference_steps":
            changes["allowed_steps"] = None
        elif one.setting == "guidance_scale":
            changes["guidance_range"] = (0.0, MAX_GUIDANCE)
            if contract.guidance == "off":
                changes |= {"guidance": "classifier_free", "negative_prompt_effective": True}
    return dataclasses.replace(contract, **changes)
