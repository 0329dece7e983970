"""Loss weights per time, for the mean squared error of a network's raw output."""

from __future__ import annotations

import difflib

import numpy as np

from fewstep.diffusion.arrays import FloatArray, Time, host_time
from fewstep.diffusion.prediction import check_prediction_type
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import UsageError

KINDS = ("unit", "snr", "min_snr", "edm")


def weight(
    kind: str,
    t: Time,
    schedule: Schedule,
    prediction_type: str,
    *,
    gamma: float = 5.0,
    floor: float = 0.1,
    sigma_data: float = 0.5,
) -> FloatArray:
    """Weight of each sample's loss ``mean((raw output - target)^2)``.

    Three of the kinds are defined as weights of the error of x0; they are divided by the square of how much
    the raw output moves when x0 does (with x_t fixed), so that training means the same for every prediction
    type.

    Args:
        kind: one of `KINDS`.
            ``unit``: 1 on the raw output.
            ``snr``: SNR on x0, which is 1 on eps (Ho 2020, 2006.11239, eq. 14).
            ``min_snr``: min(SNR, gamma) on x0 (Hang 2023, 2303.09556, eq. 8), at least ``floor`` on the raw
                output.
            ``edm``: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0, sigma being sigma / alpha (Karras
                2022,
            2206.00364, table 1).
        t: times, scalar or (B,), not the clean end.
        schedule: the schedule of the times.
        prediction_type: of the raw output.
        gamma: of ``min_snr``.
        floor: of ``min_snr``. Without one the weight of a v-prediction is 0 at zero terminal SNR, the very
            time that trailing sampling starts from, so the network would never learn it. 0 gives the paper's
            weight.
        sigma_data: of ``edm``: standard deviation of the data.

    Returns:
        float64 array of shape (B,), or (1,) for a scalar time.

    Raises:
        UsageError: unknown kind, a parameter out of range, or a time whose weight is not finite.
    """
    check_prediction_type(prediction_type)
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(KINDS)}"
        raise UsageError(f"weighting {kind!r} is not known: {hint}")
    if not (gamma > 0 and floor >= 0 and sigma_data > 0):
        raise UsageError(
            f"gamma {gamma}, floor {floor}, sigma_data {sigma_data}: give numbers above 0 (floor: or 0)"
        )
    alpha = np.atleast_1d(np.asarray(host_time(schedule.alpha(t))))
    sigma = np.atleast_1d(np.asarray(host_time(schedule.sigma(t))))
    if kind == "unit":
        return np.ones_like(alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        # All times sigma^2, which keeps alpha = 0 finite: weight on x0 (w) and squared slope of the raw
        # output (k).
        if kind == "snr":
            w = alpha**2
        elif kind == "min_snr":
            w = np.minimum(alpha**2, gamma * sigma**2)
        else:
            w = (sigma**2 + (sigma_data * alpha) ** 2) / sigma_data**2
        slope = {
            "sample": sigma,
            "epsilon": alpha,
            "v_prediction": alpha**2 + sigma**2,
            "flow_prediction": alpha + sigma,
        }[prediction_type]
        result = w / slope**2
    if prediction_type == "epsilon" and kind != "edm":
        # At alpha = 0 both are 0; the limit of the quotient is 1.
        result = np.where(alpha == 0.0, 1.0, result)
    if kind == "min_snr":
        result = np.maximum(result, floor)
    if not np.all(np.isfinite(result)):
        raise UsageError(
            f"weighting {kind} is not finite for {prediction_type} at the given times: use another kind"
        )
    return np.asarray(result, dtype=np.float64)
