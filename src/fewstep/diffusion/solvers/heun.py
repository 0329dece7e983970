"""Heun's method in sigma / alpha: Karras 2022 (2206.00364), Algorithm 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, fit, host_time
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, eps_gain, evaluate


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """Euler step, then the mean of the slopes at both ends; two evaluations, one at the clean end.

    The last step stays first-order, as in the paper: the slope at sigma = 0 divides by 0. So does the step
    away from alpha_t = 0 (zero terminal SNR), where the correction of an infinite interval would be infinite.
    """
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    euler = combine(schedule.alpha(s), prediction.x0, schedule.sigma(s), prediction.eps)
    clean = schedule.is_clean(s)
    gain = np.where(clean, 0.0, eps_gain(schedule, t, s))
    if np.all(gain == 0.0):
        return euler, state
    # Rows at the clean end cannot be evaluated there; they look again at t, and their gain is 0.
    ahead, state = evaluate(denoise, euler, host_time(np.where(clean, host_time(t), host_time(s))), state)
    x_s = euler + fit(0.5 * gain, x_t) * (prediction.eps - ahead.eps)
    return x_s, state._replace(x0=prediction.x0)


HEUN = Solver(name="heun", step=step, order=2)
