"""Noise schedules: how much signal and how much noise ``x_t = alpha(t) x_0 + sigma(t) eps`` holds.

Two kinds of time, never under one name:

- `DiscreteSchedule`: ``t`` is a float64 position on a table of T entries, 0 the least and T - 1 the most
  noise. Training draws integers; Karras and exponential grids fall between, interpolated in log(sigma /
  alpha). Clean data are not an index: any ``t < 0`` (`DiscreteSchedule.clean`) means sigma = 0 exactly.
- `FlowSchedule`: ``t`` in [0, 1], 0 is clean data and 1 pure noise.

Coefficients are Python floats for a scalar time and arrays of shape (B,) for one time per sample.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.diffusion.arrays import (
    Array,
    Coefficient,
    FloatArray,
    Time,
    combine,
    host_time,
    namespace,
    safe_divide,
)
from fewstep.errors import UsageError

FINITE_TERMINAL = 2.0**-24
"""abar_T that solvers in sigma space use on a zero-terminal-SNR schedule, where sigma / alpha is infinite.
The smallest positive float16; diffusers' Euler, DPM-Solver++ and UniPC use the same."""

BETA_SCHEDULES = ("scaled_linear", "linear", "cosine")


@dataclass(frozen=True, eq=False)
class DiscreteSchedule:
    """A variance-preserving schedule given by a table: alpha = sqrt(abar), sigma = sqrt(1 - abar).

    Args:
        alphas_cumprod: float64 array of shape (T,): abar, falling, within [0, 1). A last entry of 0 means
            zero terminal SNR.

    Raises:
        UsageError: the table is empty, not falling or out of range.
    """

    alphas_cumprod: FloatArray
    _alpha: FloatArray = field(init=False, repr=False)
    _sigma: FloatArray = field(init=False, repr=False)
    _log_ratio: FloatArray = field(init=False, repr=False)

    clean = -1.0
    """The time of clean data: sigma is 0 there, alpha 1."""

    def __post_init__(self) -> None:
        abar = np.array(self.alphas_cumprod, dtype=np.float64)
        if abar.ndim != 1 or abar.size < 2:
            raise UsageError(
                f"schedule table has shape {abar.shape}: give one row of at least 2 values of abar"
            )
        if not (np.all(np.diff(abar) < 0) and abar[0] < 1 and abar[-1] >= 0):
            raise UsageError(
                "schedule table is not falling within [0, 1): check betas, they must lie in (0, 1]"
            )
        abar.setflags(write=False)
        finite = abar.copy()
        if finite[-1] == 0.0:
            finite[-1] = FINITE_TERMINAL
        tables = {
            "alphas_cumprod": abar,
            "_alpha": np.sqrt(abar),
            "_sigma": np.sqrt(1.0 - abar),
            "_log_ratio": 0.5 * (np.log1p(-finite) - np.log(finite)),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    @property
    def num_train_timesteps(self) -> int:
        """T, the length of the table."""
        return int(self.alphas_cumprod.size)

    @property
    def terminal(self) -> float:
        """The time of most noise, T - 1."""
        return float(self.num_train_timesteps - 1)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x at the terminal time is pure noise: alpha is exactly 0 there."""
        return bool(self.alphas_cumprod[-1] == 0.0)

    def finite_terminal(self) -> DiscreteSchedule:
        """The schedule for solvers in sigma space: abar at T is 2**-24, not 0. Else itself."""
        if not self.zero_terminal_snr:
            return self
        table = self.alphas_cumprod.copy()
        table[-1] = FINITE_TERMINAL
        return DiscreteSchedule(table)

    def is_clean(self, t: Time) -> Any:
        """Whether ``t`` is the clean end: a bool, or a bool array of shape (B,)."""
        return host_time(t) < 0

    def _between(self, t: Any) -> tuple[Any, Any]:
        """Give (alpha, sigma) between integers, linear in log(sigma / alpha) as diffusers interpolates."""
        ratio = np.exp(np.interp(t, np.arange(self.num_train_timesteps), self._log_ratio))
        alpha = 1.0 / np.sqrt(1.0 + ratio * ratio)
        return alpha, ratio * alpha

    def _coefficient(self, which: int, t: Time) -> Coefficient:
        """Look up alpha (``which`` 0) or sigma (1)."""
        table = self._sigma if which else self._alpha
        t = host_time(t)
        if isinstance(t, float):
            if t < 0:
                return float(which == 0)
            if t > self.terminal or math.isnan(t):
                raise UsageError(f"time {t:g} is past the schedule's end: give 0 to {self.terminal:g}")
            index = int(t)
            return table.item(index) if index == t else float(self._between(t)[which])
        if np.any(t > self.terminal) or np.any(np.isnan(t)):
            raise UsageError(f"a time is past the schedule's end: give 0 to {self.terminal:g}")
        index = np.clip(t, 0, None).astype(np.int64)
        found = table[index]
        if np.any((index != t) & (t >= 0)):
            found = np.where(index == t, found, self._between(np.clip(t, 0, None))[which])
        return np.where(t < 0, float(which == 0), found)

    def alpha(self, t: Time) -> Coefficient:
        """Signal coefficient at ``t``, in [0, 1]."""
        return self._coefficient(0, t)

    def sigma(self, t: Time) -> Coefficient:
        """Noise coefficient at ``t``, in [0, 1]."""
        return self._coefficient(1, t)

    def log_snr(self, t: Time) -> Coefficient:
        """log(alpha^2 / sigma^2) at ``t``: +inf at the clean end, -inf where alpha is 0."""
        return _log_snr(self.alpha(t), self.sigma(t))

    def ratio(self, t: Time) -> Coefficient:
        """Ratio sigma / alpha at ``t``: the sigma of Karras et al. and k-diffusion; inf where alpha is 0."""
        return safe_divide(self.sigma(t), self.alpha(t), otherwise=math.inf)

    def time_of_ratio(self, ratio: Coefficient) -> Coefficient:
        """Position where sigma / alpha is ``ratio`` (inverse of `ratio`, clipped to the table)."""
        t = np.interp(np.log(ratio), self._log_ratio, np.arange(self.num_train_timesteps))
        return host_time(t)

    def model_time(self, t: Time) -> Time:
        """What the network is given as its timestep: ``t`` itself."""
        return t

    def forward(self, x0: Array, eps: Array, t: Time) -> Array:
        """Diffuse clean ``x0`` (B, ...) with noise ``eps`` to ``t``: alpha x0 + sigma eps."""
        return combine(self.alpha(t), x0, self.sigma(t), eps)

    def forward_between(self, x_s: Array, eps: Array, s: Time, t: Time) -> Array:
        """Diffuse ``x_s`` on from ``s`` to the noisier ``t``; see `forward_between`."""
        return forward_between(self, x_s, eps, s, t)


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow: alpha = 1 - t, sigma = t, with ``t`` in [0, 1].

    Liu 2022 (2209.03003), eq. 1; Esser 2024 (2403.03206), section 3.1.

    ``shift`` moves grids and training times towards noise (Esser 2024, eq. 23); ``t`` itself is always the
    shifted time, so alpha and sigma do not depend on it. alpha and sigma are differentiable in ``t``: a torch
    tensor is not brought to the host.

    Args:
        shift: > 0; 1 is no shift, SD3 uses 3.
        num_train_timesteps: the network is given ``t * num_train_timesteps``.

    Raises:
        UsageError: the shift is not a positive number.
    """

    shift: float = 1.0
    num_train_timesteps: int = 1000

    clean = 0.0
    """The time of clean data."""
    terminal = 1.0
    """The time of pure noise."""
    zero_terminal_snr = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.shift) and self.shift > 0):
            raise UsageError(f"shift is {self.shift}: give a number above 0, 1 for none")

    def finite_terminal(self) -> FlowSchedule:
        """Itself: the solvers take the limit at alpha = 0 for flows."""
        return self

    def is_clean(self, t: Time) -> Any:
        """Whether ``t`` is the clean end: a bool, or a bool array of shape (B,)."""
        return host_time(t) <= 0

    def shifted(self, u: Any) -> Any:
        """Shift times ``u`` in [0, 1] towards noise: shift u / (1 + (shift - 1) u) (Esser 2024, eq. 23)."""
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def alpha(self, t: Time) -> Coefficient:
        """Signal coefficient 1 - t."""
        return 1.0 - _flow_time(t)

    def sigma(self, t: Time) -> Coefficient:
        """Noise coefficient t."""
        return _flow_time(t)

    def log_snr(self, t: Time) -> Coefficient:
        """log(alpha^2 / sigma^2) at ``t``: +inf at 0, -inf at 1."""
        return _log_snr(self.alpha(t), self.sigma(t))

    def ratio(self, t: Time) -> Coefficient:
        """Ratio sigma / alpha at ``t``; inf at 1."""
        return safe_divide(self.sigma(host_time(t)), self.alpha(host_time(t)), otherwise=math.inf)

    def time_of_ratio(self, ratio: Coefficient) -> Coefficient:
        """The time where sigma / alpha is ``ratio`` (inverse of `ratio`)."""
        return ratio / (1.0 + ratio)

    def model_time(self, t: Time) -> Time:
        """What the network is given as its timestep: ``t`` times the number of training timesteps."""
        return t * self.num_train_timesteps

    def forward(self, x0: Array, eps: Array, t: Time) -> Array:
        """Diffuse clean ``x0`` (B, ...) with noise ``eps`` to ``t``: (1 - t) x0 + t eps."""
        return combine(self.alpha(t), x0, self.sigma(t), eps)

    def forward_between(self, x_s: Array, eps: Array, s: Time, t: Time) -> Array:
        """Diffuse ``x_s`` on from ``s`` to the noisier ``t``; see `forward_between`."""
        return forward_between(self, x_s, eps, s, t)


