"""Euler's method in sigma / alpha: Karras 2022 (2206.00364), Algorithm 1 without its correction, no churn."""

from __future__ import annotations

from typing import Any

from fewstep.diffusion.arrays import Array, Time, combine
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """Follow dx / dsigma = eps, for x = x_t / alpha_t and sigma = sigma_t / alpha_t, to the next grid point.

    x0 + sigma_s eps times alpha_s is ``alpha_s x0 + sigma_s eps``: the x0 form does not cancel two large
    numbers at high noise as ``x + (sigma_s - sigma_t) eps`` does. It is DDIM's step; grids and zero terminal
    SNR differ.
    """
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule = state.schedule
    return combine(schedule.alpha(s), prediction.x0, schedule.sigma(s), prediction.eps), state


EULER = Solver(name="euler", step=step, sigma_space=True)
