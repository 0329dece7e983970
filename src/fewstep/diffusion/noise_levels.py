"""Training-time noise: which times a batch is trained at. Drawn on the host from a numpy generator."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.schedule import FlowSchedule, Schedule
from fewstep.diffusion.timesteps import make_grid
from fewstep.errors import UsageError

DISTRIBUTIONS = ("uniform", "logit_normal", "phased_mixture", "discrete")


def sample_t(
    distribution: str,
    rng: np.random.Generator,
    n: int,
    schedule: Schedule,
    *,
    low: float | None = None,
    high: float | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    num_steps: int = 32,
    mode_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    variance: float = 0.5,
    times: Sequence[float] = (),
    weights: Sequence[float] | None = None,
) -> FloatArray:
    """Draw n training times.

    Args:
        distribution: one of `DISTRIBUTIONS`.
            ``uniform``: every integer from ``low`` to ``high`` (discrete), or (low, high] (flow, then
                shifted).
            ``logit_normal``: sigmoid of N(mean, std^2) (Esser 2024, 2403.03206, section 3.1), shifted on a
                flow,
            times T and rounded down on a table.
            ``phased_mixture``: a time of the trailing grid of ``num_steps``, by `phased_mixture_pmf`.
            ``discrete``: one of ``times`` with probabilities proportional to ``weights``.
        rng: the generator; the draw depends on nothing else.
        n: how many.
        schedule: discrete (whole times in [0, T - 1]) or flow (times in (0, 1]).
        low: least time of ``uniform``; 0 if None.
        high: greatest time of ``uniform``; the terminal time if None.
        mean: of the normal; above 0 favours noise.
        std: of the normal, above 0.
        num_steps: K of ``phased_mixture``.
        mode_weights: one weight per mode of ``phased_mixture``, the noisiest mode first.
        variance: of ``phased_mixture``, in grid indices.
        times: of ``discrete``.
        weights: of ``discrete``; equal if None.

    Returns:
        float64 array of shape (n,).

    Raises:
        UsageError: unknown distribution, or parameters out of range.
    """
    flow = isinstance(schedule, FlowSchedule)
    if distribution == "uniform":
        least = 0.0 if low is None else low
        greatest = schedule.terminal if high is None else high
        if not 0.0 <= least <= greatest <= schedule.terminal:
            raise UsageError(
                f"uniform times {least} to {greatest}: give 0 <= low <= high <= {schedule.terminal:g}"
            )
        if isinstance(schedule, FlowSchedule):
            # 1 - [0, 1): 0 is the clean end, which is never trained.
            u = greatest - (greatest - least) * rng.random(n)
            return np.asarray(schedule.shifted(u), dtype=np.float64)
        return rng.integers(int(least), int(greatest), size=n, endpoint=True).astype(np.float64)
    if distribution == "logit_normal":
        if not std > 0:
            raise UsageError(f"logit_normal std is {std}: give a number above 0")
        u = 1.0 / (1.0 + np.exp(-(mean + std * rng.standard_normal(n))))
        if isinstance(schedule, FlowSchedule):
            return np.asarray(schedule.shifted(u), dtype=np.float64)
        return np.minimum(np.floor(u * schedule.num_train_timesteps), schedule.terminal)
    if distribution == "phased_mixture":
        grid = make_grid(schedule, "trailing", num_steps)[:-1]
        return grid[rng.choice(num_steps, size=n, p=phased_mixture_pmf(num_steps, mode_weights, variance))]
    if distribution == "discrete":
        choices = np.asarray(times, dtype=np.float64)
        if (
            choices.size == 0
            or choices.min() < 0
            or choices.max() > schedule.terminal
            or (flow and 0 in choices)
        ):
            raise UsageError(
                f"discrete times are {list(times)}: give one or more up to {schedule.terminal:g}"
            )
        p = np.ones(choices.size) if weights is None else np.asarray(weights, dtype=np.float64)
        if p.shape != choices.shape or p.min() < 0 or not p.sum() > 0:
            raise UsageError(f"discrete weights are {p.tolist()}: give one of 0 or more for each time")
        return choices[rng.choice(choices.size, size=n, p=p / p.sum())]
    near = difflib.get_close_matches(distribution, DISTRIBUTIONS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(DISTRIBUTIONS)}"
    raise UsageError(f"distribution {distribution!r} is not known: {hint}")


def phased_mixture_pmf(num_steps: int, mode_weights: Sequence[float], variance: float = 0.5) -> FloatArray:
    """Probabilities of the K grid indices of Flash Diffusion's timestep mixture (Chadebec 2024, 2406.02347).

    n modes sit at the indices j (K // n); index 0 is the most noise. The density at i is proportional to
    ``sum_j w_j exp(-(i - l_j)^2 / variance)``, normalised over the indices, without the factor 2 of a
    Gaussian: so the authors' code has it.

    Args:
        num_steps: K, at least the number of modes.
        mode_weights: one per mode, 0 or more, not all 0.
        variance: above 0.

    Raises:
        UsageError: parameters out of range.
    """
    w = np.asarray(mode_weights, dtype=np.float64)
    if w.ndim != 1 or not 1 <= w.size <= num_steps or w.min() < 0 or not w.sum() > 0:
        raise UsageError(
            f"mode weights are {w.tolist()} for {num_steps} steps: give 1 to {num_steps}, 0 or more"
        )
    if not variance > 0:
        raise UsageError(f"phased_mixture variance is {variance}: give a number above 0")
    centres = np.arange(w.size) * (num_steps // w.size)
    density = np.exp(-((np.arange(num_steps)[:, None] - centres) ** 2) / variance) @ w
    return np.asarray(density / density.sum(), dtype=np.float64)
