"""Prompt accuracy: does a picture show what was asked for, among all that could have been asked for.

An evaluator network gives every picture one logit a concept (and a style); here they become ranks, hits and
rates, beside what is known of the evaluator itself: the level of chance and the concepts that it takes for
each other on real drawings. The background needs no network: it is a colour. Styles are ranked as concepts
are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import DataError, UsageError
from fewstep.evaluation.colour import srgb_to_lab

RING: Final = 4
"""Width in pixels of the border that a background is read from; drawings of the bundled set leave 8 free."""


class Twins(NamedTuple):
    """Two concepts that an evaluator confuses on real drawings.

    Attributes:
        first: index of the one concept.
        second: index of the other, larger than ``first``.
        errors: drawings of either that were taken for the other.
        drawings: drawings of both.
    """

    first: int
    second: int
    errors: int
    drawings: int

    @property
    def rate(self) -> float:
        """Errors over drawings, above 0, at most 1."""
        return self.errors / self.drawings


def ranks(logits: NDArray[np.floating[Any]], wanted: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Rank of the wanted candidate of each picture, 1 for the best.

    A tie counts against it, so a network that says the same of everything ranks last, not first.

    Args:
        logits: (B, K), the larger the likelier.
        wanted: (B,), 0 to K - 1.

    Raises:
        UsageError: other shapes, or an index out of range.
        DataError: logits that are not finite.
    """
    scores, index = _checked(logits, wanted)
    own = np.take_along_axis(scores, index[:, None], axis=1)
    found: NDArray[np.int64] = (scores >= own).sum(axis=1).astype(np.int64)
    return found


def hits(rank: NDArray[np.int64], within: int = 1) -> NDArray[np.float64]:
    """1 where a rank is among the first ``within``, else 0; the mean is top-1 or top-5 accuracy."""
    if within < 1:
        raise UsageError(f"within {within}: give 1 for the first place, 5 for the first five")
    return (np.asarray(rank) <= within).astype(np.float64)


def chance(candidates: int, within: int = 1) -> float:
    """Rate of hits that guessing has: ``within`` of K candidates, at most 1.

    Raises:
        UsageError: no candidate, or ``within`` below 1.
    """
    if candidates < 1 or within < 1:
        raise UsageError(f"chance of {within} of {candidates} candidates: give 1 or more of both")
    return min(1.0, within / candidates)


def twins(
    logits: NDArray[np.floating[Any]], wanted: NDArray[np.integer[Any]], *, least_rate: float = 0.0
) -> tuple[Twins, ...]:
    """Pairs of concepts that the evaluator confuses, from its logits for REAL drawings that it never saw.

    A drawing of a whose first concept is b is an error of the pair (a, b), whichever way round.

    Args:
        logits: (B, K) of real held-out drawings.
        wanted: (B,), what they show.
        least_rate: pairs with a lower rate of errors are left out, 0 to 1.

    Returns:
        Highest rate first, of equal rates more errors first, then in the order of the concepts.

    Raises:
        UsageError: other shapes, or an index out of range.
        DataError: logits that are not finite.
    """
    scores, index = _checked(logits, wanted)
    said = scores.argmax(axis=1)
    wrong = said != index
    pairs = np.stack([np.minimum(said, index), np.maximum(said, index)], axis=1)[wrong]
    shown = np.bincount(index, minlength=scores.shape[1])
    unique, errors = np.unique(pairs, axis=0, return_counts=True) if len(pairs) else (pairs, pairs[:, 0])
    found = (
        Twins(int(a), int(b), int(count), int(shown[a] + shown[b]))
        for (a, b), count in zip(unique, errors, strict=True)
    )
    kept = [pair for pair in found if pair.rate >= least_rate]
    return tuple(sorted(kept, key=lambda pair: (-pair.rate, -pair.errors, pair.first, pair.second)))


def twin_groups(pairs: Iterable[Twins]) -> tuple[tuple[int, ...], ...]:
    """Join pairs that share a concept; each group in ascending order, larger groups first."""
    groups: dict[int, set[int]] = {}
    for pair in pairs:
        joined = groups.get(pair.first, {pair.first}) | groups.get(pair.second, {pair.second})
        groups.update(dict.fromkeys(joined, joined))
    unique = {tuple(sorted(group)) for group in groups.values()}
    return tuple(sorted(unique, key=lambda group: (-len(group), group)))


def background_of(pixels: NDArray[np.uint8], palette: ArrayLike, *, ring: int = RING) -> NDArray[np.int64]:
    """Which named colour the border of each picture has.

    The median of the border ring, channel by channel, so that up to half of it may be something else; then
    the nearest colour of the palette by the CIE 1976 colour difference, Euclidean in CIELAB (CIE 15:2018,
    section 8.2.1).

    Args:
        pixels: uint8 (B, H, W, 3), sRGB.
        palette: (K, 3) sRGB colours, 0 to 255.
        ring: width of the border in pixels; at least 1, less than half of H and W.

    Returns:
        int64 (B,), index into the palette; of equally near colours the first.

    Raises:
        UsageError: other shapes, colours out of range, or a ring that does not fit.
    """
    colours = np.asarray(palette)
    if colours.ndim != 2 or colours.shape[1:] != (3,) or not len(colours):
        raise UsageError(f"palette of shape {colours.shape}: give (K, 3) colours")
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise UsageError(f"pictures are {pixels.dtype} {pixels.shape}: give uint8 (B, H, W, 3)")
    if not 1 <= ring < min(pixels.shape[1:3]) / 2:
        raise UsageError(f"a ring of {ring} pixels in {pixels.shape[1:3]}: give 1 to less than half a side")
    border = np.ones(pixels.shape[1:3], np.bool_)
    border[ring:-ring, ring:-ring] = False
    medians = srgb_to_lab(np.median(pixels[:, border], axis=1))
    distance = np.linalg.norm(medians[:, None] - srgb_to_lab(colours), axis=-1)
    index: NDArray[np.int64] = distance.argmin(axis=1).astype(np.int64)
    return index


def _checked(
    logits: NDArray[np.floating[Any]], wanted: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    scores, index = np.asarray(logits), np.asarray(wanted)
    if scores.ndim != 2 or index.shape != scores.shape[:1] or index.dtype.kind not in "iu":
        raise UsageError(
            f"logits of shape {scores.shape} and {index.dtype} {index.shape}: give (B, K) and B whole numbers"
        )
    if len(index) and not (0 <= index.min() and index.max() < scores.shape[1]):
        raise UsageError(
            f"wanted {index.min()} to {index.max()}: there are {scores.shape[1]} candidates, from 0"
        )
    if not np.isfinite(scores).all():
        raise DataError("logits that are not finite: the evaluator or its pictures are broken")
    return scores, index.astype(np.int64)
