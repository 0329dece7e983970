"""Batches in a fixed order: addressed by images seen, drawn per image, prepared ahead by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fewstep.errors import DataError, FewstepError

_STEP_STREAM = 0x73746570  # "step": apart from the data's own streams of the same seed
_UNBATCHED = frozenset({"uncond", "candidates"})  # the same for every image


class Dataset(Protocol):
    """What the loop asks of a dataset; `fewstep.data` has the implementations."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The samples ``indices``; what is random about them (crop, caption) comes from ``rng``."""
        ...

    def fingerprint(self) -> str:
        """Changes when the data change."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Which images a process takes: its slice of every global batch, cut into accumulated parts."""

    seed: int
    batch_size: int
    parts: int = 1
    rank: int = 0
    world: int = 1

    def positions(self, images_seen: int) -> list[range]:
        """Positions in the run of the images of each part, for the batch that starts at ``images_seen``."""
        share = self.batch_size // self.world
        start = images_seen + self.rank * share
        part = share // self.parts
        return [range(start + i * part, start + (i + 1) * part) for i in range(self.parts)]


@dataclass(frozen=True, slots=True)
class Fed:
    """One batch of this process: its parts on the host, and where they came from for diagnostics."""

    images_seen: int
    parts: list[dict[str, Any]]
    indices: list[int]


def step_rng(seed: int, position: int) -> np.random.Generator:
    """The generator of what a task draws for image number ``position`` of a run."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, position, _STEP_STREAM])))


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join samples of batch axis 1: arrays are concatenated, lists joined, ``uncond`` is taken once."""
    joined: dict[str, Any] = {}
    for key, first in samples[0].items():
        if key in _UNBATCHED:
            joined[key] = first
        elif isinstance(first, list):
            joined[key] = [item for sample in samples for item in sample[key]]
        else:
            joined[key] = np.concatenate([sample[key] for sample in samples])
    return joined


def feed(
    dataset: Dataset,
    draw: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
    plan: Plan,
    *,
    start: int,
    prefetch: int = 0,
    timeout: float = 300.0,
) -> Iterator[Fed]:
    """Yield the batches from ``start`` images on, without end and the same for every ``prefetch``.

    Args:
        dataset: the samples.
        draw: `fewstep.training.task.Task.draw`.
        plan: this process's share.
        start: images seen before the first batch.
        prefetch: batches prepared ahead by a background thread; 0 for none.
        timeout: seconds to wait for a batch of the thread.

    Raises:
        DataError: a sample could not be loaded, or the thread hangs or died; the message names the sample.
    """
    loading: dict[str, int] = {}
    if prefetch == 0:
        return _batches(dataset, draw, plan, start, loading)
    return _ahead(_batches(dataset, draw, plan, start, loading), prefetch, timeout, loading)


def _batches(
    dataset: Dataset,
    draw: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
    plan: Plan,
    start: int,
    loading: dict[str, int],
) -> Iterator[Fed]:
    from fewstep.data import order

    size = len(dataset)
    seen = start
    while True:
        parts, taken = [], []
        for positions in plan.positions(seen):
            indices = order.indices(plan.seed, positions.start, len(positions), size)
            samples = []
            for position, index in zip(positions, indices, strict=True):
                loading["index"] = int(index)
                # One image at a time: what is random about it must not depend on how batches are cut.
                try:
                    sample = dataset.batch(np.array([index]), order.sample_rng(plan.seed, position))
                    samples.append(draw(sample, step_rng(plan.seed, position)))
                except (FewstepError, MemoryError):
                    raise
                except Exception as error:
                    raise DataError(_reason(index, error)) from error
            parts.append(collate(samples))
            taken += [int(index) for index in indices]
        yield Fed(seen, parts, taken)
        seen += plan.batch_size


def _ahead(batches: Iterator[Fed], depth: int, timeout: float, loading: dict[str, int]) -> Iterator[Fed]:
    ready: queue.Queue[Fed | BaseException] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: Fed | BaseException) -> None:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in batches:
                put(item)
                if closed.is_set():
                    return
        except BaseException as error:  # also SystemExit: the loop must hear of it
            put(error)

    thread = threading.Thread(target=work, name="fewstep-feed", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item = ready.get(timeout=timeout)
            except queue.Empty:
                raise DataError(
                    f"sample {loading.get('index')}: not loaded within {timeout:g} s; look at this sample, "
                    "or raise runtime.prefetch_timeout"
                ) from None
            if isinstance(item, FewstepError | MemoryError):
                raise item
            if isinstance(item, BaseException):
                raise DataError(_reason(loading.get("index"), item)) from item
            yield item
    finally:
        closed.set()
        thread.join(timeout=1.0)


def _reason(index: object, error: BaseException) -> str:
    return (
        f"sample {index}: cannot be loaded ({type(error).__name__}: {error}); correct or remove this sample"
    )
