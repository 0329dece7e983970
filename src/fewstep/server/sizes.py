"""From a size that is asked for to one that the model draws well, and an upscaler for the way between."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.errors import UsageError
from fewstep.server.orders import Upscale

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo

_DIRECT = (0.5, 1.5)
"""Pixels, as a share of the native ones, that are drawn as asked."""
_SHAPE = 8.0
"""How much more a wrong shape counts than a wrong number of pixels: what is over is cut off."""
_LONG = 8
"""Longer side over shorter side, at most."""


@dataclass(frozen=True, slots=True)
class SizePlan:
    """What to draw, and what to make of it."""

    width: int
    """Pixels to draw."""
    height: int
    upscale: Upscale | None
    """To the size that was asked for; None where it is drawn."""


def parse(text: str) -> tuple[int, int]:
    """(width, height) of ``1024x768``.

    Raises:
        UsageError: not of that form, or longer than 8 to 1.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    if match is None:
        raise UsageError(f"size is {text[:40]!r}: give WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    width, height = int(match[1]), int(match[2])
    _check_shape(width, height)
    return width, height


def plan(info: ModelInfo, width: int, height: int, *, upscaler: str = "auto") -> SizePlan:
    """How a size is reached: drawn as it is, or from about the native pixels in the same shape.

    Args:
        info: the model.
        width: pixels that are asked for.
        height: as width.
        upscaler: a name of `fewstep.engine.upscaling.catalogue`, or ``auto``.

    Raises:
        UsageError: a shape longer than 8 to 1.
    """
    _check_shape(width, height)
    if _drawn(info, width, height):
        return SizePlan(width, height, None)
    drawn = _near(info, width, height)
    return SizePlan(*drawn, Upscale(name=upscaler, width=width, height=height))


def _check_shape(width: int, height: int) -> None:
    if max(width, height) > _LONG * min(width, height):
        raise UsageError(f"size is {width}x{height}: give one that is at most {_LONG} times as long as wide")


def _drawn(info: ModelInfo, width: int, height: int) -> bool:
    if (width, height) == info.native_size or (width, height) in info.contract.native_sizes:
        return True
    step = info.size_multiple
    if width % step or height % step or not 4 * step <= min(width, height):
        return False
    share = width * height / (info.native_size[0] * info.native_size[1])
    return max(width, height) <= info.max_size and _DIRECT[0] <= share <= _DIRECT[1]


def _near(info: ModelInfo, width: int, height: int) -> tuple[int, int]:
    """The size of the same shape, as nearly as can be drawn, with about the native number of pixels."""
    step, pixels = info.size_multiple, info.native_size[0] * info.native_size[1]
    sides = range(4 * step, info.max_size // step * step + 1, step)

    def cost(size: tuple[int, int]) -> float:
        shape = abs(math.log(size[0] * height / (size[1] * width)))
        return _SHAPE * shape + abs(math.log(size[0] * size[1] / pixels))

    found = [info.native_size, *info.contract.native_sizes]
    for wide in sides:
        tall = wide * height / width / step
        near = (math.floor(tall) * step, math.ceil(tall) * step)
        found.extend((wide, rounded) for rounded in near if sides[0] <= rounded <= sides[-1])
    return min(found, key=lambda size: (cost(size), size))
