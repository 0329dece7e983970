"""Intervals and figures of sets, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.errors import UsageError
from fewstep.evaluation.manifolds import Neighbours, nearest
from fewstep.evaluation.setfigures import (
    FEWEST,
    diversity_figures,
    half_sample_interval,
    nearest_figures,
    set_distances,
    share_interval,
)


def test_halves_give_the_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = half_sample_interval(lambda rows: float(values[rows].mean()), 400, halves=2000)
    error = values.std(ddof=1) / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    odd = half_sample_interval(lambda rows: float(values[rows].mean()), 9, halves=4000)
    assert (odd.high - odd.low) / 2 == pytest.approx(1.96 * values[:9].std(ddof=1) / 3, rel=0.06)


def test_halves_leave_the_bias_of_a_statistic_out() -> None:
    values = np.random.default_rng(0).normal(size=100)
    # biased by 100 / n: the halves' place is far off, the interval stays around the value of all
    found = half_sample_interval(lambda rows: float(values[rows].mean()) + 100 / len(rows), 100)
    assert found.low < found.value < found.high
    assert found.high - found.low < 1


def test_halves_are_without_repeats_and_seeded() -> None:
    sizes = []
    half_sample_interval(lambda rows: sizes.append(len(np.unique(rows))) or 0.0, 10, halves=3)
    assert sizes == [10, 5, 5, 5]
    values = np.arange(10.0)
    first, again = (half_sample_interval(lambda rows: float(values[rows].sum()), 10) for _ in range(2))
    assert first == again
    with pytest.raises(UsageError, match="4 or more"):
        half_sample_interval(lambda rows: 0.0, 3)


@pytest.mark.parametrize("n", [5, 60])
def test_a_share_of_nothing_or_everything_has_the_exact_end(n: int) -> None:
    from scipy.stats import binomtest

    for value in (0, 1):
        exact = binomtest(value * n, n).proportion_ci(0.95, "exact")
        found = share_interval(np.full(n, float(value)))
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    mixed = share_interval(np.array([0.0, 1.0] * n))
    assert 0 < mixed.low < 0.5 < mixed.high < 1


def test_shares_of_pictures_of_one_prompt_count_prompts() -> None:
    values, groups = np.ones(40), np.repeat(np.arange(10), 4)
    assert share_interval(values, groups=groups).low == pytest.approx(0.025 ** (1 / 10))


def test_distances_of_equal_and_of_shifted_sets() -> None:
    rng = np.random.default_rng(0)
    reference, same = rng.normal(size=(400, 3)), rng.normal(size=(300, 3))
    equal, notes = set_distances(reference, same, same)
    figures = {figure.name: figure for figure in equal}
    assert notes == ["against 400 real pictures"]
    assert figures["fid"].value < 0.2
    assert figures["fid"].value == pytest.approx(figures["fid"].real)
    assert figures["kid"].low < 0 < figures["kid"].high  # type: ignore[operator]
    assert figures["precision"].value > 0.9
    assert figures["precision"].value == figures["precision"].real
    shifted, _ = set_distances(reference, same + 5)
    moved = {figure.name: figure for figure in shifted}
    assert moved["fid"].value == pytest.approx(75, rel=0.05)  # the squared length of the shift
    assert moved["fid"].low < 75 < moved["fid"].high  # type: ignore[operator]
    assert moved["precision"].value == moved["recall"].value == 0
    assert moved["fid"].real is None


def test_few_pictures_have_no_distances_and_fewer_than_features_a_caution() -> None:
    rng = np.random.default_rng(0)
    figures, notes = set_distances(rng.normal(size=(50, 3)), rng.normal(size=(FEWEST - 1, 3)))
    assert figures == []
    assert "15 pictures, 16 are needed" in notes[0]
    _, notes = set_distances(rng.normal(size=(50, 20)), rng.normal(size=(16, 20)))
    assert "far too high" in notes[1]


def test_nearest_is_the_median_and_the_share_that_shows_the_concept() -> None:
    reference = np.array([[0.0, 0.0], [10.0, 0.0]])
    drawn = np.array([[0.0, 1.0], [10.0, 2.0], [0.0, 3.0]])
    found = nearest(drawn, reference)
    distance, own = nearest_figures(found, np.array([True, False, True]), real=0.5)
    assert (distance.value, distance.real) == (2.0, 0.5)
    assert own.value == pytest.approx(2 / 3)
    assert len(nearest_figures(found, np.empty(0, np.bool_), real=None)) == 1
    assert isinstance(found, Neighbours)


def test_diversity_is_that_of_one_prompt() -> None:
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    pixels[1], pixels[3] = 255, 255
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    owner = np.array([0, 0, 1, 1])
    one = (features[[0, 2]], pixels[[0, 2]], np.array([0, 0]))
    in_features, in_pixels = diversity_figures(features, pixels, owner, real=one)
    assert (in_features.value, in_pixels.value) == pytest.approx((1.0, 1.0))
    assert (in_features.real, in_pixels.real) == pytest.approx((0.0, 0.0))
    assert in_features.n == 2
