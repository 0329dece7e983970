"""Changes to drawings that the evaluator must not be thrown off by: place, shape, colour, and drawing errors.

Generated pictures are a little off in all of these, and real drawings are not; without them an evaluator
would judge whether a picture is clean, not what it shows. Everything is numpy, and each change is a pure
function of its amounts; `disturb` draws the amounts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError

Floats = NDArray[np.float32]

CELLS: Final = 16
"""Blocks a side in `blotch`: the latent cells of a picture at downsampling 8."""

_CONTROL: Final = 4
_ERASED_AREA: Final = (0.02, 0.2)
_ERASED_ASPECT: Final = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Largest amounts.

    Every picture is placed and bent anew. Of those not left clean, half get each of the other changes, by a
    uniform share of the largest amount.

    Attributes:
        clean: share of the pictures that are only placed, not changed, 0 to 1.
        shift: displacement, a fraction of the side.
        scale: change of size, 0.15 for 0.87 to 1.15 times.
        aspect: the same of width over height.
        rotation: degrees.
        warp: standard deviation of the displacement at 4x4 control points, a fraction of the side.
        brightness: of 0 to 1.
        contrast: 0.2 for 0.8 to 1.2 times.
        saturation: 0.2 for 0.8 to 1.2 times.
        hue: degrees; small, because colour tells concepts apart.
        blur: standard deviation in pixels of the result.
        noise: standard deviation, of 0 to 1.
        blocks: standard deviation of the colour error of a block, of 0 to 1.
        flatten: how far a block is drawn to its mean, 0 to 1; together with `blocks`.
        erase: probability that a rectangle is painted over, 0 to 1.
    """

    clean: float = 0.2
    shift: float = 0.05
    scale: float = 0.15
    aspect: float = 0.08
    rotation: float = 8.0
    warp: float = 0.015
    brightness: float = 0.1
    contrast: float = 0.15
    saturation: float = 0.25
    hue: float = 6.0
    blur: float = 1.2
    noise: float = 0.06
    blocks: float = 0.08
    flatten: float = 0.5
    erase: float = 0.15

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            limit = 1.0 if field.name in {"clean", "erase", "contrast", "saturation", "flatten"} else np.inf
            if not 0 <= value <= limit:
                raise UsageError(f"{field.name} {value}: give 0 to {limit:g}")


def grid(
    side: int, rng: np.random.Generator, augmentation: Augmentation | None, *, mirrored: bool = False
) -> Floats:
    """Where in the drawing each pixel of the result comes from, in coordinates that run from -1 to 1.

    An affine map and a smooth displacement; the centre of the drawing stays near the centre.

    Args:
        side: width and height of the result.
        rng: draws the map; unused without ``augmentation``.
        augmentation: the amounts; None for the drawing as it is.
        mirrored: take the mirror image, before all else.

    Returns:
        (side, side, 2), x then y.
    """
    axis = _axis(side)
    points = np.stack(np.broadcast_arrays(axis[None, :], axis[:, None]), -1)
    if augmentation is not None:
        draws = rng.uniform(-1, 1, 5)
        turn = np.deg2rad(augmentation.rotation * draws[0])
        size = (1 + augmentation.scale) ** draws[1]
        stretch = (1 + augmentation.aspect) ** (0.5 * draws[2])
        rotated = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        matrix = (rotated / (size * np.array([[stretch], [1 / stretch]]))).astype(np.float32)
        moved = (2 * augmentation.shift * draws[3:5]).astype(np.float32)
        bent = rng.standard_normal((_CONTROL, _CONTROL, 2), dtype=np.float32) * np.float32(
            2 * augmentation.warp
        )
        weights = _interpolation(side)
        rows = weights @ bent.reshape(_CONTROL, -1)
        smooth = weights @ rows.reshape(side, _CONTROL, 2)
        points = points @ matrix.T + (moved + smooth)
    if mirrored:
        points[..., 0] *= -1
    return points.astype(np.float32)


def warp(rgba: NDArray[np.uint8], points: Floats) -> Floats:
    """Take a drawing's pixels at given places, bilinearly; outside there is nothing.

    With the plain `grid` of half the drawing's side this is the mean over blocks of 2x2. Straight alpha is
    multiplied in before averaging, so that the colour of transparent pixels does not bleed.

    Args:
        rgba: uint8 (H, H, 4), straight alpha, transparent at its edge.
        points: (S, S, 2), from -1 to 1, x then y.

    Returns:
        float32 (S, S, 4) in [0, 1], colour multiplied by alpha.
    """
    size = len(rgba)
    # One word a pixel: picking words is several times faster than picking rows of four bytes.
    words = np.ascontiguousarray(rgba).view(np.uint32)[..., 0]
    places = np.clip((points + 1) * (size / 2) - 0.5, 0, size - 1)
    corner = np.minimum(places.astype(np.int64), size - 2)
    part = places - corner
    first = corner[..., 1] * size + corner[..., 0]
    total = np.zeros((*points.shape[:2], 4), np.float32)
    for down in (0, 1):
        for right in (0, 1):
            share = (part[..., 1] if down else 1 - part[..., 1]) * (
                part[..., 0] if right else 1 - part[..., 0]
            )
            taken = words.ravel()[first + (down * size + right)][..., None].view(np.uint8).astype(np.float32)
            weight = (taken[..., 3] * share)[..., None]
            taken[..., 3] = 255
            total += taken * weight
    total *= np.float32(1 / 255**2)
    return total


