"""Consistency distillation in latent space: LCM (Luo 2023, 2310.04378) and LCM-LoRA (Luo 2023, 2311.05556).

On a grid of N times the student's consistency function at (x_t, t) must agree with itself at the place that
one guided DDIM step of the teacher reaches. Departures: the target is the student of this moment without
gradient, as the LCM-LoRA and PCM scripts have it, not an average with its own decay; at the terminal time the
input is pure noise (`fewstep.distillation.targets.noised`), where the scripts leave a trace of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.timesteps import make_grid
from fewstep.distillation import losses, targets
from fewstep.distillation.method import Context, Terms, indices, normal
from fewstep.distillation.progressive import few_steps, picked, weight
from fewstep.distillation.sections import LcmMethod
from fewstep.models.conditions import Conditions
from fewstep.training.task import Role


class Lcm:
    """See the module; the defining term is the agreement of f(x_t, t) with f at the teacher's next point."""

    roles: Mapping[str, Role] = {}

    def __init__(self, section: LcmMethod, schedule: Schedule) -> None:
        self.section = section
        self.grid = make_grid(schedule, "trailing", section.num_steps)
        if section.distance == "huber":
            self.distance: losses.Distance = partial(losses.pseudo_huber, c=section.huber_c)
        else:
            self.distance = losses.DISTANCES[section.distance]

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """The grid's point, the guidance scale and the noise."""
        low, high = self.section.guidance
        return {
            "point": np.full(1, rng.integers(self.section.num_steps), np.float64),
            "guidance": np.full(1, low + (high - low) * rng.random(), np.float64),
            "noise": normal(shape, rng),
        }

    def critics(self, step: int) -> Sequence[str]:
        """None."""
        return ()

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """Distance of the consistency function at two neighbouring points, (B,)."""
        start = indices(context.drawn["point"])
        t, s = self.grid[start], self.grid[start + 1]
        x_t = targets.noised(context.schedule, context.x0, context.drawn["noise"], t)
        scale = context.drawn["guidance"]
        # A range of 1 to 1 means that guidance is off, which costs the teacher half as much.
        w = 1.0 if np.all(scale == 1.0) else scale
        denoise = context.teacher.denoiser(context.conditions, context.null, w)
        x_s = targets.rollout(denoise, x_t, self.grid, start, start + 1, context.schedule)
        told = self._told(context, scale)
        here = self._function(context, x_t, t, told)
        with torch.no_grad():
            there = self._at(context, x_s, s, told)
        error = self.distance(here, there)
        weights = torch.from_numpy(weight(self.section.weighting, t, context.schedule)).to(error)
        return weights * error, {"error": error.detach()}

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """There is none."""
        raise KeyError(role)

    def contract(self, base: SamplingContract) -> SamplingContract:
        """LCM's sampler on its own grid, any count from 1 to 8; guidance embedded, or off."""
        embedded, flow = self.section.embed_guidance, base.schedule.name == "rectified_flow"
        low, high = self.section.guidance
        released, allowed = self.section.num_steps == 50 and not flow, tuple(range(1, 9))
        changes: dict[str, Any] = {
            "solver": "lcm",
            "boundary_scaling": self.section.boundary_scaling,
            "spacing": "lcm" if released else "trailing",
            "timesteps": {} if released else picked(base, allowed),
            "allowed_steps": allowed,
            "guidance": "embedded" if embedded else "off",
            "guidance_scale": (low + high) / 2 if embedded else 1.0,
            "guidance_range": (low, high) if embedded else None,
        }
        return few_steps(base, "lcm", 4, **changes)

    def _told(self, context: Context, scale: Any) -> Conditions:
        if not self.section.embed_guidance:
            return context.conditions
        given = torch.from_numpy(np.asarray(scale, np.float32)).to(context.x0.device)
        return dataclasses.replace(context.conditions, guidance=given)

    def _function(self, context: Context, x_t: Tensor, t: FloatArray, told: Conditions) -> Tensor:
        prediction = context.predict(x_t, t, told)
        return targets.boundary(prediction, x_t, t, context.schedule, self.section.boundary_scaling)

    def _at(self, context: Context, x_s: Tensor, s: Any, told: Conditions) -> Tensor:
        """The consistency function at the cleaner point: data themselves where that is the clean end."""
        clean = np.asarray(context.schedule.is_clean(s))
        asked = np.where(clean, self.grid[-2], s)
        value = self._function(context, x_s, asked, told)
        mask = torch.from_numpy(clean).to(x_s.device).reshape((-1,) + (1,) * (x_s.dim() - 1))
        return torch.where(mask, x_s, value)
