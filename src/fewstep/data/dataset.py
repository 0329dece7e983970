"""What training asks of data, and what a latent cache asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Batch = dict[str, Any]
"""Arrays by name. `pixels` float32 (B, 3, H, W) in [-1, 1]; `captions` list of B strings; from a latent cache
`latents` float32 (B, C, h, w) after scaling, `text` float32 (B, L, D), `uncond` float32 (L, D); from labelled
drawings `concept` and `style` int64 (B,) and `candidates` float32 (K, D)."""


class Dataset(Protocol):
    """Samples that are drawn by index; everything random comes from the generator of the call.

    A batch of n draws the same as n batches of one with the same generator, in the same order.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return the samples of `indices` (B,), each in [0, len)."""
        ...

    def fingerprint(self) -> str:
        """Return a hash (hex digits) of everything that decides what the samples are."""
        ...


class Encodable(Protocol):
    """Samples without randomness, which a latent cache encodes once."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def pixels(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return images float32 (B, 3, H, W) in [-1, 1]."""
        ...

    def captions(self, index: int) -> Sequence[str]:
        """Return the caption variants of one sample, the same number for every sample."""
        ...

    def mirrorable(self, index: int) -> bool:
        """Say whether a mirrored image still fits the captions ("left arrow" does not)."""
        ...

    def fingerprint(self) -> str:
        """Return a hash (hex digits) of all samples."""
        ...
