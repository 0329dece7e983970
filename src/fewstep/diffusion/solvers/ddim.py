"""DDIM: Song 2020 (2010.02502), eq. 12 and 16."""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Coefficient, Time, combine, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def posterior_std(schedule: Schedule, t: Time, s: Time) -> Coefficient:
    """Standard deviation of q(x_s | x_t, x_0) (Song 2020, eq. 16, eta = 1): 0 at the clean end."""
    alpha_t, alpha_s = host_time(schedule.alpha(t)), host_time(schedule.alpha(s))
    sigma_t, sigma_s = host_time(schedule.sigma(t)), host_time(schedule.sigma(s))
    kept = safe_divide(alpha_t, alpha_s, otherwise=1.0)
    variance = np.maximum(sigma_t**2 - (kept * sigma_s) ** 2, 0.0)
    return host_time(safe_divide(sigma_s, sigma_t, otherwise=0.0) * np.sqrt(variance))


def ddim(eta: float = 0.0) -> Solver:
    """DDIM with the given eta.

    In the x0 form ``x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std noise``, which is finite at zero
    terminal SNR. Each step goes to the next grid point; diffusers goes to t - T // N instead, the same where
    N divides T.

    Args:
        eta: 0 is deterministic, 1 adds as much noise as DDPM's posterior.
    """

    def step(
        denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array
    ) -> tuple[Array, State]:
        prediction, state = evaluate(denoise, x_t, t, state)
        schedule = state.schedule
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        if eta == 0.0:
            return combine(alpha_s, prediction.x0, sigma_s, prediction.eps), state
        std = host_time(eta * posterior_std(schedule, t, s))
        direction = np.sqrt(np.maximum(host_time(sigma_s) ** 2 - std**2, 0.0))
        x_s = combine(alpha_s, prediction.x0, direction, prediction.eps)
        return x_s + fit(std, x_t) * noise, state

    return Solver(name="ddim", step=step, order=0 if eta else 1, stochastic=eta > 0.0)
