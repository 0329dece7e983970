"""Bootstrap percentile intervals: how far a figure would move with another sample of pictures or prompts.

Efron 1979 (doi 10.1214/aos/1176344552), section 2: what was observed is drawn again with replacement, and the
statistic is computed of every such draw. Efron and Tibshirani 1993 (doi 10.1201/9780429246593), section 13.3:
the interval is a pair of percentiles of these values. Two things it cannot do: of outcomes that are all 0 or
all 1 it has no width (about 3 / n is then still possible), and below some twenty values it is too narrow.

Indices come from Philox raw bits by an own rule, as the noise of pictures does: the same on every machine and
with every numpy version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import DataError, UsageError

Values = NDArray[np.floating[Any] | np.integer[Any] | np.bool_]

RESAMPLES: Final = 2000
LEVEL: Final = 0.95
_BLOCK: Final = 1 << 20  # indices held in memory at a time


class Interval(NamedTuple):
    """A figure with its bootstrap interval.

    Attributes:
        value: the statistic of what was observed, not of the draws.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


def resampled(count: int, resamples: int = RESAMPLES, *, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield blocks (R, count) of indices 0 to count - 1, drawn with replacement; R adds up to ``resamples``.

    An index is ``count`` times the upper 32 bits of a Philox word (Salmon 2011), rounded down; the excess of
    some indices over others is below count / 2**32.

    Raises:
        UsageError: count or resamples below 1, a negative seed.
    """
    if count < 1 or resamples < 1 or seed < 0:
        raise UsageError(
            f"bootstrap of {count} values, {resamples} resamples, seed {seed}: give 1 or more of the first "
            f"two and a seed of 0 or more"
        )
    bits = np.random.Philox(key=np.array([seed % 2**64, 0], np.uint64))
    rows = max(1, _BLOCK // count)
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), count)
        words = bits.random_raw(shape[0] * count).reshape(shape)
        upper = (words >> np.uint64(32)) * np.uint64(count)
        yield (upper >> np.uint64(32)).astype(np.int64)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of any statistic of ``count`` observations.

    Args:
        statistic: called with indices (count,), first with each observation once, then with the draws.
        count: number of observations. To draw whole prompts instead of pictures, count prompts.
        resamples: number of draws.
        level: probability, between 0 and 1, that the interval is made for.
        seed: of the draws.

    Raises:
        UsageError: a count, level or seed out of range.
        DataError: the statistic is not finite.
    """
    value = float(statistic(np.arange(count, dtype=np.int64)))
    draws = [statistic(row) for block in resampled(count, resamples, seed=seed) for row in block]
    return _percentiles(value, np.asarray(draws, np.float64), level)


def mean_interval(
    values: Values,
    *,
    groups: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of a mean, of hits as 0 and 1 for example, or of paired differences between two models.

    Args:
        values: (N,).
        groups: (N,), such as the prompt of each picture: whole groups are drawn, because pictures of one
            prompt are alike and tell less than as many prompts (Davison and Hinkley 1997, section 3.8).
        resamples: number of draws.
        level: probability, between 0 and 1, that the interval is made for.
        seed: of the draws.

    Raises:
        UsageError: no values, groups of another length, level or seed out of range.
        DataError: values that are not finite.
    """
    observed = _vector(values, "values")
    if groups is None:
        return ratio_interval(observed, np.ones_like(observed), resamples=resamples, level=level, seed=seed)
    if np.shape(groups) != observed.shape:
        raise UsageError(
            f"groups have shape {np.shape(groups)}: give one of each of the {len(observed)} values"
        )
    _, member = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(member, observed), np.bincount(member)
    return ratio_interval(sums, sizes.astype(np.float64), resamples=resamples, level=level, seed=seed)


def ratio_interval(
    numerator: Values,
    denominator: Values,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Interval of mean(numerator) / mean(denominator) of paired figures, drawn in pairs.

    How much of model A's accuracy model B keeps on the same prompts and seeds, for example. A mean is the
    case of a denominator of ones.

    Args:
        numerator: (N,).
        denominator: (N,), paired with the numerator.
        resamples: number of draws.
        level: probability, between 0 and 1, that the interval is made for.
        seed: of the draws.

    Raises:
        UsageError: no values, unequal lengths, level or seed out of range.
        DataError: values that are not finite, or a draw whose denominator is 0.
    """
    over, under = _vector(numerator, "numerator"), _vector(denominator, "denominator")
    if over.shape != under.shape:
        raise UsageError(f"{len(over)} numerators and {len(under)} denominators: give pairs")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(over.sum() / under.sum())
        draws = [
            over[block].sum(axis=1) / under[block].sum(axis=1)
            for block in resampled(len(over), resamples, seed=seed)
        ]
    return _percentiles(value, np.concatenate(draws), level)


def _percentiles(value: float, draws: NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise UsageError(f"level {level}: give a probability between 0 and 1, such as {LEVEL}")
    if not np.isfinite(value) or not np.isfinite(draws).all():
        raise DataError(
            "bootstrap: the statistic of a draw is not finite (a ratio with a denominator of 0?); give more "
            "values or another statistic"
        )
    # Percentiles that are values of the draws, not between two of them: exact for rates, which are discrete.
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(value, float(low), float(high))


def _vector(values: Values, name: str) -> NDArray[np.float64]:
    vector = np.asarray(values, np.float64)
    if vector.ndim != 1 or not len(vector):
        raise UsageError(f"{name} of shape {vector.shape}: give a list of at least one number")
    if not np.isfinite(vector).all():
        raise DataError(
            f"{name}: {int((~np.isfinite(vector)).sum())} are not finite; leave them out or repair them"
        )
    return vector
