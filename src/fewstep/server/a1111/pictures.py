"""A client's pictures and masks in the shape that is drawn: stretched, cropped or filled, as in the WebUI."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.engine.pictures import resized

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3), or a mask (H, W)."""

STRETCH, CROP, FILL, LATENT = range(4)
"""Values of ``resize_mode``."""


def shaped(image: Pixels, mode: int, width: int, height: int) -> Pixels:
    """A picture or a mask in a size.

    Args:
        image: (H, W, 3) or (H, W).
        mode: `STRETCH` changes the shape; `CROP` covers the size and cuts what is over on both sides; `FILL`
            fits into it and goes on with the picture's edges; `LATENT` is `STRETCH`, in pixels.
        width: pixels.
        height: pixels.
    """
    tall, wide = image.shape[:2]
    if mode in (STRETCH, LATENT) or wide * height == width * tall:
        return resized(image, width, height)
    if mode == CROP:
        # Cut before it is resized: of a picture that is a thousand times as long as wide little is left.
        down, across = (
            min(round(wide * height / width), tall) or 1,
            min(round(tall * width / height), wide) or 1,
        )
        top, left = (tall - down) // 2, (wide - across) // 2
        return resized(np.ascontiguousarray(image[top : top + down, left : left + across]), width, height)
    factor = min(width / wide, height / tall)
    inner = resized(image, max(round(wide * factor), 1), max(round(tall * factor), 1))
    return _grown(inner, width, height)


def mask_like(mask: Pixels, image: Pixels) -> Pixels:
    """A mask in the size of its picture: the WebUI takes masks of another one."""
    return resized(mask, image.shape[1], image.shape[0])


def _grown(image: Pixels, width: int, height: int) -> Pixels:
    over, beside = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    around: Any = [(over // 2, over - over // 2), (beside // 2, beside - beside // 2)]
    around += [(0, 0)] * (image.ndim - 2)
    return np.pad(image, around, mode="edge")[:height, :width]
