"""Which samples come when: a pure function of (seed, images seen), so resuming needs no saved state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError

_ORDER_STREAM = 0x6F72646572  # "order": keeps this generator apart from every other user of the same seed
_SAMPLE_STREAM = 0x73616D706C65  # "sample"


# A batch that straddles two epochs needs two permutations; ranks and tests ask for the same one again.
@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, _ORDER_STREAM])))
    order = rng.permutation(size).astype(np.int64)
    order.flags.writeable = False
    return order


def indices(seed: int, images_seen: int, count: int, size: int) -> NDArray[np.int64]:
    """Return the dataset indices of the next `count` images of a run.

    Epoch e (images e*size to (e+1)*size - 1) is one permutation of the whole set, a new one for every epoch;
    a batch may straddle two epochs. The answer for (seed, n, a + b) is that for (seed, n, a) followed by that
    for (seed, n + a, b), so batch size, accumulation and number of processes do not change the order.

    Args:
        seed: seed of the run, 0 or more.
        images_seen: images that were consumed before this batch, 0 or more.
        count: how many indices are wanted, 0 or more.
        size: number of samples in the dataset, at least 1.

    Returns:
        int64 array (count,), values in [0, size).

    Raises:
        UsageError: a negative argument or an empty dataset.
    """
    if size < 1:
        raise UsageError(f"dataset size is {size}: an empty dataset has no order, add samples")
    if seed < 0 or images_seen < 0 or count < 0:
        raise UsageError(
            f"seed {seed}, images_seen {images_seen}, count {count}: none may be negative, give 0 or more"
        )
    parts: list[NDArray[np.int64]] = []
    position, end = images_seen, images_seen + count
    while position < end:
        epoch, offset = divmod(position, size)
        taken = min(size - offset, end - position)
        parts.append(_permutation(seed, epoch, size)[offset : offset + taken])
        position += taken
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """Return the generator for what is drawn at random about image number `position` of a run.

    One generator per image, not per batch, keeps crops, flips and captions the same however the images are
    split into batches and processes.

    Args:
        seed: seed of the run, 0 or more.
        position: number of images consumed before this one, 0 or more.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, position, _SAMPLE_STREAM])))
