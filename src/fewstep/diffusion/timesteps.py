"""Timestep grids: which times a sampler visits, from the most noise down to the clean end.

A grid is a float64 array of N + 1 times; its last entry is the schedule's clean end. To everything outside
this module it is opaque. The integer spacings are those of Lin 2023 (2305.08891), Table 2, as diffusers
computes them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

import numpy as np

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.schedule import DiscreteSchedule, FlowSchedule, Schedule
from fewstep.errors import UsageError

SPACINGS = (
    "trailing",
    "leading",
    "linspace",
    "karras",
    "exponential",
    "sgm_uniform",
    "shifted",
    "lcm",
    "explicit",
)


def make_grid(
    schedule: Schedule,
    spacing: str,
    num_inference_steps: int,
    *,
    explicit: Sequence[float] | None = None,
    start: float | None = None,
    steps_offset: int = 0,
    shift: float | None = None,
    rho: float = 7.0,
    original_inference_steps: int = 50,
) -> FloatArray:
    """Choose the times that a sampler visits.

    Args:
        schedule: discrete or flow schedule.
        spacing: one of `SPACINGS`.
            ``trailing``: ends of equal intervals, from T - 1 (flow: from 1, shifted).
            ``leading``: starts of equal intervals, plus ``steps_offset``; does not reach T - 1.
            ``linspace``: equally spaced, both ends of the table included.
            ``karras``: sigma / alpha spaced by Karras 2022 (2206.00364), eq. 5.
            ``exponential``: sigma / alpha spaced equally in its logarithm.
            ``sgm_uniform``: as Stability's generative-models: equally spaced positions, not rounded, without
                the last.
            ``shifted``: trailing times moved towards noise by ``shift`` (Esser 2024, 2403.03206, eq. 23), not
                rounded.
            ``lcm``: every (``original_inference_steps`` / N)-th of a trailing grid with that many steps.
            ``explicit``: the times given.
        num_inference_steps: N, at least 1.
        explicit: falling times, for ``explicit`` only; N must be their number.
        start: first time instead of the schedule's terminal time (Hyper-SD: 800, one-step DMD2: 399).
        steps_offset: for ``leading``; Stable Diffusion 1 uses 1.
        shift: for ``shifted`` on a discrete schedule; a flow schedule uses its own.
        rho: for ``karras``; 7 in the paper.
        original_inference_steps: for ``lcm``.

    Returns:
        float64 array of N + 1 falling times, the last one the clean end.

    Raises:
        UsageError: unknown spacing, N out of range, or times that are not falling.
    """
    if num_inference_steps < 1:
        raise UsageError(
            f"steps is {num_inference_steps}: at least one step is needed, give --steps 1 or more"
        )
    if (explicit is None) != (spacing != "explicit"):
        raise UsageError(
            f"spacing is {spacing!r} and timesteps are {explicit}: give both explicit, or neither"
        )
    if spacing not in SPACINGS:
        near = difflib.get_close_matches(spacing, SPACINGS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(SPACINGS)}"
        raise UsageError(f"spacing {spacing!r} is not known: {hint}")
    first = schedule.terminal if start is None else float(start)
    if not schedule.clean < first <= schedule.terminal:
        raise UsageError(f"start timestep is {first:g}: give one up to {schedule.terminal:g}")
    if explicit is not None:
        times = _explicit(schedule, explicit, num_inference_steps)
    elif isinstance(schedule, FlowSchedule):
        times = _flow_times(schedule, spacing, num_inference_steps, first, rho)
    else:
        times = _discrete_times(
            schedule, spacing, num_inference_steps, first, steps_offset, shift, rho, original_inference_steps
        )
    return np.append(times, schedule.clean).astype(np.float64)


def truncate_for_strength(grid: FloatArray, strength: float, *, at_least_one: bool = False) -> FloatArray:
    """Keep the last part of a grid for image-to-image, as diffusers does: int(N * strength) steps.

    Args:
        grid: N + 1 times from `make_grid`.
        strength: in (0, 1]; 1 keeps the whole grid, so that nothing of the image is left on a
            zero-terminal-SNR schedule.
        at_least_one: keep the last step where diffusers keeps none, if strength is above 0: with four steps
            a strength of 0.2 is not nothing.

    Raises:
        UsageError: strength out of range, or so small that no step is left.
    """
    if not 0.0 <= strength <= 1.0:  # also refuses NaN
        raise UsageError(f"strength is {strength}: give a number from 0 to 1")
    steps = len(grid) - 1
    kept = min(int(steps * strength), steps)
    if at_least_one and strength > 0.0:
        kept = max(kept, 1)
    if kept < 1:
        raise UsageError(
            f"strength {strength} leaves none of {steps} steps: give {1 / steps:.3g} or more, or more steps"
        )
    return grid[steps - kept :]


def _explicit(schedule: Schedule, explicit: Sequence[float], num_inference_steps: int) -> FloatArray:
    times = np.asarray(explicit, dtype=np.float64)
    if times.ndim != 1 or times.size != num_inference_steps:
        raise UsageError(
            f"{times.size} explicit timesteps for {num_inference_steps} steps: give one for each step"
        )
    lowest = 0.0 if isinstance(schedule, DiscreteSchedule) else np.nextafter(0.0, 1.0)
    if not (np.all(np.diff(times) < 0) and lowest <= times[-1] and times[0] <= schedule.terminal):
        raise UsageError(
            f"explicit timesteps {list(explicit)} are not falling within {schedule.terminal:g} to 0: "
            "give the noisiest first, each once"
        )
    return times


def _ramp(spacing: str, high: float, low: float, n: int, rho: float) -> FloatArray:
    """Noise levels from ``high`` to ``low``: Karras 2022, eq. 5, or equal steps of the logarithm."""
    u = np.linspace(0.0, 1.0, n)
    if spacing == "karras":
        levels = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    else:
        levels = np.exp(math.log(high) + u * (math.log(low) - math.log(high)))
    levels[0] = high  # exact: rounding must not leave the schedule's range
    return np.asarray(levels, dtype=np.float64)


def _discrete_times(
    schedule: DiscreteSchedule,
    spacing: str,
    n: int,
    first: float,
    steps_offset: int,
    shift: float | None,
    rho: float,
    original_inference_steps: int,
) -> FloatArray:
    total = first + 1.0
    if spacing in ("trailing", "leading", "linspace", "lcm") and n > total:
        raise UsageError(
            f"steps is {n}: {spacing} spacing has {int(total)} timesteps at most, give fewer steps"
        )
    i = np.arange(n, dtype=np.float64)
    if spacing == "trailing":
        # diffusers rounds numpy.arange(T, 0, -T / N), whose step is rounded against T first: ties go its way.
        # Not arange itself, which gives one value too many where its rounding falls short of 0.
        step = (total - total / n) - total
        return np.round(total + i * step) - 1.0
    if spacing == "leading":
        times = i[::-1] * (int(total) // n) + steps_offset
        if times[0] > schedule.terminal:
            raise UsageError(
                f"steps_offset {steps_offset} goes past {schedule.terminal:g} with {n} steps: give less"
            )
        return times
    if spacing == "linspace":
        # One step starts from the most noise; diffusers starts it from 0, where nothing can be drawn.
        return np.round(np.linspace(0.0, first, n))[::-1] if n > 1 else np.array([first])
    if spacing == "sgm_uniform":
        return np.linspace(first, 0.0, n + 1)[:-1]
    if spacing == "shifted":
        u = 1.0 - i / n
        k = 1.0 if shift is None else shift
        if not (math.isfinite(k) and k > 0):
            raise UsageError(f"shift is {k}: give a number above 0, 1 for none")
        return total * (k * u / (1.0 + (k - 1.0) * u)) - 1.0
    if spacing == "lcm":
        # Luo 2023 (2310.04378), section 4.3, as diffusers' LCM and TCD schedulers pick them.
        if n > original_inference_steps or original_inference_steps > total:
            raise UsageError(
                f"steps is {n}: lcm spacing picks from {original_inference_steps} timesteps, give fewer"
            )
        origin = np.arange(original_inference_steps, 0, -1) * (int(total) // original_inference_steps) - 1
        picked = np.floor(np.linspace(0, original_inference_steps, n, endpoint=False)).astype(np.int64)
        return origin[picked].astype(np.float64)
    finite = schedule.finite_terminal()
    levels = _ramp(spacing, float(finite.ratio(first)), float(finite.ratio(0.0)), n, rho)
    return np.atleast_1d(np.asarray(finite.time_of_ratio(levels), dtype=np.float64))


def _flow_times(schedule: FlowSchedule, spacing: str, n: int, first: float, rho: float) -> FloatArray:
    # On a flow there is one equally spaced grid without its clean end, so three names mean the same.
    if spacing in ("trailing", "sgm_uniform", "shifted"):
        return np.asarray(first * schedule.shifted(1.0 - np.arange(n) / n), dtype=np.float64)
    if spacing in ("leading", "lcm"):
        raise UsageError(f"spacing {spacing!r} is for discrete schedules: give trailing or linspace")
    # As diffusers' FlowMatchEulerDiscreteScheduler: the smallest time is the shifted 1 / T, shifted once
    # more.
    lowest = schedule.shifted(1.0 / schedule.num_train_timesteps)
    times = schedule.shifted(np.linspace(first, lowest, n))
    if spacing in ("karras", "exponential"):
        times = _ramp(spacing, float(times[0]), float(times[-1]), n, rho)
    return np.asarray(times, dtype=np.float64)
