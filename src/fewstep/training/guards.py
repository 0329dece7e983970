"""Guards of the loop: steps with non-finite numbers are skipped, out-of-memory gets a useful message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fewstep.errors import RunError


@dataclass(slots=True)
class NonFiniteGuard:
    """Counts the skipped optimiser steps of one role.

    ``skipped`` counts non-finite losses or gradients in all, ``in_a_row`` those since the last good step;
    ``overflows`` counts the steps that a float16 scaler skipped, which is how it finds its scale.
    """

    limit: int
    skipped: int = 0
    in_a_row: int = 0
    overflows: int = 0

    def step_is_good(self, finite: bool, *, scaler_will_skip: bool = False) -> bool:
        """Count one step; False means that it must not be taken."""
        if finite:
            self.in_a_row = 0
            return True
        if scaler_will_skip:
            self.overflows += 1
        else:
            self.skipped += 1
            self.in_a_row += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether the run must stop: ``limit`` steps in a row were skipped."""
        return self.in_a_row >= self.limit

    def counts(self) -> dict[str, int]:
        """What a checkpoint keeps of this guard."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "overflows": self.overflows}

    def restore(self, counts: dict[str, int]) -> None:
        """Take up the counts of a checkpoint."""
        self.skipped, self.in_a_row, self.overflows = (
            int(counts[key]) for key in ("skipped", "in_a_row", "overflows")
        )


@contextlib.contextmanager
def out_of_memory(batch_size: int, accumulation: int) -> Iterator[None]:
    """Turn an allocation failure into a `RunError` that says which settings need less memory.

    The step it happened in is lost, and nothing is saved after it: checkpoints on disk stay as they were.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory with {batch_size} images a step in {accumulation} part(s); "
            f"resume with --set runtime.accumulation={accumulation * 2} --override, "
            "or set a smaller data.batch_size or runtime.gradient_checkpointing=true"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of host or device memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    # The CPU allocator raises plain RuntimeErrors, and oneDNN does not say why a layer could not be set up;
    # for layers that worked a step before, that is memory.
    return any(sign in text for sign in _SIGNS)


_SIGNS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "could not create a memory",
    "could not create a primitive",
)
