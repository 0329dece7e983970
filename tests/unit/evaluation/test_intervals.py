from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from fewstep.errors import DataError, UsageError
from fewstep.evaluation.intervals import Interval, bootstrap, mean_interval, ratio_interval, resampled

GOLDEN = [[7, 5, 2, 4, 2, 6, 7, 7, 8, 0], [0, 7, 0, 2, 8, 2, 8, 6, 8, 6], [1, 0, 2, 6, 4, 9, 5, 0, 8, 1]]


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape)


def test_draws_of_hits_are_binomial() -> None:
    # The mean of a resample of h ones among n is Binomial(n, h / n) / n: its percentiles are known exactly.
    for hits, count in ((9, 30), (27, 30), (2, 100)):
        values = np.arange(count) < hits
        found = mean_interval(values, resamples=40_000)
        exact = binom.ppf([0.025, 0.975], count, hits / count) / count
        assert found.value == pytest.approx(hits / count)
        assert (found.low, found.high) == pytest.approx(tuple(exact))


def test_two_values_have_three_means() -> None:
    # 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4
    values = np.array([0.0, 1.0])
    assert mean_interval(values, level=0.4) == (0.5, 0.5, 0.5)
    assert mean_interval(values, level=0.6) == (0.5, 0.0, 1.0)


def test_intervals_cover_the_mean_of_a_normal_distribution_as_often_as_they_say() -> None:
    count, trials = 40, 400
    samples = normals(trials, count)
    found = [mean_interval(row, resamples=500, level=0.9, seed=n) for n, row in enumerate(samples)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in found])
    # The bootstrap's normal limit uses the biased deviation and no t quantile: 0.888 at 40 values.
    assert covered == pytest.approx(0.888, abs=4 * math.sqrt(0.9 * 0.1 / trials))
    width = np.mean([interval.high - interval.low for interval in found])
    assert width == pytest.approx(2 * 1.645 * math.sqrt((count - 1) / count / count), rel=0.03)


def test_a_ratio_is_drawn_in_pairs() -> None:
    base = np.abs(normals(50)) + 0.1
    tied = ratio_interval(0.75 * base, base)
    assert tied == pytest.approx((0.75, 0.75, 0.75))
    unpaired = ratio_interval(0.75 * base, base[::-1])
    assert unpaired.high - unpaired.low > 0.1
    noisy = ratio_interval(0.75 * base + 0.01 * normals(50, seed=1), base)
    # First order: the deviation of a - r b over mean(b) sqrt(n).
    residual = 0.75 * base + 0.01 * normals(50, seed=1) - noisy.value * base
    deviation = residual.std() / base.mean() / math.sqrt(50)
    assert noisy.high - noisy.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_groups_are_drawn_whole() -> None:
    values = normals(30)
    repeated = np.repeat(values, 4)
    grouped = mean_interval(repeated, groups=np.repeat(np.arange(30), 4))
    assert grouped == pytest.approx(mean_interval(values))
    alone = mean_interval(repeated)  # as if there were four times as much: half as wide
    assert (grouped.high - grouped.low) / (alone.high - alone.low) == pytest.approx(2, rel=0.1)


def test_groups_of_unequal_size_weigh_their_pictures() -> None:
    found = mean_interval(np.array([1.0, 1.0, 1.0, 0.0]), groups=np.array([7, 7, 7, 2]))
    assert found == (0.75, 0.0, 1.0)


def test_any_statistic_and_the_mean_agree() -> None:
    values = normals(25)
    general = bootstrap(lambda index: float(values[index].mean()), 25, resamples=300, seed=3)
    assert general == pytest.approx(mean_interval(values, resamples=300, seed=3))
    middle = bootstrap(lambda index: float(np.median(values[index])), 25, resamples=300)
    assert middle.value == np.median(values)
    assert middle.low <= middle.value <= middle.high
    assert {middle.low, middle.high} <= set(values)


def test_the_ends_are_draws_themselves() -> None:
    values, seen = normals(9), []

    def mean(index: np.ndarray) -> float:
        seen.append(float(values[index].mean()))
        return seen[-1]

    found = bootstrap(mean, 9, resamples=30, level=0.8)
    assert len(seen) == 31
    assert (found.low, found.high) == (sorted(seen[1:])[2], sorted(seen[1:])[26])


def test_the_draws_are_the_same_for_good() -> None:
    (block,) = resampled(10, 3, seed=5)
    assert block.tolist() == GOLDEN
    assert block.dtype == np.int64


def test_draws_are_uniform_and_depend_on_the_seed() -> None:
    counts = np.bincount(np.concatenate(list(resampled(7, 10_000))).ravel(), minlength=7)
    assert counts.sum() == 70_000
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 22.5  # chi squared, 6 degrees of freedom, 1 in 1000
    (first,), (second,) = resampled(7, 5, seed=0), resampled(7, 5, seed=1)
    assert (first != second).any()


def test_large_sets_are_drawn_in_blocks() -> None:
    blocks = list(resampled(400_000, 5))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert max(int(block.max()) for block in blocks) < 400_000


def test_an_interval_is_named() -> None:
    assert mean_interval(np.array([2.0])) == Interval(value=2.0, low=2.0, high=2.0)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one number"):
        mean_interval(np.array([]))
    with pytest.raises(UsageError, match="give pairs"):
        ratio_interval(np.ones(3), np.ones(4))
    with pytest.raises(UsageError, match="level 95"):
        mean_interval(np.ones(3), level=95)
    with pytest.raises(UsageError, match="seed of 0 or more"):
        mean_interval(np.ones(3), seed=-1)
    with pytest.raises(UsageError, match="groups have shape"):
        mean_interval(np.ones(3), groups=np.zeros(2))
    with pytest.raises(DataError, match="not finite"):
        mean_interval(np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="denominator of 0"):
        ratio_interval(np.ones(4), np.array([0.0, 0.0, 0.0, 1.0]))
    with pytest.raises(DataError, match="not finite"):
        bootstrap(lambda index: float("nan"), 3, resamples=2)
