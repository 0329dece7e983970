"""Euler ancestral sampling: Song 2020 (2011.13456), appendix F, as k-diffusion writes it.

No paper states this form (``sample_euler_ancestral``): ancestral sampling of the variance-exploding process.
"""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array) -> tuple[Array, State]:
    """Euler step down to sigma_down, then noise up to sigma_s, all in units of sigma / alpha."""
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    alpha_s, sigma_s = host_time(schedule.alpha(s)), host_time(schedule.sigma(s))
    # sigma_down / sigma_s and sigma_up / sigma_s, finite at sigma_t = infinity.
    down = safe_divide(host_time(schedule.ratio(s)), host_time(schedule.ratio(t)), otherwise=1.0)
    up = np.sqrt(np.maximum(1.0 - down**2, 0.0))
    x_s = combine(alpha_s, prediction.x0, sigma_s * down, prediction.eps)
    return x_s + fit(sigma_s * up, x_t) * noise, state


EULER_A = Solver(name="euler_a", step=step, order=0, stochastic=True, sigma_space=True)
