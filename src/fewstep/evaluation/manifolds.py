"""Precision, recall, density and coverage of features, and nearest neighbours among them.

A set's manifold is the union of balls around its points that reach to the k-th nearest other point of the
set. Precision is how many generated pictures lie within the real manifold (are they plausible), recall how
many real ones lie within the generated manifold (is all there is drawn): Kynkäänniemi 2019 (arXiv
1904.06991), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import DataError, UsageError

Features = NDArray[np.floating[Any]]
"""(N, F), one row a picture."""

_BLOCK: Final = 1 << 22  # distances held in memory at a time
_ROUNDING: Final = 1e-13


class Neighbours(NamedTuple):
    """The nearest references of each query, nearest first.

    Attributes:
        row: int64 (M, k), rows of the references.
        distance: float64 (M, k), Euclidean.
    """

    row: NDArray[np.int64]
    distance: NDArray[np.float64]


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1; equal sets have 1 and 1, equal distributions somewhat less, by dimension."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Naeem 2020; equal distributions have a density of 1 (it may exceed 1) and a coverage near 1 - 2**-k."""

    density: float
    coverage: float


def nearest(queries: Features, references: Features, *, k: int = 1) -> Neighbours:
    """The k nearest references of every query: the nearest training drawing of a picture, for example.

    Args:
        queries: (M, F).
        references: (N, F), N at least k. A query that stands among them finds itself.
        k: neighbours, 1 or more.

    Returns:
        Nearest first; of equal distances the lower index.

    Raises:
        UsageError: other shapes, or k out of range.
        DataError: features that are not finite.
    """
    first, second = _checked(queries, references, k)
    parts = [_smallest(squared, k) for squared in _squared(first, second)]
    index = np.concatenate([part[0] for part in parts])
    return Neighbours(index, np.sqrt(np.concatenate([part[1] for part in parts])))


def radii(points: Features, *, k: int = 3) -> NDArray[np.float64]:
    """Distance (N,) from each point (N, F) to its k-th nearest other; N more than k; raises as `nearest`."""
    first, second = _checked(points, points, k + 1)
    # A point is its own nearest neighbour at distance 0, also when others are equal to it.
    kth = [np.partition(squared, k, axis=1)[:, k] for squared in _squared(first, second)]
    found: NDArray[np.float64] = np.sqrt(np.concatenate(kth))
    return found


def inside(queries: Features, references: Features, *, k: int = 3) -> NDArray[np.bool_]:
    """Say of each query (M,) whether it lies within the manifold of the references (Algorithm 1).

    The mean of ``inside(fake, real)`` is the precision and that of ``inside(real, fake)`` the recall; the
    single values are there for intervals.

    Args:
        queries: (M, F).
        references: (N, F), N more than k.
        k: neighbour that a ball reaches to; the paper's recommendation is 3.

    Raises:
        UsageError: other shapes, or k out of range.
        DataError: features that are not finite.
    """
    reach = np.square(radii(references, k=k))
    first, second = _checked(queries, references, k + 1)
    return np.concatenate([(squared <= reach).any(axis=1) for squared in _squared(first, second)])


def precision_recall(real: Features, fake: Features, *, k: int = 3) -> PrecisionRecall:
    """Precision and recall of generated pictures (Kynkäänniemi 2019, equations 1 and 2 and Algorithm 1).

    Both depend on the numbers of pictures; the paper takes equal ones, and so should a comparison.

    Args:
        real: (N, F), N more than k.
        fake: (M, F), M more than k.
        k: neighbour that a ball reaches to.

    Raises:
        UsageError: other shapes, or k out of range.
        DataError: features that are not finite.
    """
    return PrecisionRecall(float(inside(fake, real, k=k).mean()), float(inside(real, fake, k=k).mean()))


def density_coverage(real: Features, fake: Features, *, k: int = 5) -> DensityCoverage:
    """Density and coverage: as precision and recall, less moved by outliers.

    Naeem et al. 2020 (arXiv 2002.09797), section 3.

    Density is the mean number of real balls that a generated picture lies in, over k; coverage the share of
    real balls with a generated picture in them.

    Args:
        real: (N, F), N more than k.
        fake: (M, F).
        k: neighbour that a ball reaches to; the paper takes 5.

    Raises:
        UsageError: other shapes, or k out of range.
        DataError: features that are not finite.
    """
    reach = np.square(radii(real, k=k))
    first, second = _checked(fake, real, k + 1)
    hits, reached = 0, np.zeros(len(second), np.bool_)
    for squared in _squared(first, second):
        within = squared <= reach
        hits += int(within.sum())
        reached |= within.any(axis=0)
    return DensityCoverage(hits / (k * len(first)), float(reached.mean()))


def _checked(
    queries: Features, references: Features, least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(queries, np.float64), np.asarray(references, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or not len(first):
        raise UsageError(f"features of shape {first.shape} and {second.shape}: give (M, F) and (N, F)")
    if not 1 <= least <= len(second):
        raise UsageError(
            f"{least} neighbours (a point counts as its own) among {len(second)} pictures: give more"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("features that are not finite: the feature network or its pictures are broken")
    return first, second


def _squared(queries: NDArray[np.float64], references: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Squared distances (rows, N), block after block of the queries.

    By |a|^2 + |b|^2 - 2 a.b, which is a matrix product and ten times faster than differences. Its rounding
    would set equal points apart, so what is below it counts as 0: 3e-7 of their length, as float32 rounds.
    """
    middle = references.mean(axis=0)
    first, second = queries - middle, references - middle
    lengths, other = np.square(first).sum(axis=1), np.square(second).sum(axis=1)
    rows = max(1, _BLOCK // len(second))
    for start in range(0, len(first), rows):
        scale = lengths[start : start + rows, None] + other
        squared = scale - 2.0 * (first[start : start + rows] @ second.T)
        squared[squared < _ROUNDING * scale] = 0.0
        yield squared


def _smallest(squared: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order.astype(np.int64), np.take_along_axis(squared, order, axis=1)
