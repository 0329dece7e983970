"""DDPM ancestral sampling: Ho 2020 (2006.11239), Algorithm 2 with eq. 6 and 7."""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, evaluate
from fewstep.diffusion.solvers.ddim import posterior_std


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array) -> tuple[Array, State]:
    """Draw from the posterior q(x_s | x_t, x0): eq. 6 and 7 between any two times, not only neighbours.

    The variance is the posterior's (the paper's second choice, diffusers' ``fixed_small``).
    """
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    alpha_t, alpha_s = host_time(schedule.alpha(t)), host_time(schedule.alpha(s))
    sigma_t, sigma_s = host_time(schedule.sigma(t)), host_time(schedule.sigma(s))
    kept = safe_divide(alpha_t, alpha_s, otherwise=1.0)
    added = np.maximum(sigma_t**2 - (kept * sigma_s) ** 2, 0.0)
    mean = combine(alpha_s * added / sigma_t**2, prediction.x0, kept * sigma_s**2 / sigma_t**2, x_t)
    return mean + fit(posterior_std(schedule, t, s), x_t) * noise, state


DDPM = Solver(name="ddpm", step=step, order=0, stochastic=True)
