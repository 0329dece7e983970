"""Diversity: how different the pictures of one prompt are, in features and in pixels.

A model that has collapsed draws the same picture for every seed; distillation by adversarial or distribution
losses is prone to it, and neither accuracy nor precision sees it. Always read it beside the diversity of real
drawings of one concept, and beside accuracy: noise is diverse too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import DataError, UsageError

Prompts = NDArray[np.integer[Any]]
"""(N,), the prompt of each picture."""


def in_features(features: NDArray[np.floating[Any]], prompts: Prompts) -> NDArray[np.float64]:
    """Mean cosine distance, 1 - cos, between the pictures of each prompt.

    Cosine, not Euclidean: features of vivid, detailed drawings are longer, and a prompt must not count as
    more diverse because its pictures are brighter. 0 for equal pictures; at most 1 for features that are not
    negative and 2 for any.

    Args:
        features: (N, F), none of length 0.
        prompts: (N,), at least two pictures of each prompt.

    Returns:
        (P,), in ascending order of the prompts' numbers.

    Raises:
        UsageError: other shapes, or a prompt with one picture.
        DataError: features that are not finite or all 0.
    """
    vectors = np.asarray(features, np.float64)
    member, sizes = _members(prompts, vectors, 2)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(length).all() or not length.all():
        raise DataError(
            "features that are not finite or all 0: the feature network or its pictures are broken"
        )
    # The sum over pairs of u.v is half of |sum of u|^2 - n.
    sums = np.zeros((len(sizes), vectors.shape[1]))
    np.add.at(sums, member, vectors / length)
    cosine = (np.square(sums).sum(axis=1) - sizes) / (sizes * (sizes - 1))
    distance: NDArray[np.float64] = np.maximum(1.0 - cosine, 0.0)
    return distance


def in_pixels(pixels: NDArray[np.uint8], prompts: Prompts) -> NDArray[np.float64]:
    """Root mean square difference between the pictures of each prompt, over pairs, pixels and channels.

    RMS rather than 1 - SSIM: SSIM of any two different drawings is near that of strangers, so it saturates
    where this one still tells more from less.

    Args:
        pixels: uint8 (N, H, W, 3).
        prompts: (N,), at least two pictures of each prompt.

    Returns:
        (P,), in ascending order of the prompts' numbers; 0 for equal pictures, 1 for black and white.

    Raises:
        UsageError: other shapes or types, or a prompt with one picture.
    """
    if pixels.dtype != np.uint8:
        raise UsageError(f"pictures are {pixels.dtype}: give uint8")
    member, sizes = _members(prompts, pixels, 4)
    found = np.empty(len(sizes))
    for prompt, size in enumerate(sizes):
        # The mean over pairs of a squared difference is twice the unbiased variance.
        group = pixels[member == prompt].astype(np.float64) / 255
        found[prompt] = np.sqrt(2 * np.square(group - group.mean(axis=0)).sum(axis=0).mean() / (size - 1))
    return found


def _members(
    prompts: Prompts, values: NDArray[Any], dims: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if values.ndim != dims or np.shape(prompts) != values.shape[:1] or not len(values):
        raise UsageError(
            f"values of shape {values.shape} of {np.shape(prompts)} prompts: give one prompt a picture"
        )
    names, member, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if sizes.min() < 2:
        raise UsageError(
            f"prompt {names[sizes.argmin()]} has one picture: diversity needs two or more of each prompt"
        )
    return member.astype(np.int64), sizes.astype(np.int64)
