from __future__ import annotations

import numpy as np
import pytest

from fewstep.diffusion.toys import ring, two_modes
from fewstep.errors import UsageError
from fewstep.evaluation import toys


def test_energy_distance_of_points_by_hand() -> None:
    a, b = np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 0.0], [3.0, 4.0]])
    between = (3 + 5 + 13**0.5 + 13**0.5) / 4
    assert toys.energy_distance(a, b) == pytest.approx(2 * between - 2 - 4)


def test_energy_distance_is_small_for_one_distribution_and_not_for_two() -> None:
    rng = np.random.default_rng(0)
    near, far = two_modes(2.0), two_modes(3.0)
    same = toys.energy_distance(near.sample(rng, 1500)[0], near.sample(rng, 1500)[0])
    other = toys.energy_distance(near.sample(rng, 1500)[0], far.sample(rng, 1500)[0])
    assert abs(same) < 0.01 < 0.05 < other
    with pytest.raises(UsageError, match="give at least 2"):
        toys.energy_distance(np.zeros((1, 2)), np.zeros((5, 2)))


def test_figures_see_what_is_missing_blurred_or_moved() -> None:
    mixture = ring(8)
    rng = np.random.default_rng(1)
    data, labels = mixture.sample(rng, 2000)
    good = toys.figures(data, data + 0.01, 0.01 * 2**0.5, data, mixture.sample(rng, 2000)[0], mixture)
    assert good.recall == 1 and good.quality > 0.98 and good.agreement == 1 and good.error == 0
    assert good.sensitivity == pytest.approx(1) and good.distance == pytest.approx(1.18, abs=0.08)
    half = toys.figures(data[labels < 4], data[labels < 4], 1.0, data[labels < 4], data, mixture)
    assert half.recall == 0.5 and half.sensitivity == 0 and half.energy > 0.1
    blurred = toys.figures(0.6 * data, 0.6 * data, 1.0, data, data, mixture)
    assert blurred.quality < 0.05 and blurred.distance > 3
    turned = data @ np.array([[0.0, 1.0], [-1.0, 0.0]])  # as good, but every noise at another mode
    moved = toys.figures(turned, turned, 1.0, data, data, mixture)
    assert moved.quality > 0.98 and moved.agreement < 0.05
    assert len(toys.table([("x", 4, good), ("y", 2, half)]).splitlines()) == 4
