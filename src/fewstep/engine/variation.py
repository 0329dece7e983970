"""Near relatives of a drawing: noise between that of two seeds, and noise of a seed at another size.

What AUTOMATIC1111's web UI calls variation seed and seed resize, with our noise (`fewstep.diffusion.noise`),
so its pictures are not reproduced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.diffusion import noise
from fewstep.diffusion.noise import NoiseArray
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.request import GenerateRequest

PARALLEL = 0.9995
"""Mean cosine above which two noises count as parallel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """How the first noise differs from that of the request's seed."""

    seed: int
    """The other seed; image i goes towards the noise of ``seed`` + i."""
    strength: float
    """0 is the request's seed, 1 the other one."""
    resize_from: tuple[int, int] | None = None
    """(width, height) in pixels whose noise is laid into the middle of the picture's."""

    def record(self) -> dict[str, Any]:
        """For records, JSON-ready."""
        size = {} if self.resize_from is None else {"resize_from": list(self.resize_from)}
        return {"seed": self.seed, "strength": self.strength, **size}


def resolve(
    seed: int, other: int | None, strength: float | None, resize_from: tuple[int, int] | None, downscale: int
) -> Variation | None:
    """The variation that was asked for, or None.

    Args:
        seed: of the request.
        other: variation seed; None is ``seed`` + 1, so that nothing is left to chance.
        strength: from 0 to 1; None is none.
        resize_from: (width, height) in pixels, multiples of ``downscale``.
        downscale: pixels per latent cell.

    Raises:
        UsageError: a value out of range, or a variation seed without strength.
    """
    if other is not None and strength is None:
        raise UsageError(f"variation seed is {other}: give --variation-strength too, above 0 to 1")
    share = 0.0 if strength is None else float(strength)
    if not 0.0 <= share <= 1.0:  # also refuses NaN
        raise UsageError(f"variation strength is {share}: give --variation-strength a number from 0 to 1")
    if other is not None and not 0 <= other < 2**63:
        raise UsageError(f"variation seed is {other}: give --variation-seed 0 or more, below 2**63")
    if resize_from is not None and any(side < downscale or side % downscale for side in resize_from):
        size = "x".join(map(str, resize_from))
        raise UsageError(f"seed resize from {size}: give --seed-resize in multiples of {downscale} pixels")
    if share == 0.0 and resize_from is None:
        return None
    return Variation(seed=seed + 1 if other is None else other, strength=share, resize_from=resize_from)


def slerp(low: NoiseArray, high: NoiseArray, weight: float) -> NoiseArray:
    """Go along the great circle from one noise to another (Shoemake 1985, "Animating rotation").

    As in AUTOMATIC1111's ``rng.slerp``: the angle is taken in every column of its own, over the rows, and
    where the columns are parallel (mean cosine above 0.9995) it goes along the straight line, with the
    weights exchanged, as there. That can only be noticed where two noises are all but the same.

    Args:
        low: (C, h, w).
        high: as ``low``.
        weight: 0 is ``low``, 1 is ``high``.

    Returns:
        float32 of that shape, computed in float64.
    """
    a, b = low.astype(np.float64), high.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / lengths
    if cosine.mean() > PARALLEL:
        return (a * weight + b * (1.0 - weight)).astype(np.float32)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    sine = np.sin(angle)
    # Columns of one row have no angle between them but 0 or half a turn: the straight line is the limit.
    flat = sine < 1e-6
    safe = np.where(flat, 1.0, sine)
    first = np.where(flat, 1.0 - weight, np.sin((1.0 - weight) * angle) / safe)[:, None]
    second = np.where(flat, weight, np.sin(weight * angle) / safe)[:, None]
    return (first * a + second * b).astype(np.float32)


def seeds(request: GenerateRequest) -> list[int]:
    """The seed of every image: seed + i, or the same for all where the variation seed counts up."""
    if _varied(request) is not None:
        return [request.seed] * request.n
    return [request.seed + index for index in range(request.n)]


def first_noise(request: GenerateRequest, first: int, shape: tuple[int, int, int], down: int) -> Any:
    """The noise that image ``first`` of a request starts from, (C, h, w).

    Args:
        request: seeds and variation.
        first: the image, from 0.
        shape: (C, h, w) of the latents.
        down: pixels per latent cell.
    """
    varied = request.variation
    if varied is None:
        return noise.image_noise(request.seed + first, shape)
    own = seeds(request)[first]
    small = shape
    if varied.resize_from is not None:
        small = (shape[0], varied.resize_from[1] // down, varied.resize_from[0] // down)
    made = noise.image_noise(own, small)
    if varied.strength > 0.0:
        made = slerp(made, noise.image_noise(varied.seed + first, small), varied.strength)
    return made if small == shape else _centred(noise.image_noise(own, shape), made)


def batch_noise(
    request: GenerateRequest, first: int, count: int, shape: tuple[int, int, int], down: int
) -> NoiseArray:
    """`first_noise` of ``count`` images from ``first`` on, (count, C, h, w)."""
    return np.stack([first_noise(request, first + index, shape, down) for index in range(count)])


def step_noise(
    request: GenerateRequest, first: int, count: int, shape: tuple[int, int, int]
) -> Callable[[int], NoiseArray]:
    """What a stochastic solver adds: step index -> (count, C, h, w), of each image's own seed."""
    own = seeds(request)[first : first + count]

    def added(index: int) -> NoiseArray:
        return np.stack([noise.image_noise(seed, shape, stream=1 + index) for seed in own])

    return added


def _varied(request: GenerateRequest) -> Variation | None:
    variation = request.variation
    return variation if variation is not None and variation.strength > 0.0 else None


def _centred(large: NoiseArray, small: NoiseArray) -> NoiseArray:
    """``small`` laid into the middle of ``large``, cut where it is larger."""
    made = large.copy()
    spans = []
    for axis in (1, 2):
        room = (large.shape[axis] - small.shape[axis]) // 2
        # A1111 cuts as much on either side, so that of an odd difference one row is left.
        size = small.shape[axis] if room >= 0 else small.shape[axis] + 2 * room
        spans.append((slice(max(room, 0), max(room, 0) + size), slice(max(-room, 0), max(-room, 0) + size)))
    (to_y, from_y), (to_x, from_x) = spans
    made[:, to_y, to_x] = small[:, from_y, from_x]
    return made
