"""Figures of a student of points in the plane, against data and a teacher that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.diffusion.toys import GaussianMixture
from fewstep.errors import UsageError

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ToyFigures:
    """How good N points are, and how they relate to the teacher's.

    Attributes:
        energy: energy distance to data; 0 for the same distribution.
        recall: share of the components that got at least half of their due.
        quality: share of the points within three standard deviations of a component.
        distance: median distance to the nearest component's mean, in its standard deviations; for data in the
            plane it is 1.18.
        agreement: share of the noises that end at the component where the teacher's exact flow ends.
        error: root mean squared distance to that end.
        sensitivity: median movement of an end for a small movement of its noise, as a ratio.
    """

    energy: float
    recall: float
    quality: float
    distance: float
    agreement: float
    error: float
    sensitivity: float


def figures(
    points: Points, moved: Points, step: float, ends: Points, data: Points, mixture: GaussianMixture
) -> ToyFigures:
    """Measure a student.

    Args:
        points: (N, D), what it makes of N noises.
        moved: (N, D), what it makes of them after each was moved by ``step``.
        step: length of that movement, above 0.
        ends: (N, D), where the teacher's flow takes the same noises.
        data: (M, D), points of the mixture.
        mixture: where they come from.
    """
    nearest, away = nearest_component(points, mixture)
    return ToyFigures(
        energy=energy_distance(points, data),
        recall=recall(nearest, mixture),
        quality=float(np.mean(away <= 3.0)),
        distance=float(np.median(away)),
        agreement=float(np.mean(nearest == nearest_component(ends, mixture)[0])),
        error=float(np.sqrt(np.square(points - ends).sum(1).mean())),
        sensitivity=float(np.median(np.linalg.norm(moved - points, axis=1)) / step),
    )


def energy_distance(a: Points, b: Points) -> float:
    """2 E|a - b| - E|a - a'| - E|b - b'|: 0 for the same distribution (Szekely and Rizzo 2013).

    Estimated without the pairs of a point with itself, so it may come out slightly below 0.

    Args:
        a: (N, D), N at least 2.
        b: (M, D), M at least 2.

    Raises:
        UsageError: too few points.
    """
    from scipy.spatial.distance import cdist, pdist

    if min(len(a), len(b)) < 2:
        raise UsageError(f"energy distance of {len(a)} and {len(b)} points: give at least 2 each")
    return float(2.0 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())


def nearest_component(points: Points, mixture: GaussianMixture) -> tuple[NDArray[np.int64], Points]:
    """Index of the nearest component and the distance to its mean, in its deviations; (N,) each."""
    from scipy.spatial.distance import cdist

    distances = cdist(points, mixture.means) / mixture.stds
    found = distances.argmin(1)
    return found, distances[np.arange(len(points)), found]


def recall(nearest: NDArray[np.int64], mixture: GaussianMixture) -> float:
    """Share of the components that have at least half as many points as their weight says."""
    share = np.bincount(nearest, minlength=len(mixture.weights)) / len(nearest)
    return float(np.mean(share >= mixture.weights / 2))


def table(rows: Sequence[tuple[str, int, ToyFigures]]) -> str:
    """A Markdown table of models, their steps and their figures."""
    lines = [
        "| model | steps | energy distance | mode recall | within 3 std | median distance / std | "
        "same mode as the teacher | RMS to its end | sensitivity |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, steps, f in rows:
        lines.append(
            f"| {name} | {steps} | {f.energy:.4f} | {f.recall:.2f} | {f.quality:.3f} | "
            f"{f.distance:.2f} | "
            f"{f.agreement:.3f} | {f.error:.3f} | {f.sensitivity:.2f} |"
        )
    return "\n".join(lines)
