from __future__ import annotations

import numpy as np
import pytest

from fewstep.errors import DataError, UsageError
from fewstep.evaluation import manifolds
from fewstep.evaluation.manifolds import density_coverage, inside, nearest, precision_recall, radii


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape)


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def plain_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.linalg.norm(first[:, None] - second, axis=-1)


def test_nearest_equals_comparing_all(monkeypatch) -> None:
    monkeypatch.setattr(manifolds, "_BLOCK", 100)  # many blocks
    queries, references = normals(37, 5) + 100, normals(23, 5, seed=1) + 100
    found = nearest(queries, references, k=4)
    distances = plain_distances(queries, references)
    np.testing.assert_array_equal(found.row, np.argsort(distances, axis=1)[:, :4])
    np.testing.assert_allclose(found.distance, np.sort(distances, axis=1)[:, :4], rtol=1e-9)
    assert found.row.dtype == np.int64


def test_a_query_among_the_references_finds_itself_at_distance_0() -> None:
    references = (normals(50, 64) + 3).astype(np.float32)
    row, distance = nearest(references, references)
    assert row[:, 0].tolist() == list(range(50))
    assert (distance == 0).all()


def test_of_equal_references_the_first_is_named() -> None:
    found = nearest(column(0.9), column(0, 1, 1, 2), k=3)
    assert found.row.tolist() == [[1, 2, 0]]
    assert found.distance == pytest.approx(np.array([[0.1, 0.1, 0.9]]))
    rings = column(*([1, -1, 2, 1] * 250))
    assert nearest(column(0), rings, k=4).row.tolist() == [[0, 1, 3, 4]]


def test_radii_reach_to_the_kth_other_point() -> None:
    points = column(0, 1, 3, 7)
    assert radii(points, k=1) == pytest.approx([1, 1, 2, 4])
    assert radii(points, k=2) == pytest.approx([3, 2, 3, 6])
    assert radii(column(0, 0, 5), k=1) == pytest.approx([0, 0, 5])


def test_precision_and_recall_on_a_line() -> None:
    # k = 1: real balls [-1, 1], [0, 2], [1, 19]; generated balls [0.5, 2.5], [1.5, 3.5], [2.5, 77.5]
    real, fake = column(0, 1, 10), column(1.5, 2.5, 40)
    assert inside(fake, real, k=1).tolist() == [True, True, False]
    assert inside(real, fake, k=1).tolist() == [False, True, True]
    assert precision_recall(real, fake, k=1) == pytest.approx((2 / 3, 2 / 3))


def test_invented_pictures_cost_precision_and_missing_ones_recall() -> None:
    left, right = normals(60, 3), normals(60, 3, seed=1) + 50
    both = np.concatenate([left, right])
    half = normals(60, 3, seed=2)
    dropped = precision_recall(both, half)
    assert dropped.precision > 0.8
    assert dropped.recall < 0.5
    invented = precision_recall(half, both)
    assert invented == pytest.approx((dropped.recall, dropped.precision))
    assert precision_recall(left, right) == (0, 0)
    assert precision_recall(left, left) == (1, 1)


def test_density_and_coverage_on_a_line() -> None:
    # k = 1, real balls [-1, 1], [0, 2], [1, 19]: 0.5 and 1.5 lie in two each, 30 in none
    real = column(0, 1, 10)
    assert density_coverage(real, column(0.5, 1.5, 30), k=1) == pytest.approx((4 / 3, 1))
    assert density_coverage(real, column(15, 30), k=1) == pytest.approx((1 / 2, 1 / 3))
    assert density_coverage(real, column(0.5, 1.5, 30), k=2).density == pytest.approx(1)  # 6 / (2 * 3)


def test_density_and_coverage_of_one_distribution_are_the_closed_forms() -> None:
    # The n - 1 + m other points around a real one are exchangeable: its k nearest are all real with
    # probability C(n - 1, k) / C(n - 1 + m, k), and a generated one is nearer than the k-th of
    # n - 1 with k / n.
    n, m, k, trials = 30, 20, 3, 60
    found = np.array(
        [
            density_coverage(normals(n, 4, seed=2 * t), normals(m, 4, seed=2 * t + 1), k=k)
            for t in range(trials)
        ]
    )
    uncovered = np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    error = 4 * found.std(axis=0) / np.sqrt(trials)
    assert found[:, 0].mean() == pytest.approx(1, abs=error[0])
    assert found[:, 1].mean() == pytest.approx(1 - uncovered, abs=error[1])
    assert error.max() < 0.2


def test_what_has_no_neighbours_is_refused() -> None:
    with pytest.raises(UsageError, match=r"4 neighbours .* among 3 pictures"):
        precision_recall(normals(3, 2), normals(9, 2), k=3)
    with pytest.raises(UsageError, match="0 neighbours"):
        nearest(normals(3, 2), normals(3, 2), k=0)
    with pytest.raises(UsageError, match=r"give \(M, F\) and \(N, F\)"):
        nearest(normals(3, 2), normals(3, 4))
    with pytest.raises(DataError, match="not finite"):
        inside(np.full((2, 2), np.inf), normals(9, 2))
