"""Where a student should land: noising, jumps, and what the teacher does between two times.

Everything here is differentiable and free of state; times are host arrays of shape (B,), one per sample, so
that one batch holds many places of a trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.arrays import FloatArray, combine
from fewstep.diffusion.prediction import Denoiser, Prediction
from fewstep.diffusion.schedule import DiscreteSchedule, Schedule
from fewstep.diffusion.solvers import Solver
from fewstep.diffusion.solvers.lcm import boundary as coefficients
from fewstep.errors import RecipeError


def check_times(key: str, times: Sequence[float], schedule: Schedule) -> None:
    """Check times that a recipe names.

    Raises:
        RecipeError: one is not of this schedule: a flow takes 750 as well, and makes -749 times the data of
            it.
    """
    least = 0.0 if isinstance(schedule, DiscreteSchedule) else np.nextafter(0.0, 1.0)
    if not times or min(times) < least or max(times) > schedule.terminal:
        raise RecipeError(
            f"{key} is {list(times)}: give times from 0 to {schedule.terminal:g}, as this teacher counts them"
        )


def noised(schedule: Schedule, x0: Tensor, eps: Tensor, t: FloatArray) -> Tensor:
    """Data diffused to ``t``, and pure noise at the terminal time.

    Lin et al. 2024 (SDXL-Lightning, 2402.13929), section 4.2: a schedule that leaves a trace of the data at
    its
    terminal time teaches a student to look for it, but sampling starts from noise without one. Swapping pure
    noise in at that time alone needs no new schedule at inference.

    Args:
        schedule: of ``t``.
        x0: clean data (B, ...).
        eps: standard normal noise of that shape.
        t: (B,).

    Returns:
        (B, ...).
    """
    x_t = schedule.forward(x0, eps, t)
    last = torch.from_numpy(np.asarray(t) >= schedule.terminal).to(x_t.device)
    return torch.where(last.reshape((-1,) + (1,) * (x_t.dim() - 1)), eps, x_t)


def moved(prediction: Prediction, s: FloatArray, schedule: Schedule) -> Tensor:
    """Follow a prediction straight to the cleaner time ``s`` (DDIM, Song 2020, 2010.02502, eq. 12)."""
    result: Tensor = combine(schedule.alpha(s), prediction.x0, schedule.sigma(s), prediction.eps)
    return result


def rollout(
    denoise: Denoiser,
    x_t: Tensor,
    grid: FloatArray,
    start: np.ndarray[Any, Any],
    stop: np.ndarray[Any, Any],
    schedule: Schedule,
) -> Tensor:
    """The teacher's steps along its grid, from one of its times to another, without gradient.

    Samples need not start at the same place, nor take the same number of steps: those that have arrived wait.

    Args:
        denoise: the teacher, guided or not.
        x_t: (B, ...) at ``grid[start]``.
        grid: N + 1 falling times; the last is the clean end.
        start: int (B,), indices of the grid, less than N.
        stop: int (B,), indices of the grid, at least ``start``.
        schedule: of the grid.

    Returns:
        (B, ...) at ``grid[stop]``.
    """
    x = x_t
    with torch.no_grad():
        for offset in range(int((stop - start).max(initial=0))):
            here = np.minimum(start + offset, stop)
            there = np.minimum(here + 1, stop)
            going = here < there
            # Those that wait are evaluated at a time that the network knows, and the result is dropped.
            asked = grid[np.where(going, here, start)]
            step = moved(denoise(x, asked), grid[there], schedule)
            x = torch.where(_mask(going, x), step, x)
    return x


def solved(
    denoise: Denoiser,
    x: Tensor,
    grid: FloatArray,
    solver: Solver,
    schedule: Schedule,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """The teacher's whole way down ``grid`` with any solver, without gradient."""
    from fewstep.diffusion.sampler import sample

    with torch.no_grad():
        result: Tensor = sample(denoise, x, grid, solver, schedule=schedule, noise=noise)
    return result


def boundary(
    prediction: Prediction, x_t: Tensor, t: FloatArray, schedule: Schedule, scaling: float
) -> Tensor:
    """A consistency function that is the identity at t = 0: c_skip x_t + c_out x0.

    The coefficients are the sampler's own (`fewstep.diffusion.solvers.lcm`): what is trained is what is drawn
    with.

    Args:
        prediction: at (x_t, t).
        x_t: (B, ...).
        t: (B,), not the clean end.
        schedule: of ``t``; on a flow the function is x0 itself.
        scaling: LCM uses 10; 0 means no scalings: x0 itself.
    """
    c_skip, c_out = coefficients(schedule, t, scaling)
    result: Tensor = combine(c_out, prediction.x0, c_skip, x_t)
    return result


def _mask(which: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    return torch.from_numpy(which).to(like.device).reshape((-1,) + (1,) * (like.dim() - 1))
