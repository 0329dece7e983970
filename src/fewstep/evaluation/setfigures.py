"""Figures of sets of pictures, each with an interval: distances, manifolds, nearest drawings, diversity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError
from fewstep.evaluation import diversity
from fewstep.evaluation.distances import fid, fid_caution, kid
from fewstep.evaluation.intervals import Interval, bootstrap, mean_interval
from fewstep.evaluation.manifolds import Neighbours, inside
from fewstep.evaluation.report import Figure

Features = NDArray[np.floating[Any]]
"""(N, F), one row a picture."""

FEWEST: Final = 16
"""Pictures that distances between sets are computed of, at least."""
HALVES: Final = 20
_NORMAL_95: Final = 1.959963984540054


def half_sample_interval(
    statistic: Callable[[NDArray[np.int64]], float], count: int, *, halves: int = HALVES, seed: int = 0
) -> Interval:
    """Interval of a statistic that repeats would bias, such as FID: by random halves without repeats.

    Subsampling (Politis and Romano 1994, doi 10.1214/aos/1176325770, section 2). A mean of half of n
    observations, drawn without replacement, spreads around the mean of all by exactly the standard error of
    that mean; so do smooth statistics. The halves' own bias is left out: their spread counts, not their
    place.

    Args:
        statistic: called with indices, first all of 0 to count - 1, then halves of them.
        count: observations, 4 or more.
        halves: how many.
        seed: of the halves.

    Raises:
        UsageError: fewer than 4 observations or 2 halves.
    """
    if count < 4 or halves < 2:
        raise UsageError(f"{halves} halves of {count} pictures: give 2 or more of 4 or more")
    rng = np.random.Generator(np.random.Philox(seed))
    value = statistic(np.arange(count))
    found = [statistic(np.sort(rng.permutation(count)[: count // 2])) for _ in range(halves)]
    # of an odd number, the smaller half spreads a little more
    kept = count // 2
    error = float(np.std(found, ddof=1)) * float(np.sqrt(kept / (count - kept)))
    return Interval(value, value - _NORMAL_95 * error, value + _NORMAL_95 * error)


def share_interval(values: NDArray[np.float64], *, groups: NDArray[np.int64] | None = None) -> Interval:
    """Interval of a share of right answers, 0 or 1 each: by bootstrap, and exact where all are the same.

    Of n equal answers every draw is the same and the bootstrap says nothing; the end that is not at 0 or 1
    is then that of Clopper and Pearson 1934 (doi 10.1093/biomet/26.4.404): 1 - 0.025**(1 / n) of none right.

    Args:
        values: (N,), 0 or 1.
        groups: (N,), the prompt of each, where there are several of one.
    """
    found = mean_interval(values, groups=groups)
    n = len(values) if groups is None else len(np.unique(groups))
    if found.value == 0:
        return found._replace(high=1 - 0.025 ** (1 / n))
    if found.value == 1:
        return found._replace(low=0.025 ** (1 / n))
    return found


def set_distances(
    reference: Features, drawn: Features, real: Features | None = None
) -> tuple[list[Figure], list[str]]:
    """FID, KID, precision and recall of drawn pictures, and of real ones of the same prompts beside them.

    Args:
        reference: (R, F) of real pictures.
        drawn: (N, F) of drawn ones.
        real: of the real drawings of the same prompts: what a perfect model has, at this number of pictures.

    Returns:
        The figures, and what is to be said about them; no figures of fewer than `FEWEST` pictures.
    """
    if min(len(drawn), len(reference)) < FEWEST:
        return [], [f"no distances between sets: {len(drawn)} pictures, {FEWEST} are needed"]
    same = None if real is None or len(real) < FEWEST else real
    distance = half_sample_interval(lambda rows: fid(reference, drawn[rows]), len(drawn))
    distance = distance._replace(low=max(distance.low, 0.0))
    kernel = half_sample_interval(lambda rows: kid(reference, drawn[rows], subsets=20).mean, len(drawn))
    precise = share_interval(inside(drawn, reference).astype(np.float64))
    recalled = share_interval(inside(reference, drawn).astype(np.float64))
    found = [
        _figure("fid", "FID", distance, len(drawn), "lower", real=_of(same, lambda s: fid(reference, s))),
        _figure(
            "kid",
            "KID",
            kernel,
            len(drawn),
            "lower",
            real=_of(same, lambda s: kid(reference, s, subsets=20).mean),
        ),
        _figure(
            "precision",
            "precision (k 3)",
            precise,
            len(drawn),
            "higher",
            "%",
            real=_of(same, lambda s: float(inside(s, reference).mean())),
        ),
        _figure(
            "recall",
            "recall (k 3)",
            recalled,
            len(reference),
            "higher",
            "%",
            real=_of(same, lambda s: float(inside(reference, s).mean())),
        ),
    ]
    caution = fid_caution(len(reference), len(drawn), drawn.shape[1])
    return found, [f"against {len(reference)} real pictures"] + ([caution] if caution else [])


def nearest_figures(neighbours: Neighbours, own: NDArray[np.bool_], *, real: float | None) -> list[Figure]:
    """How near the nearest training drawing is, and whether it shows what was asked for.

    Args:
        neighbours: of N pictures among the training drawings.
        own: bool (A,), for pictures with a concept: does the nearest drawing show it.
        real: median distance of real held-out combinations: the same drawings on another background.
    """
    distance = neighbours.distance[:, 0]
    middle = bootstrap(lambda rows: float(np.median(distance[rows])), len(distance))
    found = [_figure("nearest", "nearest drawing, distance", middle, len(distance), "", real=real)]
    if len(own):
        share = share_interval(own.astype(np.float64))
        text = "nearest drawing, its concept"
        found.append(_figure("nearest_own", text, share, len(own), "higher", "%"))
    return found


def diversity_figures(
    features: Features,
    pixels: NDArray[np.uint8],
    prompts: NDArray[np.int64],
    *,
    real: tuple[Features, NDArray[np.uint8], NDArray[np.int64]] | None = None,
) -> list[Figure]:
    """How different the pictures of one prompt are, over several seeds.

    Args:
        features: (N, F).
        pixels: (N, H, W, 3).
        prompts: (N,), the prompt of each.
        real: the same three of real drawings of each concept, in different styles.
    """
    real_features, real_pixels, owner = real if real is not None else (None, None, None)
    one = diversity.in_features(features, prompts)
    two = diversity.in_pixels(pixels, prompts)
    best_one = best_two = None
    if real_features is not None and real_pixels is not None and owner is not None:
        best_one = float(diversity.in_features(real_features, owner).mean())
        best_two = float(diversity.in_pixels(real_pixels, owner).mean())
    return [
        _figure(name, f"diversity, {text}", mean_interval(values), len(values), "", real=best)
        for name, text, values, best in (
            ("diversity", "cosine of features", one, best_one),
            ("diversity_pixels", "RMS of pixels", two, best_two),
        )
    ]


def _of(real: Features | None, statistic: Callable[[Features], float]) -> float | None:
    return None if real is None else statistic(real)


def _figure(
    name: str, text: str, found: Interval, n: int, better: str, unit: str = "", *, real: float | None = None
) -> Figure:
    return Figure(
        name=name,
        text=text,
        value=found.value,
        low=found.low,
        high=found.high,
        n=n,
        better=better,
        unit=unit,
        real=real,
    )