def lay_over(premultiplied: Floats, colour: Floats) -> Floats:
    """A drawing (S, S, 4), premultiplied, over one colour (3,) in [0, 1]: (S, S, 3) in [0, 1]."""
    return premultiplied[..., :3] + colour * (1 - premultiplied[..., 3:])


def disturb(image: Floats, rng: np.random.Generator, augmentation: Augmentation) -> Floats:
    """Change colours and add drawing errors, each to half of the pictures.

    Args:
        image: (S, S, 3) in [0, 1].
        rng: draws which changes are made, and by how much.
        augmentation: the largest amounts.

    Returns:
        (S, S, 3) in [0, 1], a new array or the same.
    """
    most = augmentation
    if rng.random() < most.clean:
        return image
    gates, amounts = rng.random(4) < 0.5, rng.random(4)
    if gates[0]:
        signs = rng.uniform(-1, 1, 4)
        image = recolour(
            image,
            brightness=most.brightness * signs[0],
            contrast=1 + most.contrast * signs[1],
            saturation=1 + most.saturation * signs[2],
            hue=most.hue * signs[3],
        )
    if gates[1]:
        cells = rng.standard_normal((CELLS, CELLS, 3), dtype=np.float32)
        image = blotch(image, cells * np.float32(most.blocks * amounts[1]), float(most.flatten * amounts[2]))
    if gates[2]:
        image = blur(image, most.blur * amounts[0])
    if gates[3]:
        image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(
            most.noise * amounts[3]
        )
    if rng.random() < most.erase:
        image = erase(image, *rng.random(4), colour=rng.random(3).astype(np.float32))
    return np.clip(image, 0, 1)


def recolour(image: Floats, *, brightness: float, contrast: float, saturation: float, hue: float) -> Floats:
    """Turn and stretch colours about the grey axis, stretch all about middle grey, then add brightness.

    One matrix for all: ``hue`` (degrees) is a rotation about the direction (1, 1, 1), so grey stays grey.
    """
    turn = np.deg2rad(hue)
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotation = grey + np.cos(turn) * (np.eye(3) - grey) + np.sin(turn) * cross
    matrix = contrast * (grey + saturation * (rotation - grey))
    offset = 0.5 * (1 - contrast) + brightness
    changed: Floats = image @ matrix.T.astype(np.float32) + np.float32(offset)
    return changed


def blur(image: Floats, sigma: float) -> Floats:
    """Gaussian blur of standard deviation ``sigma`` pixels; the edge pixels go on outside."""
    radius = int(np.ceil(2.5 * sigma))
    if radius == 0:
        return image
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis]
        margin = [(0, 0)] * 3
        margin[axis] = (radius, radius)
        padded = np.pad(image, margin, mode="edge")
        slices = (padded.take(np.arange(i, i + length), axis=axis) for i in range(2 * radius + 1))
        image = np.sum([weight * part for weight, part in zip(kernel, slices, strict=True)], axis=0)
    return image


def blotch(image: Floats, errors: Floats, flatten: float) -> Floats:
    """Errors of a latent's cells: each block is drawn towards its mean, and its colour is off.

    Args:
        image: (S, S, 3), S a multiple of ``n``.
        errors: (n, n, 3), added to the blocks.
        flatten: 0 for the picture as it is, 1 for its blocks' means.
    """
    side, cells = len(image), len(errors)
    blocks = image.reshape(cells, side // cells, cells, side // cells, 3)
    means = blocks.mean((1, 3), keepdims=True)
    changed: Floats = blocks + np.float32(flatten) * (means - blocks) + errors[:, None, :, None, :]
    return changed.reshape(side, side, 3)


def erase(image: Floats, area: float, aspect: float, top: float, left: float, *, colour: Floats) -> Floats:
    """Paint a rectangle over (Zhong et al. 2017, arXiv 1708.04896, Algorithm 1).

    Area 0.02 to 0.2 of the picture, height over width 0.3 to 1 / 0.3. Two departures: the rectangle has one
    colour instead of a random one for every pixel (a drawing's errors are patches); and one that does not fit
    is cut to the picture instead of drawn again, so that a picture always takes as many random numbers.

    Args:
        image: (S, S, 3).
        area: 0 to 1, from the smallest to the largest area.
        aspect: 0 to 1, from the flattest to the tallest, uniform in the logarithm.
        top: 0 to 1, of the room there is.
        left: the same.
        colour: (3,).
    """
    side = len(image)
    low, high = _ERASED_AREA
    pixels = (low + (high - low) * area) * side * side
    ratio = np.exp((2 * aspect - 1) * -np.log(_ERASED_ASPECT))
    height = min(side, max(1, round(np.sqrt(pixels * ratio))))
    width = min(side, max(1, round(np.sqrt(pixels / ratio))))
    row, column = int(top * (side - height + 1)), int(left * (side - width + 1))
    painted = image.copy()
    painted[row : row + height, column : column + width] = colour
    return painted


@lru_cache(maxsize=4)
def _axis(side: int) -> Floats:
    axis = ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)
    axis.flags.writeable = False
    return axis


@lru_cache(maxsize=4)
def _interpolation(side: int) -> Floats:
    """(side, 4): weights of the control points for each pixel, smooth between them (cosine)."""
    place = (np.arange(side) + 0.5) / side * (_CONTROL - 1)
    first = np.minimum(place.astype(np.int64), _CONTROL - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * (place - first))
    weights = np.zeros((side, _CONTROL), np.float32)
    weights[np.arange(side), first] = 1 - share
    weights[np.arange(side), first + 1] = share
    weights.flags.writeable = False
    return weights
