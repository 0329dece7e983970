"""DPM-Solver++(2M): Lu 2022 (2211.01095), Algorithm 2."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.diffusion.arrays import Array, Coefficient, Time, combine, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def extrapolated(x0: Array, t: Time, s: Time, state: State) -> tuple[Array, tuple[Any, ...]]:
    """The data estimate D of Algorithm 2 at the middle of the step, and the history for the next step.

    D = x0 + (x0 - x0_before) / (2 r) with r = h_before / h in log(alpha / sigma). First-order in the first
    step, at the clean end (h is infinite; diffusers' ``lower_order_final``) and after an infinite step away
    from alpha = 0.
    History: the last x0 and the log SNR of its time.
    """
    log_snr = host_time(state.schedule.log_snr(t))
    history = (x0, log_snr)
    if not state.history:
        return x0, history
    earlier, earlier_log_snr = state.history
    h = host_time(state.schedule.log_snr(s)) - log_snr
    weight = 0.5 * safe_divide(h, log_snr - earlier_log_snr, otherwise=0.0)
    weight = host_time(np.where(np.isfinite(weight), weight, 0.0))
    return x0 + fit(weight, x0) * (x0 - earlier), history


def decay(schedule: Schedule, t: Time, s: Time) -> Coefficient:
    """e^-h = (alpha_t sigma_s) / (sigma_t alpha_s), from 0 at the clean end to 1 for no step."""
    alpha_t, alpha_s = host_time(schedule.alpha(t)), host_time(schedule.alpha(s))
    sigma_t, sigma_s = host_time(schedule.sigma(t)), host_time(schedule.sigma(s))
    return safe_divide(alpha_t * sigma_s, alpha_s * sigma_t, otherwise=1.0)


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D; diffusers' ``midpoint`` variant."""
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    data, history = extrapolated(prediction.x0, t, s, state)
    shrink = safe_divide(host_time(schedule.sigma(s)), host_time(schedule.sigma(t)), otherwise=1.0)
    pull = host_time(schedule.alpha(s)) * (1.0 - decay(schedule, t, s))
    return combine(shrink, x_t, pull, data), state._replace(history=history)


DPMPP_2M = Solver(name="dpmpp_2m", step=step, order=2, sigma_space=True)
