from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.data import order
from fewstep.errors import UsageError


def test_every_epoch_is_a_new_permutation() -> None:
    first, second = order.indices(0, 0, 50, 50), order.indices(0, 50, 50, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, order.indices(1, 0, 50, 50))


@given(
    seed=st.integers(0, 2**40),
    seen=st.integers(0, 200),
    a=st.integers(0, 60),
    b=st.integers(0, 60),
    size=st.integers(1, 40),
)
def test_order_does_not_depend_on_batch_size(seed: int, seen: int, a: int, b: int, size: int) -> None:
    whole = order.indices(seed, seen, a + b, size)
    parts = np.concatenate([order.indices(seed, seen, a, size), order.indices(seed, seen + a, b, size)])
    assert np.array_equal(whole, parts)
    assert whole.dtype == np.int64 and whole.shape == (a + b,)


def test_order_is_frozen() -> None:
    # A change here makes old runs resume in another order: it must be a decision, not an accident.
    assert order.indices(0, 0, 8, 10).tolist() == [5, 9, 8, 3, 4, 7, 1, 2]
    assert order.sample_rng(0, 5).integers(0, 1000, 3).tolist() == [521, 998, 832]


def test_the_caller_cannot_spoil_the_next_answer() -> None:
    before = order.indices(3, 0, 10, 10).tolist()
    order.indices(3, 0, 10, 10)[:] = 0
    assert order.indices(3, 0, 10, 10).tolist() == before


@pytest.mark.parametrize("arguments", [(0, 0, 1, 0), (-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, -1, 1)])
def test_bad_arguments(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        order.indices(*arguments)


def test_sample_rng_differs_between_samples_and_seeds() -> None:
    draws = {order.sample_rng(s, p).random() for s in range(3) for p in range(5)}
    assert len(draws) == 15