Schedule = DiscreteSchedule | FlowSchedule


def forward_between(schedule: Schedule, x_s: Array, eps: Array, s: Time, t: Time) -> Array:
    """Diffuse ``x_s`` on from ``s`` to the noisier ``t``: q(x_t | x_s) of Kingma 2021 (2107.00630), eq. 1-3.

    Args:
        schedule: the schedule of both times.
        x_s: array (B, ...) at time ``s``.
        eps: fresh standard normal noise of the same shape.
        s: start, scalar or (B,); alpha(s) > 0 unless ``s`` equals ``t``.
        t: end, at least ``s``.
    """
    kept = safe_divide(_plain(schedule.alpha(t)), _plain(schedule.alpha(s)), otherwise=1.0)
    # Clipped: at s = t the difference is 0 up to rounding.
    variance = np.maximum(_plain(schedule.sigma(t)) ** 2 - (kept * _plain(schedule.sigma(s))) ** 2, 0.0)
    return combine(kept, x_s, np.sqrt(variance), eps)


def make_schedule(
    name: str,
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    rescale_zero_terminal_snr: bool = False,
) -> DiscreteSchedule:
    """Build a discrete schedule by its name. The default betas are those of Stable Diffusion.

    Args:
        name: ``scaled_linear`` (linear in sqrt(beta), Rombach 2021), ``linear`` (Ho 2020, 2006.11239, section
            4) or ``cosine`` (Nichol 2021, 2102.09672, eq. 17, betas capped at 0.999; takes no betas).
        num_train_timesteps: T, at least 2.
        beta_start: first beta, in (0, 1).
        beta_end: last beta, in (0, 1).
        rescale_zero_terminal_snr: make alpha exactly 0 at T - 1 (Lin 2023, 2305.08891, Algorithm 1).

    Raises:
        UsageError: unknown name, or betas that make no schedule.
    """
    if num_train_timesteps < 2:
        raise UsageError(f"num_train_timesteps is {num_train_timesteps}: give 2 or more")
    if name != "cosine" and not 0 < beta_start <= beta_end < 1:
        raise UsageError(
            f"betas {beta_start} to {beta_end} make no schedule: give 0 < beta_start <= beta_end < 1"
        )
    if name == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
    elif name == "linear":
        betas = np.linspace(beta_start, beta_end, num_train_timesteps)
    elif name == "cosine":
        u = np.linspace(0.0, 1.0, num_train_timesteps + 1)
        f = np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1.0 - f[1:] / f[:-1], 0.999)
    else:
        near = difflib.get_close_matches(name, BETA_SCHEDULES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(BETA_SCHEDULES)}"
        raise UsageError(f"schedule {name!r} is not known: {hint}")
    abar = np.cumprod(1.0 - betas)
    if rescale_zero_terminal_snr:
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return DiscreteSchedule(np.asarray(abar, dtype=np.float64))


def _flow_time(t: Time) -> Time:
    """A flow time as alpha and sigma use it: tensors stay (differentiable), the rest comes to the host."""
    return t if hasattr(t, "detach") else host_time(t)


def _plain(coefficient: Coefficient) -> Coefficient:
    """A coefficient on the host, for formulas that need numpy functions."""
    return host_time(coefficient)


def _log_snr(alpha: Coefficient, sigma: Coefficient) -> Coefficient:
    if hasattr(alpha, "detach"):
        xp = namespace(alpha)
        return 2.0 * (xp.log(alpha) - xp.log(sigma))
    if type(alpha) is float and alpha > 0 and sigma > 0:
        return 2.0 * (math.log(alpha) - math.log(sigma))
    with np.errstate(divide="ignore"):
        return host_time(2.0 * (np.log(alpha) - np.log(sigma)))
