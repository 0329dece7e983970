"""Prediction types: what a network's raw output means, in terms of clean data ``x0`` and noise ``eps``.

Every solver, guidance and objective sees `Prediction` only; the prediction type is asked for once, where a
network is adapted. The names are those of diffusers:

- ``epsilon``: eps (Ho 2020, 2006.11239, eq. 11)
- ``sample``: x0
- ``v_prediction``: alpha eps - sigma x0 (Salimans 2022, 2202.00512, appendix D)
- ``flow_prediction``: eps - x0 (Liu 2022, 2209.03003, eq. 1, with time running from data to noise)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fewstep.diffusion.arrays import Array, Coefficient, Time, combine, fit
from fewstep.diffusion.schedule import FlowSchedule, Schedule
from fewstep.errors import UsageError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Prediction(NamedTuple):
    """The denoised estimate and the noise estimate at x_t; ``alpha x0 + sigma eps`` is x_t again."""

    x0: Array
    eps: Array


Denoiser = Callable[[Array, Time], Prediction]
"""``denoise(x_t, t) -> Prediction``; conditions are closed over. ``t`` is scalar or of shape (B,)."""


def check_prediction_type(prediction_type: str) -> str:
    """Return the name if it is known.

    Raises:
        UsageError: it is not; the message names the nearest right one.
    """
    if prediction_type not in PREDICTION_TYPES:
        near = difflib.get_close_matches(prediction_type, PREDICTION_TYPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PREDICTION_TYPES)}"
        raise UsageError(f"prediction type {prediction_type!r} is not known: {hint}")
    return prediction_type


def to_prediction(
    model_output: Array, x_t: Array, t: Time, schedule: Schedule, prediction_type: str
) -> Prediction:
    """Read a network's raw output as (x0, eps).

    Args:
        model_output: array (B, ...), the raw output.
        x_t: array of the same shape, what the network was given.
        t: its time, scalar or (B,), not the clean end.
        schedule: the schedule of ``t``.
        prediction_type: what the output means.

    Raises:
        UsageError: unknown prediction type; ``epsilon`` where alpha is 0, which leaves x0 undefined.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if prediction_type == "v_prediction":
        a, s = fit(alpha, x_t), fit(sigma, x_t)
        if isinstance(schedule, FlowSchedule):  # not variance preserving: divide by the determinant
            norm = a * a + s * s
            a, s = a / norm, s / norm
        return Prediction(a * x_t - s * model_output, s * x_t + a * model_output)
    if prediction_type == "epsilon":
        if np.any(_host(alpha) == 0.0):
            raise UsageError(
                "epsilon prediction has no x0 where alpha is 0 (zero terminal SNR): "
                "use v_prediction or sample, or a schedule that is not rescaled"
            )
        a, s = fit(alpha, x_t), fit(sigma, x_t)
        return Prediction((x_t - s * model_output) / a, model_output)
    if prediction_type == "sample":
        a, s = fit(alpha, x_t), fit(sigma, x_t)
        return Prediction(model_output, (x_t - a * model_output) / s)
    check_prediction_type(prediction_type)
    total = fit(alpha + sigma, x_t)
    x0 = (x_t - fit(sigma, x_t) * model_output) / total
    return Prediction(x0, x0 + model_output)


def from_prediction(prediction: Prediction, t: Time, schedule: Schedule, prediction_type: str) -> Array:
    """The raw output that a network of this prediction type would have given; inverse of `to_prediction`."""
    return target(prediction.x0, prediction.eps, t, schedule, prediction_type)


def target(x0: Array, eps: Array, t: Time, schedule: Schedule, prediction_type: str) -> Array:
    """What a network of this prediction type is trained to give at ``x_t = alpha x0 + sigma eps``.

    Args:
        x0: clean data (B, ...).
        eps: the noise of the same shape.
        t: time, scalar or (B,).
        schedule: the schedule of ``t``.
        prediction_type: what the output means.

    Raises:
        UsageError: unknown prediction type.
    """
    if prediction_type == "v_prediction":
        return combine(schedule.alpha(t), eps, -schedule.sigma(t), x0)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    check_prediction_type(prediction_type)
    return eps - x0


def adapt(model: Callable[[Array, Time], Array], schedule: Schedule, prediction_type: str) -> Denoiser:
    """Adapt a network ``model(x_t, timestep) -> raw output`` to a `Denoiser`, once, at the edge.

    The network is given ``schedule.model_time(t)``. With a solver in sigma space pass
    ``solver.schedule(schedule)``.
    """
    check_prediction_type(prediction_type)

    def denoise(x_t: Array, t: Time) -> Prediction:
        return to_prediction(model(x_t, schedule.model_time(t)), x_t, t, schedule, prediction_type)

    return denoise


def _host(coefficient: Coefficient) -> Coefficient:
    return coefficient.detach().cpu().numpy() if hasattr(coefficient, "detach") else coefficient
