"""Progressive distillation: Salimans and Ho 2022 (2202.00512), algorithm 2.

The student learns to do in one DDIM step what the teacher does in two (or n). Its target is the x0 that such
a step would have needed, with a weight that does not vanish at low SNR.

Departures: guidance may be applied in any stage (the authors' follow-up, Meng 2023, distils it first); n may
be more than 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.diffusion.arrays import FloatArray, fit
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.timesteps import make_grid
from fewstep.distillation import losses, targets
from fewstep.distillation.method import Context, Terms, indices, normal
from fewstep.distillation.sections import ProgressiveMethod
from fewstep.distillation.stages import check_nested
from fewstep.training.task import Role


class Progressive:
    """See the module; the defining term is the x0 target of a jump over several teacher steps."""

    roles: Mapping[str, Role] = {}

    def __init__(self, section: ProgressiveMethod, schedule: Schedule) -> None:
        self.section = section
        self.ratio = check_nested(section.teacher_steps, section.student_steps)
        self.grid = make_grid(schedule, "trailing", section.teacher_steps)

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """The student's step and the noise."""
        step = rng.integers(self.section.student_steps)
        return {"step": np.full(1, step, np.float64), "noise": normal(shape, rng)}

    def critics(self, step: int) -> Sequence[str]:
        """None."""
        return ()

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """Weighted squared error of x0, (B,)."""
        start = indices(context.drawn["step"]) * self.ratio
        stop = start + self.ratio
        t, s = self.grid[start], self.grid[stop]
        x_t = targets.noised(context.schedule, context.x0, context.drawn["noise"], t)
        denoise = context.teacher.denoiser(context.conditions, context.null, self.section.guidance_scale)
        x_s = targets.rollout(denoise, x_t, self.grid, start, stop, context.schedule)
        wanted = x0_of_jump(x_t, x_s, t, s, context.schedule)
        error = losses.l2(context.predict(x_t, t).x0, wanted)
        return error * fit(weight(self.section.weighting, t, context.schedule), error), {
            "error": error.detach()
        }

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """There is none."""
        raise KeyError(role)

    def contract(self, base: SamplingContract) -> SamplingContract:
        """DDIM on the trailing grid of the student's steps, guidance off."""
        return few_steps(base, "progressive", self.section.student_steps)


def x0_of_jump(x_t: Tensor, x_s: Tensor, t: FloatArray, s: FloatArray, schedule: Schedule) -> Tensor:
    """The x0 with which one DDIM step from x_t lands on x_s.

    Salimans and Ho 2022, algorithm 2: (x_s - r x_t) / (alpha_s - r alpha_t) with r = sigma_s / sigma_t. At
    the clean
    end it is x_s itself.

    Args:
        x_t: (B, ...) at ``t``.
        x_s: (B, ...) at the cleaner ``s``.
        t: (B,).
        s: (B,).
        schedule: of both.
    """
    ratio = np.asarray(schedule.sigma(s)) / np.asarray(schedule.sigma(t))
    divisor = np.asarray(schedule.alpha(s)) - ratio * np.asarray(schedule.alpha(t))
    result: Tensor = fit(1.0 / divisor, x_t) * (x_s - fit(ratio, x_t) * x_t)
    return result


def weight(kind: str, t: FloatArray, schedule: Schedule) -> FloatArray:
    """Weights of the x0 error: max(SNR, 1) or SNR + 1 (the paper, section 4), or 1; (B,)."""
    if kind == "unit":
        return np.ones_like(t)
    snr = np.square(np.asarray(schedule.alpha(t)) / np.asarray(schedule.sigma(t)))
    return np.asarray(np.maximum(snr, 1.0) if kind == "truncated_snr" else snr + 1.0, np.float64)


def few_steps(base: SamplingContract, method: str, steps: int, **changes: Any) -> SamplingContract:
    """The contract of a student that jumps along the trailing grid of ``steps``, without guidance."""
    flow = base.schedule.name == "rectified_flow"
    fields: dict[str, Any] = {
        "method": method,
        "solver": "flow_euler" if flow else "ddim",
        "eta": None,
        "gamma": None,
        "spacing": "trailing",
        "timesteps": {},
        "num_inference_steps": steps,
        "allowed_steps": (steps,),
        "guidance": "off",
        "guidance_scale": 1.0,
        "guidance_range": None,
        "guidance_rescale": 0.0,
        "guidance_interval": None,
        "negative_prompt_effective": False,
    }
    return dataclasses.replace(base, **(fields | changes))


def picked(base: SamplingContract, counts: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Trailing times as diffusers' ``LCMScheduler`` rounds them, for counts where we round otherwise.

    It takes every so-many-th of all T times, rounding towards noise: 333 is its third of three, and ours is
    332. A network notices, so the contract of a student for that sampler has theirs.

    Args:
        base: whose schedule it is; a flow has no such times.
        counts: of steps.
    """
    total = base.schedule.num_train_timesteps
    if base.schedule.name == "rectified_flow":
        return {}
    found = {}
    for n in counts:
        times = total - 1.0 - np.floor(np.linspace(0, total, n, endpoint=False))
        if not np.array_equal(times, make_grid(base.make_schedule(), "trailing", n)[:-1]):
            found[n] = tuple(times.tolist())
    return found
