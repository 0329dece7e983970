"""SDE-DPM-Solver++(2M): Lu 2022 (2211.01095), its section on diffusion SDEs.

diffusers' ``sde-dpmsolver++`` with ``midpoint``.
"""

from __future__ import annotations

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, evaluate
from fewstep.diffusion.solvers.dpmpp_2m import decay, extrapolated


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Array) -> tuple[Array, State]:
    """x_s = (sigma_s / sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) noise."""
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    data, history = extrapolated(prediction.x0, t, s, state)
    fading = decay(schedule, t, s)
    sigma_s = host_time(schedule.sigma(s))
    shrink = safe_divide(sigma_s, host_time(schedule.sigma(t)), otherwise=1.0) * fading
    fresh = 1.0 - fading**2
    x_s = combine(shrink, x_t, host_time(schedule.alpha(s)) * fresh, data)
    return x_s + fit(sigma_s * np.sqrt(np.maximum(fresh, 0.0)), x_t) * noise, state._replace(history=history)


DPMPP_2M_SDE = Solver(name="dpmpp_2m_sde", step=step, order=0, stochastic=True, sigma_space=True)
