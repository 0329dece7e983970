"""Strategic stochastic sampling of trajectory consistency models: Zheng 2024 (2402.19159), gamma sampling.

The jump is DDIM's (their trajectory function of first order), the way back up the forward process.
"""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, host_time
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import DiscreteSchedule, Schedule
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def landing(schedule: Schedule, s: Time, gamma: float) -> Time:
    """The time below s that a step jumps to before it diffuses back up: (1 - gamma) s, whole on a table."""
    s = host_time(s)
    if gamma == 0.0:
        return s  # not rounded: nothing diffuses back up to an s between two entries
    below = (1.0 - gamma) * s
    if isinstance(schedule, DiscreteSchedule):
        below = np.floor(below)
    return host_time(np.where(schedule.is_clean(s), schedule.clean, below))


def tcd(gamma: float = 0.3) -> Solver:
    """Jump past the next time to (1 - gamma) s, then diffuse forward to s with fresh noise.

    The last step goes to clean data (sigma = 0); diffusers ends at table entry 0, whose sigma is small but
    not 0.

    Args:
        gamma: 0 is deterministic (DDIM), 1 jumps to table entry 0 each time. diffusers calls it eta.
    """

    def step(
        denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array
    ) -> tuple[Array, State]:
        prediction, state = evaluate(denoise, x_t, t, state)
        schedule = state.schedule
        below = landing(schedule, s, gamma)
        x = combine(schedule.alpha(below), prediction.x0, schedule.sigma(below), prediction.eps)
        return (x if gamma == 0.0 else schedule.forward_between(x, noise, below, s)), state

    return Solver(name="tcd", step=step, order=0 if gamma else 1, stochastic=gamma > 0.0)
