"""Classifier-free guidance with rescale and interval: a Denoiser made of two Denoisers, or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewstep.diffusion.arrays import Array, Time, fit, host_time, namespace
from fewstep.diffusion.prediction import Denoiser, Prediction, from_prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import UsageError


def classifier_free(
    denoise: Denoiser,
    uncond: Denoiser | None,
    *,
    scale: Any,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    schedule: Schedule,
    prediction_type: str,
    batched: bool = False,
) -> Denoiser:
    """Guide ``denoise`` away from ``uncond``: u + scale (c - u).

    Ho & Salimans 2022 (2207.12598), eq. 6, with their 1 + w written as ``scale``, as Stable Diffusion does.
    The combination is linear, so it is the same for every prediction type.

    Args:
        denoise: the conditional denoiser. With ``batched``, a denoiser that takes 2B rows, the unconditional
            half first (diffusers' order), and B rows as conditional ones only.
        uncond: the unconditional or negative denoiser; None with ``batched``.
        scale: 1 is no guidance and costs no unconditional evaluation. A float, or an array of shape (B,).
        rescale: phi in [0, 1] of Lin 2023 (2305.08891), eq. 14-16: pull each sample's standard deviation over
            all of its raw model output back to the conditional one's. It works on the output space of
            ``prediction_type``, as diffusers' ``rescale_noise_cfg`` does, so the result depends on that type.
        interval: guide only where low < sigma / alpha <= high (Kynkaanniemi 2024, 2404.07724, with
            their sigma); None is everywhere. Outside it the unconditional half is not evaluated.
        schedule: the schedule of the times.
        prediction_type: the space that ``rescale`` works in.
        batched: evaluate both halves in one call.

    Raises:
        UsageError: scale or rescale is not a number in range.
    """
    if not np.all(np.isfinite(np.asarray(host_time(scale)))):
        raise UsageError(f"guidance scale is {scale}: give a finite number, 1 for no guidance")
    if not 0.0 <= rescale <= 1.0:
        raise UsageError(f"guidance rescale is {rescale}: give a number from 0 to 1")
    if interval is not None and not 0.0 <= interval[0] < interval[1]:
        raise UsageError(f"guidance interval is {interval}: give (low, high) with 0 <= low < high")
    if uncond is None and not batched:
        raise UsageError("guidance needs an unconditional denoiser: give one, or batched=True")
    constant = host_time(scale) if not hasattr(scale, "detach") or scale.ndim == 0 else None
    if isinstance(constant, float) and constant == 1.0:
        return denoise
    per_sample = scale if constant is None else constant

    def both(x_t: Array, t: Time) -> tuple[Prediction, Prediction]:
        if not batched:
            assert uncond is not None
            return uncond(x_t, t), denoise(x_t, t)
        xp = namespace(x_t)
        times = host_time(t)
        pair = denoise(
            xp.concat([x_t, x_t]), times if isinstance(times, float) else np.concatenate([times, times])
        )
        n = x_t.shape[0]
        return Prediction(pair.x0[:n], pair.eps[:n]), Prediction(pair.x0[n:], pair.eps[n:])

    def guided(x_t: Array, t: Time) -> Prediction:
        w = per_sample
        if interval is not None:
            ratio = schedule.ratio(t)
            inside = (interval[0] < ratio) & (ratio <= interval[1])
            if not np.any(inside):
                return denoise(x_t, t)
            if not np.all(inside):
                w = np.where(inside, host_time(per_sample), 1.0)
        u, c = both(x_t, t)
        weight = fit(w, x_t)
        result = Prediction(u.x0 + weight * (c.x0 - u.x0), u.eps + weight * (c.eps - u.eps))
        return _rescaled(result, c, x_t, t, rescale, schedule, prediction_type) if rescale > 0.0 else result

    return guided


def with_picture(
    denoise: Denoiser,
    *,
    scale: float,
    image_scale: float,
    rescale: float = 0.0,
    schedule: Schedule,
    prediction_type: str,
) -> Denoiser:
    """Guide by a text and by a picture: u + image_scale (i - u) + scale (c - i).

    Brooks 2022 (2211.09800, InstructPix2Pix), eq. 3. diffusers leaves guidance out altogether where ``scale``
    is 1; here the formula holds for every scale.

    Args:
        denoise: takes 3B rows: with text and picture (c), with the picture alone (i), with neither (u), in
            diffusers' order.
        scale: of the text; 1 is no guidance by it.
        image_scale: of the picture; as ``scale``.
        rescale: as of `classifier_free`.
        schedule: the schedule of the times.
        prediction_type: the space that ``rescale`` works in.

    Raises:
        UsageError: a scale or rescale is not a number in range.
    """
    for name, value in (("guidance scale", scale), ("image guidance scale", image_scale)):
        if not math.isfinite(value):
            raise UsageError(f"{name} is {value}: give a finite number, 1 for no guidance")
    if not 0.0 <= rescale <= 1.0:
        raise UsageError(f"guidance rescale is {rescale}: give a number from 0 to 1")

    def guided(x_t: Array, t: Time) -> Prediction:
        xp = namespace(x_t)
        times = host_time(t)
        all_three = denoise(
            xp.concat([x_t, x_t, x_t]),
            times if isinstance(times, float) else np.concatenate([times, times, times]),
        )
        n = x_t.shape[0]
        c, i, u = (
            Prediction(all_three.x0[k * n : (k + 1) * n], all_three.eps[k * n : (k + 1) * n])
            for k in range(3)
        )
        result = Prediction(
            u.x0 + scale * (c.x0 - i.x0) + image_scale * (i.x0 - u.x0),
            u.eps + scale * (c.eps - i.eps) + image_scale * (i.eps - u.eps),
        )
        return _rescaled(result, c, x_t, t, rescale, schedule, prediction_type) if rescale > 0.0 else result

    return guided


def composed(
    denoise: Denoiser,
    *,
    weights: Sequence[float],
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    schedule: Schedule,
    prediction_type: str,
) -> Denoiser:
    """Guide by several texts at once: u + scale sum_i w_i (c_i - u).

    Liu et al. 2022 (2206.01714, Composable Diffusion), eq. 11, which AUTOMATIC1111's web UI has as ``AND``:
    the score of p(x) prod_i (p(x|c_i) / p(x))^(scale w_i). A negative weight leads away from its text.

    Args:
        denoise: takes (1 + k) B rows: unconditional, then the rows of each of the k texts.
        weights: w_i, one per text.
        scale: 1 is not for free here: what is mixed are differences from the unconditional estimate.
        rescale: as of `classifier_free`, towards the deviation of the mixture at scale 1.
        interval: as of `classifier_free`; outside of it the scale is 1, and every row is evaluated still.
        schedule: the schedule of the times.
        prediction_type: the space that ``rescale`` works in.

    Raises:
        UsageError: no weights, or a weight, scale, rescale or interval that is not a number in range.
    """
    if not weights or not all(math.isfinite(w) for w in weights):
        raise UsageError(f"weights of joined prompts are {tuple(weights)}: give a finite number for each")
    if not math.isfinite(scale):
        raise UsageError(f"guidance scale is {scale}: give a finite number, 1 for no guidance")
    if not 0.0 <= rescale <= 1.0:
        raise UsageError(f"guidance rescale is {rescale}: give a number from 0 to 1")
    if interval is not None and not 0.0 <= interval[0] < interval[1]:
        raise UsageError(f"guidance interval is {interval}: give (low, high) with 0 <= low < high")
    parts = 1 + len(weights)

    def guided(x_t: Array, t: Time) -> Prediction:
        xp = namespace(x_t)
        times, n = host_time(t), x_t.shape[0]
        every = denoise(
            xp.concat([x_t] * parts), times if isinstance(times, float) else np.concatenate([times] * parts)
        )
        u, *texts = (Prediction(every.x0[k * n : (k + 1) * n], every.eps[k * n : (k + 1) * n])
                     for k in range(parts))  # fmt: skip
        away = Prediction(
            sum(w * (c.x0 - u.x0) for w, c in zip(weights, texts, strict=True)),
            sum(w * (c.eps - u.eps) for w, c in zip(weights, texts, strict=True)),
        )
        mixed = Prediction(u.x0 + away.x0, u.eps + away.eps)
        strength: Array = float(scale)
        if interval is not None:
            ratio = schedule.ratio(t)
            strength = np.where((interval[0] < ratio) & (ratio <= interval[1]), scale, 1.0)
            if np.all(strength == 1.0):
                return mixed
        weight = fit(strength, x_t)
        result = Prediction(u.x0 + weight * away.x0, u.eps + weight * away.eps)
        if rescale == 0.0:
            return result
        return _rescaled(result, mixed, x_t, t, rescale, schedule, prediction_type)

    return guided


def _rescaled(
    result: Prediction,
    c: Prediction,
    x_t: Array,
    t: Time,
    rescale: float,
    schedule: Schedule,
    prediction_type: str,
) -> Prediction:
    """Lin 2023, eq. 14-16; see `classifier_free`."""
    raw = from_prediction(result, t, schedule, prediction_type)
    factor = _std(from_prediction(c, t, schedule, prediction_type)) / _std(raw)
    return to_prediction((rescale * factor + (1.0 - rescale)) * raw, x_t, t, schedule, prediction_type)


def _std(x: Array) -> Array:
    """Standard deviation (of n - 1) of each sample over all of its axes but the first, (B, 1, ...)."""
    n = math.prod(x.shape[1:])
    flat = x.reshape((x.shape[0], n))
    # Written out: numpy's std costs several times as much on an array this small.
    centred = flat - (flat.sum(-1) / n)[:, None]
    std = ((centred * centred).sum(-1) / (n - 1)) ** 0.5
    return std.reshape((x.shape[0],) + (1,) * (x.ndim - 1))
