"""Where host coefficients meet tensors: float64 on the host, cast once to the tensor's dtype."""

from __future__ import annotations

import math
from typing import Any

import array_api_compat
import numpy as np
import numpy.typing as npt

Array = Any
"""A numpy array or a torch tensor; the core returns the kind, dtype and device that it was given."""

FloatArray = npt.NDArray[np.float64]

Time = Any
"""A time: a number, or an array of shape (B,) with one time per sample."""

Coefficient = Any
"""What a schedule returns for a time: a Python float, or an array of shape (B,)."""


def namespace(array: Array) -> Any:
    """The array functions for this kind of array, by their names in the array API standard.

    numpy 2 has those names itself; array-api-compat would import all of numpy to wrap it, which takes longer
    than ten steps of a small model.
    """
    return np if isinstance(array, np.ndarray) else array_api_compat.array_namespace(array)


def host_time(t: Time) -> float | FloatArray:
    """Bring a time to the host: a Python float for one time, a float64 array for one time per sample.

    Args:
        t: number, sequence, numpy array or torch tensor, scalar or of shape (B,). A tensor on an accelerator
            is copied, which waits for the device: draw times on the host.
    """
    if isinstance(t, int | float):
        return float(t)
    if hasattr(t, "detach"):
        t = t.detach().cpu()
    array = np.asarray(t, dtype=np.float64)
    return float(array) if array.ndim == 0 else array


def fit(coefficient: Coefficient, like: Array) -> Any:
    """Make a coefficient ready to multiply ``like`` without changing its dtype.

    Args:
        coefficient: float, or array of shape (B,); a torch tensor keeps its graph.
        like: array of shape (B, ...).

    Returns:
        A Python float (numpy and torch let it take the tensor's dtype), or an array of shape (B, 1, ...) with
        the dtype and device of ``like``.
    """
    # Not isinstance: numpy.float64 is a float too, but would lift a float32 array to float64 (NEP 50).
    if type(coefficient) is float:
        return coefficient
    if getattr(coefficient, "ndim", 0) == 0:
        return coefficient if hasattr(coefficient, "detach") else float(coefficient)
    shape = (coefficient.shape[0],) + (1,) * (like.ndim - 1)
    if isinstance(like, np.ndarray):
        return np.asarray(coefficient).astype(like.dtype).reshape(shape)
    xp = namespace(like)
    device = array_api_compat.device(like)
    if hasattr(coefficient, "detach"):
        moved = array_api_compat.to_device(coefficient, device)
    else:
        moved = xp.asarray(coefficient, device=device)
    return xp.reshape(xp.astype(moved, like.dtype), shape)


def combine(a: Coefficient, x: Array, b: Coefficient, y: Array) -> Array:
    """Return ``a x + b y`` in the dtype of ``x``; ``a``, ``b`` are coefficients, scalar or of shape (B,)."""
    return fit(a, x) * x + fit(b, y) * y


def like(value: Array, reference: Array) -> Array:
    """Return ``value`` as the same kind of array as ``reference``, with its dtype and device."""
    if isinstance(reference, np.ndarray):
        return np.asarray(value, dtype=reference.dtype)
    xp = namespace(reference)
    return xp.asarray(value, dtype=reference.dtype, device=array_api_compat.device(reference))


def safe_divide(numerator: Coefficient, denominator: Coefficient, *, otherwise: float) -> Coefficient:
    """Divide host coefficients; where the denominator is 0 or the quotient is not a number, ``otherwise``."""
    if type(numerator) is float and type(denominator) is float:
        quotient = numerator / denominator if denominator != 0.0 else math.nan
        return otherwise if math.isnan(quotient) else quotient
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(
            denominator == 0.0, np.nan, numerator / np.where(denominator == 0.0, 1.0, denominator)
        )
    return np.where(np.isnan(quotients), otherwise, quotients)
