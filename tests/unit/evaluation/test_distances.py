from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fewstep.errors import DataError, UsageError
from fewstep.evaluation.distances import fid, fid_caution, kid


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(shape)


def exact_sample(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose sample mean and (n - 1) covariance are exactly the given ones."""
    rows = normals(count, len(mean), seed=seed)
    rows -= rows.mean(axis=0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def some_covariance(dims: int, seed: int) -> np.ndarray:
    root = normals(dims, dims, seed=seed)
    return root @ root.T / dims + 0.1 * np.eye(dims)


def test_fid_of_gaussians_with_commuting_covariances() -> None:
    # |m|^2 + sum of (sqrt(a) - sqrt(b))^2
    first = exact_sample(50, np.zeros(4), np.diag([1.0, 4.0, 9.0, 0.25]), seed=0)
    second = exact_sample(70, np.array([1.0, 0.0, -2.0, 0.5]), np.diag([1.0, 1.0, 16.0, 4.0]), seed=1)
    expected = 1 + 4 + 0.25 + (0 + 1 + 1 + 1.5**2)
    assert fid(first, second) == pytest.approx(expected, rel=1e-9)


def test_fid_of_gaussians_with_any_covariances() -> None:
    a, b, shift = some_covariance(6, 2), some_covariance(6, 3), normals(6, seed=4)
    first, second = exact_sample(40, np.zeros(6), a, seed=5), exact_sample(60, shift, b, seed=6)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert fid(first, second) == pytest.approx(expected, rel=1e-8)


def test_fid_is_symmetric_and_0_for_equal_sets() -> None:
    first, second = normals(30, 5), 2 * normals(40, 5, seed=1)
    assert fid(first, second) == pytest.approx(fid(second, first), rel=1e-9)
    assert fid(first, first[::-1]) == pytest.approx(0, abs=1e-9)


def test_fid_does_not_suffer_from_a_common_shift() -> None:
    first, second = normals(30, 5), 2 * normals(40, 5, seed=1) + 0.3
    assert fid(first + 1e6, second + 1e6) == pytest.approx(fid(first, second), rel=1e-6)


def test_fid_of_float32_is_computed_in_double_precision() -> None:
    first = normals(30, 5).astype(np.float32)
    second = (2 * normals(40, 5, seed=1)).astype(np.float32)
    assert fid(first, second) == pytest.approx(fid(first.astype(float), second.astype(float)), rel=1e-12)


def test_fid_of_few_pictures_is_too_high_and_a_caution_says_so() -> None:
    first, second = normals(20, 40), normals(20, 40, seed=1)  # the same distribution: the distance is 0
    assert fid(first, second) > 20
    caution = fid_caution(20, 500, 40)
    assert caution is not None
    assert "20 pictures in 40 features" in caution
    assert "\n" not in caution
    assert fid_caution(40, 500, 40) is not None
    assert fid_caution(500, 40, 40) is not None
    assert fid_caution(41, 41, 40) is None


def test_kid_of_gaussians_is_the_closed_form() -> None:
    # x ~ N(0, I), y ~ N(mu, I) in d dimensions, m = |mu|^2. Moments of the inner products: E (x.x')^2 = d,
    # E (x.y)^2 = d + m, and y.y' has the mean m, the variance v = 2m + d, the third central moment 6m.
    d, mu = 3, np.array([1.0, -1.5, 0.5])
    m = mu @ mu
    v = 2 * m + d
    k_xx, k_xy = 1 + 3 * d / d**2, 1 + 3 * (d + m) / d**2
    k_yy = 1 + 3 * m / d + 3 * (m**2 + v) / d**2 + (m**3 + 3 * m * v + 6 * m) / d**3
    # Gauss-Hermite nodes, repeated by their weights, have a Gaussian's moments up to the fifth: pairs of all
    # rows give the expectations exactly. The unbiased estimate leaves out the pairs of a row with itself.
    nodes = np.sqrt(3) * np.array([-1.0, 0, 0, 0, 0, 1])
    x = np.stack(np.meshgrid(*[nodes] * d), axis=-1).reshape(-1, d)
    n = len(x)

    def without_itself(expectation: float, rows: np.ndarray) -> float:
        itself = (np.square(rows).sum(axis=1) / d + 1) ** 3
        return (n**2 * expectation - itself.sum()) / (n * (n - 1))

    expected = without_itself(k_xx, x) + without_itself(k_yy, x + mu) - 2 * k_xy
    assert kid(x, x + mu, subsets=1, subset_size=n).mean == pytest.approx(expected, rel=1e-9)


def test_kid_is_the_unbiased_estimate_of_few_pictures() -> None:
    first, second = normals(6, 3), normals(6, 3, seed=1) + 0.5

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 3 + 1) ** 3

    off_diagonal = ~np.eye(6, dtype=bool)
    expected = (
        kernel(first, first)[off_diagonal].mean()
        + kernel(second, second)[off_diagonal].mean()
        - 2 * kernel(first, second).mean()
    )
    assert kid(first, second, subsets=3, subset_size=6) == pytest.approx((expected, 0), abs=1e-12)


def test_kid_of_one_distribution_is_about_0_however_small_the_subsets() -> None:
    found = kid(normals(2000, 4), normals(2000, 4, seed=1), subsets=2000, subset_size=4)
    assert found.mean == pytest.approx(0, abs=4 * found.std / 2000**0.5)
    assert found.std > 0.5  # a biased estimate would be about 2.6 / 4 too high


def test_kid_depends_on_its_seed_only_and_leaves_torch_alone() -> None:
    first, second = normals(50, 4), normals(50, 4, seed=1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = kid(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert kid(first, second) == found
    assert kid(first, second, seed=1) != found
    assert kid(first, second, subset_size=25) == found  # the default: half the smaller set
    assert found.std > 0


@pytest.mark.parametrize("distance", [fid, kid])
def test_distances_use_one_thread_and_give_the_others_back(distance, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    distance(normals(9, 3), normals(9, 3, seed=1))
    assert asked == [1, 5]


@pytest.mark.parametrize("distance", [fid, kid])
def test_what_has_no_distance_is_refused(distance) -> None:
    with pytest.raises(UsageError, match=r"give \(N, F\) and \(M, F\)"):
        distance(normals(5, 3), normals(5, 4))
    with pytest.raises(UsageError, match="two pictures or more"):
        distance(normals(5, 3), normals(1, 3))
    with pytest.raises(DataError, match="not finite"):
        distance(normals(5, 3), np.full((5, 3), np.nan))


def test_kid_refuses_subsets_that_are_larger_than_a_set() -> None:
    with pytest.raises(UsageError, match="of 2 to 5 pictures"):
        kid(normals(8, 3), normals(5, 3), subset_size=6)
    with pytest.raises(UsageError, match="1 subset or more"):
        kid(normals(8, 3), normals(5, 3), subsets=0)
