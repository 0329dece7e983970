"""Distances between two sets of pictures by their features: FID and KID, computed by torchmetrics.

Both compare distributions, so they see lack of variety as well as bad pictures, and say nothing about
prompts. A figure belongs to its feature network and to its numbers of pictures: compare only figures that
share both.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import DataError, UsageError

Features = NDArray[np.floating[Any]]
"""(N, F), one row a picture."""

KID_SUBSET: Final = 1000


class Kid(NamedTuple):
    """Kernel inception distance.

    Attributes:
        mean: over subsets; unbiased, so about 0, and as often below as above, for equal distributions.
        std: between subsets: the spread of an estimate from that few pictures, not the error of the mean.
    """

    mean: float
    std: float


def fid(real: Features, fake: Features) -> float:
    """Fréchet distance between Gaussians with the sets' means and covariances (Heusel 2017, equation 6).

    Heusel et al. 2017 (arXiv 1706.08500). It is biased upwards, the more the fewer pictures there are
    (Bińkowski 2018, arXiv 1801.01401, section 4), hence also in bootstrap draws; :func:`fid_caution` says
    when it is hopeless. Computed in float64, of features centred on the mean of both sets: the distance does
    not change with a common shift, the covariances lose digits with it.

    Args:
        real: (N, F), at least 2 rows.
        fake: (M, F), at least 2 rows.

    Returns:
        0 or more (up to rounding), in squared units of the features.

    Raises:
        UsageError: other shapes or too few rows.
        DataError: features that are not finite.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    first, second = _checked(real, fake)
    passing: Any = torch.nn.Identity()
    passing.num_features = first.shape[1]
    metric = FrechetInceptionDistance(feature=passing)
    with _one_thread():
        metric.update(torch.from_numpy(first), real=True)
        metric.update(torch.from_numpy(second), real=False)
        return float(metric.compute())


def fid_caution(real: int, fake: int, dims: int) -> str | None:
    """What to print beside a FID of these numbers of pictures, one line; None when there is nothing to say.

    Args:
        real: number of real pictures.
        fake: number of generated ones.
        dims: number of features.
    """
    fewest = min(real, fake)
    if fewest > dims:
        return None
    return (
        f"FID of {fewest} pictures in {dims} features: the covariance has at most rank {fewest - 1}, so the "
        f"figure is far too high and only comparable at the same numbers; take more than {dims} pictures, or "
        f"read KID"
    )


def kid(
    real: Features,
    fake: Features,
    subsets: int = 100,
    subset_size: int | None = None,
    *,
    seed: int = 0,
) -> Kid:
    """Squared maximum mean discrepancy with the kernel (x . y / F + 1)^3, its unbiased estimate.

    Bińkowski et al. 2018 (arXiv 1801.01401), section 4; the estimator is that of Gretton 2012.

    Args:
        real: (N, F).
        fake: (M, F).
        subsets: how many random subsets the mean is taken over.
        subset_size: pictures of each set in a subset, 2 or more, at most min(N, M). Default: half the smaller
            set, at most 1000. The whole set would make all subsets equal and ``std`` 0.
        seed: of the subsets; the caller's global random state stays as it was.

    Raises:
        UsageError: other shapes, or a subset that is larger than a set.
        DataError: features that are not finite.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    first, second = _checked(real, fake, centre=False)
    fewest = min(len(first), len(second))
    size = subset_size if subset_size is not None else max(2, min(KID_SUBSET, fewest // 2))
    if subsets < 1 or not 2 <= size <= fewest:
        raise UsageError(
            f"KID of {subsets} subsets of {size} of {fewest} pictures: give 1 subset or more, of 2 to "
            f"{fewest} pictures"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        metric = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=subsets, subset_size=size)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        mean, std = metric.compute()
    return Kid(float(mean), float(std))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The same bits whatever the number of cores; and threads cost small matrices more than they bring."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checked(
    real: Features, fake: Features, *, centre: bool = True
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    shapes_fit = first.ndim == 2 and second.ndim == 2 and first.shape[1:] == second.shape[1:] != (0,)
    if not shapes_fit or min(len(first), len(second)) < 2:
        raise UsageError(
            f"features of shape {first.shape} and {second.shape}: give (N, F) and (M, F), two pictures or "
            f"more of each"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("features that are not finite: the feature network or its pictures are broken")
    if centre:
        middle = (first.sum(axis=0) + second.sum(axis=0)) / (len(first) + len(second))
        return first - middle, second - middle
    return np.ascontiguousarray(first), np.ascontiguousarray(second)
