"""The student's x0 against the teacher's at the same time: another output, not fewer steps.

SDXL-Lightning (Lin 2024, 2402.13929, section 3.4) turns its network to x0 prediction before the one-step
stage: a copy learns to give the x0 that the frozen original implies. With a guidance scale this is the first
stage of Meng 2023 (2210.03142); with an exact teacher it trains the network that later stages start from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.arrays import fit
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.noise_levels import sample_t
from fewstep.diffusion.schedule import Schedule
from fewstep.distillation import losses, targets
from fewstep.distillation.method import Context, Terms, normal
from fewstep.distillation.progressive import weight
from fewstep.distillation.sections import ConversionMethod
from fewstep.models.conditions import Conditions
from fewstep.training.task import Role


class Conversion:
    """See the module; the defining term is the teacher's x0 at the student's own time."""

    roles: Mapping[str, Role] = {}

    def __init__(self, section: ConversionMethod, schedule: Schedule) -> None:
        self.section, self.schedule = section, schedule

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """Time, noise, and whether the condition is left out."""
        return {
            "t": sample_t("uniform", rng, 1, self.schedule),
            "noise": normal(shape, rng),
            "left_out": np.full(1, rng.random() < self.section.unconditional, np.float64),
        }

    def critics(self, step: int) -> Sequence[str]:
        """None."""
        return ()

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """Weighted squared error of x0, (B,)."""
        t, section = context.drawn["t"], self.section
        x_t = targets.noised(context.schedule, context.x0, context.drawn["noise"], t)
        told = without(context.conditions, context.null, context.drawn["left_out"] > 0)
        with torch.no_grad():
            teach = context.teacher.denoiser(
                told, context.null, section.guidance_scale, section.guidance_rescale
            )
            wanted = teach(x_t, t).x0
        error = losses.l2(context.predict(x_t, t, told).x0, wanted)
        return error * fit(weight(section.weighting, t, context.schedule), error), {"error": error.detach()}

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """There is none."""
        raise KeyError(role)

    def contract(self, base: SamplingContract) -> SamplingContract:
        """As the teacher's; without guidance where the student has taken it in."""
        if self.section.guidance_scale == 1.0:
            return dataclasses.replace(base, method="conversion")
        return dataclasses.replace(
            base,
            method="conversion",
            guidance="off",
            guidance_scale=1.0,
            guidance_range=None,
            guidance_rescale=0.0,
            guidance_interval=None,
            negative_prompt_effective=False,
        )


def without(conditions: Conditions, null: Conditions | None, which: np.ndarray[Any, Any]) -> Conditions:
    """The unconditional ones in the rows ``which`` (B,)."""
    if null is None or not which.any():
        return conditions
    empty = conditions.unconditional(null)
    changed: dict[str, Any] = {}
    for name in ("text", "pooled", "classes"):
        ours, theirs = getattr(conditions, name), getattr(empty, name)
        if ours is not None:
            mask = torch.from_numpy(which).to(ours.device).reshape((-1,) + (1,) * (ours.dim() - 1))
            changed[name] = torch.where(mask, theirs, ours)
    return dataclasses.replace(conditions, **changed)
