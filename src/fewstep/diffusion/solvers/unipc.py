"""UniPC-2 with B2(h) = e^h - 1 and data prediction: Zhao 2023 (2302.04867), Algorithms 1 and 2.

Each evaluation first corrects the sample that the last predictor made, then predicts the next one, so a step
costs one evaluation (the paper's way; the corrected sample is not evaluated again).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fewstep.diffusion.arrays import Array, Coefficient, Time, fit, host_time, safe_divide
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.solvers.base import Solver, State, evaluate


class _Past(NamedTuple):
    """What a step leaves to the next one."""

    x: Array
    t: Time
    x0: Array
    t_before: Time | None
    x0_before: Array | None


def _lambda(schedule: Schedule, t: Time) -> Coefficient:
    """Half the log SNR: the paper's lambda = log(alpha / sigma)."""
    return 0.5 * host_time(schedule.log_snr(t))


def _base(
    schedule: Schedule, x: Array, x0: Array, t: Time, s: Time, h: Coefficient
) -> tuple[Array, Coefficient]:
    """The first-order part (sigma_s / sigma_t) x - alpha_s (e^-h - 1) x0, and alpha_s (e^-h - 1)."""
    scale = host_time(schedule.alpha(s)) * np.expm1(-h)
    shrink = safe_divide(host_time(schedule.sigma(s)), host_time(schedule.sigma(t)), otherwise=1.0)
    return fit(shrink, x) * x - fit(scale, x) * x0, scale


def _difference(
    schedule: Schedule, past: tuple[Array, Time], now: tuple[Array, Time], h: Coefficient
) -> tuple[Array, Any]:
    """The finite difference D1 = (x0_before - x0) / r with r = (lambda_before - lambda) / h, and r.

    0 where r is infinite (a step away from alpha = 0) or 0 (h infinite: a step to the clean end,
    first-order).
    """
    r = safe_divide(_lambda(schedule, past[1]) - _lambda(schedule, now[1]), h, otherwise=-1.0)
    inverse = safe_divide(1.0, host_time(r), otherwise=0.0)
    return fit(inverse, now[0]) * (past[0] - now[0]), host_time(r)


def _correct(schedule: Schedule, past: _Past, x0: Array, t: Time) -> Array:
    """UniC: redo the step past.t -> t with the data estimate at its end (Algorithm 1)."""
    h = _lambda(schedule, t) - _lambda(schedule, past.t)
    base, scale = _base(schedule, past.x, past.x0, past.t, t, h)
    if past.x0_before is None:
        return base - fit(0.5 * scale, x0) * (x0 - past.x0)
    older, r = _difference(schedule, (past.x0_before, past.t_before), (past.x0, past.t), h)
    # The two weights solve rho_1 + rho_2 = b_1, r rho_1 + rho_2 = b_2 (eq. 3 for p = 2).
    phi = np.expm1(-h) / -h - 1.0
    b_1 = phi / np.expm1(-h)
    b_2 = 2.0 * (phi / -h - 0.5) / np.expm1(-h)
    rho_1 = (b_1 - b_2) / (1.0 - r)
    rho_2 = b_1 - rho_1
    return base - fit(scale * rho_1, x0) * older - fit(scale * rho_2, x0) * (x0 - past.x0)


def step(denoise: Denoiser, x_t: Array, t: Time, s: Time, state: State, noise: Any) -> tuple[Array, State]:
    """Correct x_t, then predict x_s (UniP, Algorithm 2). History: one record of the last step.

    Orders rise from 1 to 2 and fall to 1 at the clean end, as diffusers' ``lower_order_final`` does. The
    predictor of order 2 uses the weight 1/2, which the paper's appendix E allows.
    """
    prediction, state = evaluate(denoise, x_t, t, state)
    schedule, x0 = state.schedule, prediction.x0
    past: _Past | None = state.history[0] if state.history else None
    if past is not None:
        x_t = _correct(schedule, past, x0, t)
    h = _lambda(schedule, s) - _lambda(schedule, t)
    x_s, scale = _base(schedule, x_t, x0, t, s, h)
    if past is None:
        record = _Past(x_t, t, x0, None, None)
    else:
        older, _ = _difference(schedule, (past.x0, past.t), (x0, t), h)
        x_s = x_s - fit(0.5 * scale, x0) * older
        record = _Past(x_t, t, x0, past.t, past.x0)
    return x_s, state._replace(history=(record,))


# The corrector adds one to the predictor's order 2 (Zhao 2023, theorem 3.1).
UNIPC = Solver(name="unipc", step=step, order=3, sigma_space=True)
