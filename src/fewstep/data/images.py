"""Opening image files that come from outside: anything may be wrong with them, and nothing may be trusted.

Only still-image formats are tried; the number of pixels is checked in the header, before anything is decoded.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.errors import DataError

MAX_PIXELS: Final = 50_000_000
MAX_BYTES: Final = 256 * 2**20
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")

# Modes with one well-known meaning in 8-bit sRGB. "F", "I" and "LAB" have none: their range is the file's.
_PLAIN: Final = frozenset({"1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBX"})
_ALPHA: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_DEEP: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

# Pillow only warns about sizes that are refused here. Appended, so that it never overrides an application's
# own filter, and not a catch_warnings block, which is not safe in a loader thread.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)

Source = str | os.PathLike[str] | bytes


class TooManyPixels(DataError):
    """More pixels than are decoded, by what the header says."""


def open_image(
    source: Source,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> NDArray[np.uint8]:
    """Open an image, upright by its EXIF orientation, as 8-bit RGB.

    Transparent images are laid over `background`; 16-bit grey is brought to 8 bits; of an animation the first
    frame is taken.

    Args:
        source: file name, or the bytes of the file.
        name: what to call the image in errors; default the file name.
        max_pixels: most pixels (width times height) that are decoded.
        background: what shows behind transparent pixels, 0 to 255.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: not there, empty, not an image, cut off, of a mode without a meaning here, or too large.
    """
    pixels = open_pixels(source, name=name, max_pixels=max_pixels)
    return flattened(pixels, background) if pixels.shape[2] == 4 else pixels


def flattened(
    pixels: NDArray[np.uint8], background: tuple[int, int, int] = (255, 255, 255)
) -> NDArray[np.uint8]:
    """Lay pixels (H, W, 4) over a colour: (H, W, 3)."""
    over = Image.fromarray(pixels, "RGBA")
    under = Image.new("RGBA", over.size, (*background, 255))
    return np.asarray(Image.alpha_composite(under, over).convert("RGB"))


def open_pixels(
    source: Source,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> NDArray[np.uint8]:
    """Open an image as `open_image`, with its transparency.

    Args:
        source: file name, or the bytes of the file.
        name: what to call the image in errors; default the file name.
        max_pixels: most pixels that are decoded.
        formats: Pillow's names of the formats that are tried, of `FORMATS`.

    Returns:
        uint8 (H, W, 4) where the file has transparency, else (H, W, 3).

    Raises:
        DataError: as `open_image`.
    """
    image, what = open_header(source, name=name, max_pixels=max_pixels, formats=formats)
    if image.mode not in _PLAIN | _ALPHA | _DEEP:
        raise DataError(f"{what}: colour mode {image.mode} has no meaning here; save it as 8-bit RGB")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in _DEEP:
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        clear = image.mode in _ALPHA or "transparency" in image.info
        return np.asarray(image.convert("RGBA" if clear else "RGB"))
    except Exception as error:  # cut-off data, broken streams, metadata bombs
        raise _refused(what, error) from error


def open_mask(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Open a mask: an image as grey values, where white (255) is what is painted anew.

    A transparent image is laid over black, so that transparent parts are kept.

    Args:
        source: file name, or the bytes of the file.
        name: what to call the mask in errors; default the file name.
        max_pixels: most pixels that are decoded.

    Returns:
        uint8 (H, W).

    Raises:
        DataError: as `open_image`.
    """
    grey = Image.fromarray(open_image(source, name=name, max_pixels=max_pixels, background=(0, 0, 0)))
    return np.asarray(grey.convert("L"))


def image_size(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read width and height, as displayed, from the header alone.

    Raises:
        DataError: as `open_image`, but for damage behind the header.
    """
    image, what = open_header(source, name=name, max_pixels=max_pixels)
    with image:
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception as error:
            raise _refused(what, error) from error
        return (image.height, image.width) if turned else (image.width, image.height)


def open_header(
    source: Source,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
) -> tuple[Image.Image, str]:
    """Open an image for its header and metadata alone, with every check that comes before decoding.

    Returns:
        The Pillow image, nothing of it decoded, and what to call it in errors.

    Raises:
        DataError: not there, empty, not an image of ``formats``.
        TooManyPixels: a DataError as well.
    """
    if isinstance(source, bytes):
        data, what = source, name or "image"
    else:
        path = Path(source)
        what = name or str(path)
        try:
            # A pipe or a device would block or never end; a folder cannot be read.
            if path.exists() and not path.is_file():
                raise DataError(f"{what}: not a file; give an image file")
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"{what}: larger than {MAX_BYTES // 2**20} MB; give a smaller file")
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{what}: no such file; check the name") from None
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{what}: cannot be read ({reason}); check the file") from error
    if not data:
        raise DataError(f"{what}: empty file; give an image")
    try:
        image = Image.open(_Counted(data), formats=tuple(formats))
    except UnidentifiedImageError:
        known = ", ".join(formats)
        raise DataError(f"{what}: not an image of a known kind; give one of {known}") from None
    except Image.DecompressionBombError:
        raise TooManyPixels(
            f"{what}: too many pixels; at most {max_pixels:,} are decoded, scale it down"
        ) from None
    except Exception as error:  # hostile files make decoders raise almost anything
        raise _refused(what, error) from error
    if image.width * image.height > max_pixels:
        raise TooManyPixels(
            f"{what}: too many pixels, {image.width}x{image.height}; at most {max_pixels:,} are decoded, "
            f"scale it down"
        )
    return image, what


class _Counted(io.BytesIO):
    """A file that ends a parser which reads it in crumbs.

    Pillow walks the chunks of a PNG and the bytes between a JPEG's markers in Python: a few megabytes of
    empty ones would keep it busy for a minute.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        # Parts of 8 KiB are usual. A GIF is made of 255 bytes each, which its reader skips one by one.
        self._left = 20_000 + len(data) // (64 if data.startswith(b"GIF") else 512)

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many small parts")
        return super().read(size)


def _refused(what: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{what}: damaged or cut off ({reason}); save the image again")
