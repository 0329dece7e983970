"""Multistep sampling of latent consistency models: Luo 2023 (2310.04378), Algorithm 3."""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Coefficient, Time, combine, host_time
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import DiscreteSchedule, Schedule
from fewstep.diffusion.solvers.base import Solver, State, evaluate

SIGMA_DATA = 0.5


def boundary(schedule: Schedule, t: Time, scaling: float) -> tuple[Coefficient, Coefficient]:
    """(c_skip, c_out) of Song 2023 (2303.01469), appendix C, with the time scaled as released LCMs do.

    ``tau = scaling t``; c_skip = 0.25 / (tau^2 + 0.25), c_out = tau / sqrt(tau^2 + 0.25). The paper has t -
    epsilon for tau; at the usual scaling of 10 both are 0 and 1 but for the least noise. ``scaling`` 0, or a
    flow schedule, gives 0 and 1: the plain data estimate.
    """
    if scaling == 0.0 or not isinstance(schedule, DiscreteSchedule):
        return 0.0, 1.0
    tau = scaling * host_time(t)
    norm = tau**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, host_time(tau / np.sqrt(norm))


def lcm(boundary_scaling: float = 10.0) -> Solver:
    """Jump to the data estimate, then add fresh noise for the next time.

    Args:
        boundary_scaling: factor on timesteps in c_skip and c_out; 0 for none.
    """

    def step(
        denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array
    ) -> tuple[Array, State]:
        prediction, state = evaluate(denoise, x_t, t, state)
        c_skip, c_out = boundary(state.schedule, t, boundary_scaling)
        denoised = combine(c_out, prediction.x0, c_skip, x_t)
        x_s = combine(state.schedule.alpha(s), denoised, state.schedule.sigma(s), noise)
        return x_s, state._replace(x0=denoised)

    return Solver(name="lcm", step=step, order=0, stochastic=True)
