"""PLMS (pseudo linear multistep): Liu 2022 (2202.09778), Algorithm 2 with eq. 9 and 12; also called F-PNDM.

As Stable Diffusion and diffusers (``skip_prk_steps``) run it: the Runge-Kutta warm-up of the paper is
replaced by one pseudo improved Euler step, then Adams-Bashforth of orders 2 and 3
until three earlier noises are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.diffusion.arrays import Array, Time, combine, fit, host_time
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, eps_gain, evaluate

_ADAMS_BASHFORTH = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the newest noise and of the earlier ones, by how many of these are known (eq. 12)."""


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """Take one step; the first one calls the denoiser twice. History: up to three noises, the newest first.

    The multistep combination is made of noises, as in the paper. diffusers combines raw model outputs, which
    is the same for ``epsilon`` and another method for ``v_prediction``. Where alpha_t is 0 (zero terminal
    SNR) the step is first-order, since eq. 9 divides by alpha_t.
    """
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    eps = prediction.eps
    first_order = combine(schedule.alpha(s), prediction.x0, schedule.sigma(s), eps)
    gain = eps_gain(schedule, t, s)
    if state.history:
        newest, *weights = _ADAMS_BASHFORTH[len(state.history)]
        mixed = newest * eps
        for weight, earlier in zip(weights, state.history, strict=True):
            mixed = mixed + weight * earlier
    elif np.all(schedule.is_clean(s)) or np.all(host_time(gain) == 0.0):
        mixed = eps
    else:
        # At the clean end nothing can be evaluated; such rows look again at t and stay first-order.
        clean = schedule.is_clean(s)
        ahead, state = evaluate(denoise, first_order, np.where(clean, host_time(t), host_time(s)), state)
        mixed = 0.5 * (eps + ahead.eps)
        gain = np.where(clean, 0.0, gain)
    x_s = first_order + fit(gain, x_t) * (eps - mixed)
    return x_s, state._replace(x0=prediction.x0, history=(eps, *state.history)[:3])


PLMS = Solver(name="plms", step=step, order=2)
