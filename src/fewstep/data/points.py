"""Points of a Gaussian mixture as a dataset: the data of toy recipes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fewstep.diffusion.toys import GaussianMixture

COUNT = 1 << 16


class MixturePoints:
    """``latents`` (1, D) and ``classes`` (1,) of points that are drawn once.

    Args:
        mixture: what to draw from; its labels are the classes.
        seed: the same points for the same seed.
        count: how many.
    """

    def __init__(self, mixture: GaussianMixture, seed: int = 0, count: int = COUNT) -> None:
        points, labels = mixture.sample(np.random.default_rng([seed, 0x706F696E]), count)
        self.points, self.labels = points.astype(np.float32), labels.astype(np.int64)

    def __len__(self) -> int:
        """Number of points."""
        return len(self.points)

    def batch(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        """The points with these indices; ``rng`` is not used."""
        return {"latents": self.points[indices], "classes": self.labels[indices]}

    def fingerprint(self) -> str:
        """Of points and labels."""
        return hashlib.sha256(self.points.tobytes() + self.labels.tobytes()).hexdigest()
