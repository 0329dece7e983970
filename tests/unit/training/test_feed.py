from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import tiny_runs

from fewstep.errors import DataError
from fewstep.training.feed import Fed, Plan, collate, feed


def draw(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**sample, "noise": rng.standard_normal(sample["latents"].shape)}


def take(count: int, plan: Plan, start: int = 0, prefetch: int = 0, data: Any = None) -> list[Fed]:
    batches = feed(data or tiny_runs.Latents(10), draw, plan, start=start, prefetch=prefetch, timeout=20)
    taken = list(itertools.islice(batches, count))
    batches.close()  # type: ignore[attr-defined]
    return taken


def rows(fed: list[Fed], key: str) -> np.ndarray:
    return np.concatenate([part[key] for one in fed for part in one.parts])


def test_samples_are_joined_and_the_empty_caption_is_kept_once() -> None:
    one = tiny_runs.Latents().batch(np.array([1]), np.random.default_rng(0))
    two = tiny_runs.Latents().batch(np.array([2]), np.random.default_rng(0))
    joined = collate([one, two])
    assert joined["latents"].shape == (2, 2, 4, 4) and joined["uncond"].shape == (3, 8)
    assert joined["captions"] == ["drawing 1", "drawing 2"]


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_t08_the_order_is_that_of_images_seen_with_any_number_of_workers(prefetch: int) -> None:
    whole = take(5, Plan(7, 4), prefetch=prefetch)
    indices = [index for fed in whole for index in fed.indices]
    assert sorted(indices[:10]) == sorted(indices[10:20]) == list(range(10))  # each once per epoch
    assert indices[:10] != indices[10:20]
    resumed = take(3, Plan(7, 4), start=8, prefetch=prefetch)
    assert [fed.indices for fed in resumed] == [fed.indices for fed in whole[2:]]
    for key in ("latents", "noise"):
        np.testing.assert_array_equal(rows(resumed, key), rows(whole[2:], key))


@pytest.mark.parametrize(("parts", "world"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_splitting_a_batch_changes_no_image(parts: int, world: int) -> None:
    whole = take(4, Plan(7, 4))
    ranks = [take(4, Plan(7, 4, parts, rank, world)) for rank in range(world)]
    for step in range(4):
        for key in ("latents", "noise", "text"):
            joined = np.concatenate([rows([rank[step]], key) for rank in ranks])
            np.testing.assert_array_equal(joined, rows([whole[step]], key))
        assert len(ranks[0][step].parts) == parts


def test_another_seed_is_another_order() -> None:
    assert [f.indices for f in take(3, Plan(1, 4))] != [f.indices for f in take(3, Plan(2, 4))]


class Trouble(tiny_runs.Latents):
    """Does something bad at sample 3."""

    def __init__(self, trouble: Any) -> None:
        super().__init__(10)
        self.trouble = trouble

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        if 3 in indices:
            self.trouble()
        return super().batch(indices, rng)


def test_t17_a_hanging_loader_is_an_error_that_names_the_sample() -> None:
    release = threading.Event()
    data = Trouble(lambda: release.wait(30))
    batches = feed(data, draw, Plan(0, 2), start=0, prefetch=2, timeout=0.3)
    try:
        with pytest.raises(DataError, match=r"sample 3: not loaded within 0\.3 s"):
            list(itertools.islice(batches, 10))
    finally:
        release.set()


def fail(error: BaseException) -> None:
    raise error


# With no thread (0) SystemExit means what it always means.
@pytest.mark.parametrize(
    ("prefetch", "error"),
    [(0, OSError("disk gone")), (2, OSError("disk gone")), (2, ValueError("bad")), (2, SystemExit(3))],
)
def test_t17_a_dying_loader_is_an_error_that_names_the_sample(prefetch: int, error: BaseException) -> None:
    with pytest.raises(DataError, match=rf"sample 3: cannot be loaded \({type(error).__name__}"):
        take(10, Plan(0, 2), prefetch=prefetch, data=Trouble(lambda: fail(error)))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_our_own_errors_pass_unchanged(prefetch: int) -> None:
    with pytest.raises(DataError, match=r"^too many bad samples$"):
        take(10, Plan(0, 2), prefetch=prefetch, data=Trouble(lambda: fail(DataError("too many bad samples"))))


def test_the_thread_ends_with_its_reader() -> None:
    before = threading.active_count()
    take(2, Plan(0, 2), prefetch=1)
    assert threading.active_count() == before
