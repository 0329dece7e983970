"""Pixels in and out of the engine: fitting a picture and its mask, restoring what was not to change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fewstep.engine.backends.base import FloatArray, f32

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """A picture to start from, in the size that is drawn."""

    image: Image
    """(H, W, 3)."""
    alpha: FloatArray | None = None
    """(H, W, 1), 1 where the drawing shows and 0 where the picture stays; None without a mask."""
    cells: FloatArray | None = None
    """(1, 1, h, w), 1 for latent cells that are redrawn: those that a redrawn pixel touches."""
    latents: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    """(1, C, h, w), set by `with_latents`."""
    warnings: tuple[str, ...] = ()

    def with_latents(self, latents: FloatArray) -> Start:
        """The same with the encoded picture."""
        return dataclasses.replace(self, latents=latents)


def fit(image: Image, mask: Image | None, width: int, height: int, downscale: int) -> Start:
    """Bring a picture and its mask to the size that is drawn.

    Args:
        image: (H, W, 3) of any size.
        mask: (H, W) of the same size, or None.
        width: pixels to draw, a multiple of ``downscale``.
        height: as width.
        downscale: pixels per latent cell along one side.
    """
    warnings: tuple[str, ...] = ()
    if image.shape[:2] != (height, width):
        warnings = (f"image resized from {image.shape[1]}x{image.shape[0]} to {width}x{height}",)
        image = _resized(image, width, height)
        mask = None if mask is None else _resized(mask, width, height)
    if mask is None:
        return Start(image=image, warnings=warnings)
    alpha = mask.astype(np.float32)[..., None] / np.float32(255.0)
    touched = mask.reshape(height // downscale, downscale, width // downscale, downscale).max(axis=(1, 3)) > 0
    cells = touched.astype(np.float32)[None, None]
    return Start(image=image, alpha=alpha, cells=cells, warnings=warnings)


def to_pixels(image: Image) -> FloatArray:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]."""
    return f32(image.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1.0))


def to_image(pixels: FloatArray) -> Image:
    """(3, H, W) float32 in about [-1, 1] -> (H, W, 3) uint8, clipped and rounded to the nearest level."""
    levels = np.clip(pixels * np.float32(127.5) + np.float32(127.5), 0.0, 255.0)
    return np.ascontiguousarray((levels + np.float32(0.5)).astype(np.uint8).transpose(1, 2, 0))


def paste(drawn: Image, image: Image, alpha: FloatArray) -> Image:
    """The drawing where alpha is 1, the untouched picture where it is 0, bit for bit; a blend between."""
    mixed = alpha * drawn.astype(np.float32) + (np.float32(1.0) - alpha) * image.astype(np.float32)
    return (mixed + np.float32(0.5)).astype(np.uint8)


def _resized(array: Image, width: int, height: int) -> Image:
    from PIL import Image as PILImage

    # Lanczos averages over the source when it shrinks, so a thin stroke of a mask stays as a faint one.
    resized = PILImage.fromarray(array).resize((width, height), PILImage.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.uint8)
