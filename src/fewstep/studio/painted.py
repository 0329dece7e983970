"""What the picture editor sends: a picture and what was painted over it, and how that looks."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.data import images
from fewstep.engine import masks, outpaint
from fewstep.errors import DataError

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_PIXELS: Final = 1 << 24
"""As many as a server takes by default; it has the last word."""
MAX_BYTES: Final = 64 << 20
PAINT: Final = ("#7c3aed", 0.6)
"""Colour and opacity of the brush: what is below it stays visible."""
_TINT: Final = (124, 58, 237)
_SHOWN: Final = 512
"""Pixels of the longer side of a preview."""

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Painted:
    """A picture, and what was painted on it."""

    data: bytes
    """A file, not decoded."""
    mask: Mask | None
    """(H, W), 255 where there is paint; None where there is none at all."""

    def digest(self) -> str:
        """Of the file. A picture that was sent here stays that file until it is painted on or cut."""
        return digest(self.data)

    def fields(self) -> dict[str, str]:
        """``image`` and ``mask`` of an order, in base64."""
        found = {"image": base64.b64encode(self.data).decode()}
        if self.mask is not None:
            buffer = io.BytesIO()
            Image.fromarray(self.mask).save(buffer, "PNG")
            found["mask"] = base64.b64encode(buffer.getvalue()).decode()
        return found

    def pixels(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3); raises DataError as `fewstep.data.images.open_image`."""
        return images.open_image(self.data, name="image", max_pixels=MAX_PIXELS)


@dataclass(frozen=True, slots=True)
class Unread:
    """What an editor holds, where it cannot be read."""

    why: str


def read(payload: Any) -> Painted | None:
    """What an editor holds, None without a picture. Only what was painted is decoded, within limits.

    Args:
        payload: has ``background`` and ``layers``: bytes, or with a ``path``.

    Raises:
        DataError: too many bytes or pixels, or a layer that is no picture.
    """
    if payload is None or (data := _data(payload.background)) is None:
        return None
    mask: Mask | None = None
    for layer in payload.layers or ():
        if (part := _data(layer)) is not None:
            paint = _paint(part)
            mask = paint if mask is None else _both(mask, paint)
    return Painted(data, mask if mask is not None and mask.any() else None)


def digest(data: bytes) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def suffix(data: bytes) -> str:
    """Of the name of a picture's file, by its content."""
    begun = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
    return next((end for begin, end in begun.items() if data.startswith(begin)), ".png")


def _both(mask: Mask, other: Mask) -> Mask:
    if mask.shape != other.shape:
        raise DataError("paint: layers of two sizes; clear the paint and paint again")
    return np.maximum(mask, other)


def _paint(data: bytes) -> Mask:
    pixels = images.open_pixels(data, name="paint", max_pixels=MAX_PIXELS, formats=FORMATS)
    if pixels.shape[2] == 3:
        return np.full(pixels.shape[:2], 255, dtype=np.uint8)
    # Strokes that cross are denser; where one alone is, all of the picture is redrawn.
    alpha = pixels[..., 3].astype(np.float32) / PAINT[1]
    return np.asarray(np.clip(alpha + 0.5, 0, 255), dtype=np.uint8)


def _data(part: Any) -> bytes | None:
    """The file of a part of the editor: bytes, or where Gradio has checked that it may be read."""
    if part is None:
        return None
    if not isinstance(part, bytes | bytearray | memoryview):
        path = Path(part.path)
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"image: larger than {MAX_BYTES >> 20} MB; give a smaller file")
        part = path.read_bytes()
    if len(part) > MAX_BYTES:
        raise DataError(f"image: larger than {MAX_BYTES >> 20} MB; give a smaller file")
    return bytes(part)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What an order would redraw."""

    picture: Image.Image
    """Small, with a tint on what is redrawn."""
    size: tuple[int, int]
    """Width and height of the picture, with what it is extended by."""
    before: tuple[int, int]
    """Without that."""
    share: float
    """Of the pixels that are redrawn, 0 to 1."""
    mask: Mask | None
    """(H, W), what is redrawn; None is all of it."""


def shown(
    painted: Painted, *, blur: int, inverted: bool, extended: outpaint.Outpaint | None, step: int
) -> Shown:
    """How an order is understood by the engine.

    Args:
        painted: picture and paint.
        blur: of the paint's edge, in pixels.
        inverted: what is not painted is redrawn.
        extended: by how many pixels.
        step: of the model's sizes.

    Raises:
        DataError: a picture that cannot be read, or too large.
    """
    pixels = painted.pixels()
    before = (pixels.shape[1], pixels.shape[0])
    mask = painted.mask
    if mask is not None and mask.shape != pixels.shape[:2]:
        raise DataError("paint: of another size than the picture; clear the paint and paint again")
    if mask is not None and inverted:
        mask = np.asarray(255 - mask, dtype=np.uint8)
    if extended is not None:
        canvas = outpaint.extend(pixels, mask, extended, step)
        pixels, mask = canvas.image, canvas.mask
    elif mask is not None and blur:
        mask = masks.blurred(mask, blur)
    share = 1.0 if mask is None else float(np.count_nonzero(mask)) / mask.size
    return Shown(_tinted(pixels, mask), (pixels.shape[1], pixels.shape[0]), before, share, mask)


def _tinted(pixels: npt.NDArray[np.uint8], mask: Mask | None) -> Image.Image:
    picture = Image.fromarray(pixels)
    small = Image.new("L", picture.size, 0) if mask is None else Image.fromarray(mask)
    picture.thumbnail((_SHOWN, _SHOWN))
    small = small.resize(picture.size, Image.Resampling.BILINEAR).point(lambda value: value * 0.55)
    return Image.composite(Image.new("RGB", picture.size, _TINT), picture, small)
