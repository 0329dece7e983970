"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.diffusion.arrays import Array, FloatArray, like
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Solver
from fewstep.errors import Cancelled, UsageError


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What a step callback is told after a step."""

    index: int
    """The step that is done, counted from 0."""
    total: int
    """Number of steps."""
    x: Array
    """The sample after the step, (B, ...)."""
    x0: Any
    """The newest denoised estimate, (B, ...), for previews."""
    t: float
    """The time that the sample has reached."""
    evaluations: int
    """Calls of the denoiser so far."""


def sample(
    denoise: Denoiser,
    x: Array,
    grid: FloatArray,
    solver: Solver,
    *,
    schedule: Schedule,
    noise: Callable[[int], Array] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    adjust: Callable[[Array, float], Array] | None = None,
) -> Array:
    """Draw: follow ``grid`` from noise to data.

    Args:
        denoise: the denoiser, guided or not.
        x: array (B, ...) at time ``grid[0]``: noise, or an image diffused to there.
        grid: N + 1 falling times from `timesteps.make_grid`, or the part of it that is wanted.
        solver: the algorithm.
        schedule: the schedule of the times.
        noise: for stochastic solvers: step index -> standard normal array of x's shape
            (`noise.solver_noise`). It is brought to x's kind, dtype and device.
        on_step: told of every step after it.
        cancelled: asked before every step.
        adjust: ``adjust(x, t) -> x`` applied after every step, before ``on_step``: masked inpainting puts the
            known part back, diffused to t.

    Returns:
        The sample at ``grid[-1]``, with the kind, dtype and device of ``x``.

    Raises:
        UsageError: a stochastic solver without noise, or a solver that is not for this schedule.
        Cancelled: ``cancelled`` said so.
    """
    if solver.stochastic and noise is None:
        raise UsageError(
            f"solver {solver.name} adds noise in each step: give it noise, or use a deterministic one"
        )
    state = solver.start(schedule)
    times = [float(t) for t in grid]
    total = len(times) - 1
    for index in range(total):
        if cancelled is not None and cancelled():
            raise Cancelled(f"stopped by request after {index} of {total} steps")
        fresh = like(noise(index), x) if solver.stochastic and noise is not None else None
        x, state = solver.step(denoise, x, times[index], times[index + 1], state, fresh)
        if adjust is not None:
            x = adjust(x, times[index + 1])
        if on_step is not None:
            on_step(StepInfo(index, total, x, state.x0, times[index + 1], state.evaluations))
    return x
