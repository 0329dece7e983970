"""Beyond the edges of a picture: a larger canvas, and the mask of what is new on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.engine import masks
from fewstep.errors import UsageError

Image = npt.NDArray[np.uint8]

OVERLAP = 16
"""Pixels of the picture along a new edge that blend into what is drawn."""
_MOST = 4096
"""Pixels along one edge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outpaint:
    """Pixels that a picture is extended by."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def record(self) -> dict[str, Any]:
        """For records, JSON-ready."""
        return {"left": self.left, "right": self.right, "top": self.top, "bottom": self.bottom}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Canvas:
    """A picture on its larger canvas."""

    image: Image
    """(H, W, 3), where it is new the colours of the edges smeared out."""
    mask: Image
    """(H, W), 255 where it is new, falling to 0 over `OVERLAP` pixels of the picture. These are only blended:
    the latents that they belong to are kept, so that what is drawn goes on from them."""
    done: Outpaint
    """By how much it was extended."""
    warnings: tuple[str, ...] = ()


def extend(image: Image, mask: Image | None, wanted: Outpaint, step: int) -> Canvas:
    """Lay a picture onto a larger canvas.

    A mask ends in the middle of latent cells where the sides of the canvas are no multiples of ``step``, so
    the canvas grows to the next multiple: on the right and the bottom, or on the left and the top where it
    was asked for those alone.

    Args:
        image: (H, W, 3).
        mask: (H, W) of further parts to redraw, or None.
        wanted: pixels.
        step: the sizes that can be drawn are multiples of this.

    Raises:
        UsageError: nothing or a negative number of pixels, or too many.
    """
    sides = {"left": wanted.left, "right": wanted.right, "top": wanted.top, "bottom": wanted.bottom}
    for name, value in sides.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= _MOST:
            raise UsageError(f"outpaint {name} is {value}: give --outpaint whole pixels from 0 to {_MOST}")
    if not any(sides.values()):
        raise UsageError("outpaint is 0 on every side: give --outpaint left,right,top,bottom in pixels")
    tall, wide = image.shape[:2]
    left, right = _rounded(wanted.left, wanted.right, wide, step)
    top, bottom = _rounded(wanted.top, wanted.bottom, tall, step)
    done = Outpaint(left=left, right=right, top=top, bottom=bottom)
    grown = ((top, bottom), (left, right))
    canvas = np.pad(image, (*grown, (0, 0)))
    canvas = masks.filled(canvas, np.pad(np.zeros((tall, wide), dtype=np.uint8), grown, constant_values=255))
    new = np.pad(np.zeros((tall, wide), dtype=np.uint8) if mask is None else mask, grown, constant_values=255)
    new = np.maximum(new, _ramp(tall, wide, done))
    warnings: tuple[str, ...] = ()
    if done != wanted:
        text = ",".join(map(str, done.record().values()))
        warnings = (f"outpaint rounded to {text}: the sides of the canvas are multiples of {step} pixels",)
    return Canvas(image=canvas, mask=new, done=done, warnings=warnings)


def _rounded(before: int, after: int, size: int, step: int) -> tuple[int, int]:
    missing = -(before + size + after) % step
    return (before + missing, after) if before and not after else (before, after + missing)


def _ramp(tall: int, wide: int, done: Outpaint) -> Image:
    """(H, W) of the canvas: 255 in what is new, falling to 0 inside the picture along each new edge."""
    rows = _along(done.top, tall, done.bottom)[:, None]
    columns = _along(done.left, wide, done.right)[None]
    return np.asarray(np.maximum(rows, columns), dtype=np.uint8)


def _along(before: int, size: int, after: int) -> npt.NDArray[np.int64]:
    level = np.zeros(before + size + after, dtype=np.int64)
    level[:before] = 255
    level[before + size :] = 255
    # Never more than a quarter: of a narrow picture something is to stay.
    overlap = min(OVERLAP, size // 4)
    falling = 255 - (np.arange(1, overlap + 1) * 255) // (overlap + 1)
    if before:
        level[before : before + overlap] = falling
    if after:
        level[before + size - overlap : before + size] = np.maximum(
            level[before + size - overlap : before + size], falling[::-1]
        )
    return level
