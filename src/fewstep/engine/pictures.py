"""Pixels in and out of the engine: fitting a picture and its mask, restoring what was not to change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.engine.backends.base import FloatArray, f32

Image = npt.NDArray[np.uint8]

_HALF = 128
"""Least level of a mask that counts as redrawn where only yes and no are known: 0.5 of 255, rounded up."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fitted:
    """A picture to start from and its mask, in the size that is drawn."""

    image: Image
    """(H, W, 3)."""
    mask: Image | None = None
    """(H, W), 255 where it is redrawn."""
    warnings: tuple[str, ...] = ()


def fit(image: Image, mask: Image | None, width: int, height: int) -> Fitted:
    """Bring a picture and its mask to the size that is drawn.

    Args:
        image: (H, W, 3) of any size.
        mask: (H, W) of the same size, or None.
        width: pixels to draw.
        height: as width.
    """
    if image.shape[:2] == (height, width):
        return Fitted(image=image, mask=mask)
    return Fitted(
        image=resized(image, width, height),
        mask=None if mask is None else resized(mask, width, height),
        warnings=(f"image resized from {image.shape[1]}x{image.shape[0]} to {width}x{height}",),
    )


def weights(mask: Image) -> FloatArray:
    """A mask (H, W) as weights (H, W, 1): 1 where the drawing shows, 0 where the picture stays."""
    return f32(mask.astype(np.float32)[..., None] / np.float32(255.0))


def touched_cells(mask: Image, downscale: int) -> FloatArray:
    """(1, 1, h, w), 1 for latent cells that a redrawn pixel touches."""
    h, w = mask.shape[0] // downscale, mask.shape[1] // downscale
    touched = mask.reshape(h, downscale, w, downscale).max(axis=(1, 3)) > 0
    return f32(touched.astype(np.float32)[None, None])


def mask_channel(mask: Image, downscale: int) -> FloatArray:
    """(1, 1, h, w), 1 where half or more is redrawn at a cell's first pixel: diffusers' nearest neighbour.

    Inpainting models were trained with masks of 0 and 1.
    """
    redrawn = mask[::downscale, ::downscale] >= _HALF
    return f32(redrawn.astype(np.float32)[None, None])


def masked(image: Image, mask: Image) -> FloatArray:
    """Pixels (3, H, W) in [-1, 1] with grey 0 where half or more is redrawn, as diffusers masks them."""
    return f32(to_pixels(image) * (mask < _HALF)[None])


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


def resized(array: Image, width: int, height: int, method: str = "lanczos") -> Image:
    """A picture (H, W, 3) or a mask (H, W) in another size, by ``lanczos`` or ``nearest``."""
    from PIL import Image as PILImage

    if array.shape[:2] == (height, width):
        return array
    # Lanczos averages over the source when it shrinks, so a thin stroke of a mask stays as a faint one.
    kinds = {"lanczos": PILImage.Resampling.LANCZOS, "nearest": PILImage.Resampling.NEAREST}
    return np.asarray(PILImage.fromarray(array).resize((width, height), kinds[method]), dtype=np.uint8)
