"""Points of a Gaussian mixture as a dataset: the data of toy recipes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fewstep.diffusion.toys import GaussianMixture

COUNT = 1 << 20
"""Nominal length; every index is a point of its own."""


class MixturePoints:
    """``latents`` (1, D) and ``classes`` (1,) of points that are drawn when they are asked for.

    Args:
        mixture: what to draw from; its labels are the classes.
        seed: point i is the same for the same seed.
    """

    def __init__(self, mixture: GaussianMixture, seed: int = 0) -> None:
        self.mixture, self.seed = mixture, seed

    def __len__(self) -> int:
        """Nominal number of points."""
        return COUNT

    def batch(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The points with these indices; ``rng`` is not used."""
        drawn = [self.mixture.sample(np.random.default_rng([self.seed, int(i)]), 1) for i in indices]
        points, labels = (np.concatenate(part) for part in zip(*drawn, strict=True))
        return {"latents": points.astype(np.float32), "classes": labels.astype(np.int64)}

    def fingerprint(self) -> str:
        """Of the mixture and the seed."""
        digest = hashlib.sha256(str(self.seed).encode())
        for array in (self.mixture.means, self.mixture.stds, self.mixture.weights, self.mixture.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
