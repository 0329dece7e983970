"""What an autoencoder loses: PSNR and SSIM of drawings that it never saw, encoded and decoded again.

It bounds everything drawn through it, so it stands in front of the other figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.data.backgrounds import RGB
from fewstep.data.compositions import compose
from fewstep.data.emoji import Drawings
from fewstep.errors import DataError, UsageError
from fewstep.models import autoencoder as autoencoders
from fewstep.models.autoencoder import Images

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class HeldOut(NamedTuple):
    """Drawings of the objects that are held out whole, each on one background.

    Attributes:
        rows: int64 (N,), places in the drawing set, in its order.
        images: float32 (N, 3, 128, 128) in [-1, 1].
    """

    rows: NDArray[np.int64]
    images: Images


class Reconstruction(NamedTuple):
    """Copies of N images and how close they are.

    Attributes:
        copies: float32 (N, 3, H, W) in [-1, 1].
        psnr: float64 (N,), in dB.
        ssim: float64 (N,), at most 1.
    """

    copies: Images
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]


def held_out(drawings: Drawings, backgrounds: Mapping[str, RGB]) -> HeldOut:
    """Compose every drawing of the objects that are held out whole, always the same.

    The background follows from the drawing's place among the held-out ones of its style, so that every
    background is used.

    Args:
        drawings: the set.
        backgrounds: name to colour.

    Raises:
        UsageError: no backgrounds.
        DataError: the set holds no such drawing.
    """
    if not backgrounds:
        raise UsageError("no backgrounds: give at least one name and colour")
    rows = np.array([i for i, item in enumerate(drawings.items) if item.split == "object"], np.int64)
    if not len(rows):
        raise DataError(f"{drawings.folder}: no drawing of a held-out object; build the set with more groups")
    places: dict[str, int] = {}
    place = np.empty(len(rows), np.int64)
    for n, row in enumerate(rows):
        style = drawings.items[row].style
        place[n] = places.get(style, 0)
        places[style] = int(place[n]) + 1
    colours = np.array(list(backgrounds.values()), np.float32)[place % len(backgrounds)]
    return HeldOut(rows, compose(drawings.rgba[rows], colours))


def reconstruct(autoencoder: AutoencoderKL, images: Images, *, batch_size: int = 16) -> Reconstruction:
    """Encode by the posterior's mode and decode with clipping, as drawing does it, and compare.

    Args:
        autoencoder: in evaluation mode.
        images: float32 (N, 3, H, W) in [-1, 1].
        batch_size: images in memory at a time.

    Raises:
        UsageError: no images, or other shapes.
    """
    if not len(images):
        raise UsageError("no images to reconstruct: give at least one")
    copies = np.concatenate(
        [
            autoencoders.decode(
                autoencoder, autoencoders.encode(autoencoder, images[start : start + batch_size])
            )
            for start in range(0, len(images), batch_size)
        ]
    )
    return Reconstruction(copies, psnr(images, copies), ssim(images, copies))


def psnr(originals: Images, copies: Images) -> NDArray[np.float64]:
    """Peak signal to noise ratio of each image in dB: 10 log10(4 / mean squared error), 2 being the range.

    Args:
        originals: (N, 3, H, W) in [-1, 1].
        copies: the same shape.

    Returns:
        (N,); infinite for an equal copy.

    Raises:
        UsageError: other shapes.
    """
    _check(originals, copies)
    error = np.square(np.asarray(copies, np.float64) - np.asarray(originals, np.float64)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(4.0 / error))


def ssim(originals: Images, copies: Images, *, batch_size: int = 16) -> NDArray[np.float64]:
    """Structural similarity of each image, computed by torchmetrics (Wang 2004, equation 13).

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861): Gaussian window of standard deviation 1.5, K1 0.01, K2
    0.03, the mean over pixels and over the three channels. Values are moved to [0, 1] with a data range of 1:
    the luminance term is made for intensities from 0 and would mislead on [-1, 1].

    Args:
        originals: (N, 3, H, W) in [-1, 1], H and W at least 6 (the window is reflected at the border).
        copies: the same shape.
        batch_size: images in memory at a time.

    Returns:
        (N,), at most 1, which is an equal copy.

    Raises:
        UsageError: other shapes, or images that are too small.
    """
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check(originals, copies)
    if min(originals.shape[2:]) < 6:
        raise UsageError(f"images of shape {originals.shape}: SSIM needs 6 pixels or more a side")
    values = []
    for start in range(0, len(originals), batch_size):
        pair = [
            torch.from_numpy((np.asarray(images[start : start + batch_size], np.float64) + 1) / 2)
            for images in (copies, originals)
        ]
        part: Any = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
        values.append(np.atleast_1d(part.numpy()))
    return np.concatenate(values).astype(np.float64)


def _check(originals: Images, copies: Images) -> None:
    if originals.ndim != 4 or originals.shape != copies.shape or not len(originals):
        raise UsageError(f"images of shape {originals.shape} and {copies.shape}: give (N, 3, H, W) twice")
