"""Euler's method for rectified flow: Liu 2022 (2209.03003), Algorithm 1; as in Esser 2024 (2403.03206)."""

from __future__ import annotations

from typing import Any

from fewstep.diffusion.arrays import Array, Time, fit
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.solvers.base import Solver, State, evaluate


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """x_s = x_t + (s - t) v with v = eps - x0."""
    prediction, state = evaluate(denoise, x_t, t, state)
    delta = state.schedule.sigma(s) - state.schedule.sigma(t)
    return x_t + fit(delta, x_t) * (prediction.eps - prediction.x0), state


FLOW_EULER = Solver(name="flow_euler", step=step, flow_only=True)
