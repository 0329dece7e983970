"""Times and weights as a recipe's sections say: `sample_t` and `weight` with the options of the file."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.diffusion.noise_levels import sample_t
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.weighting import weight
from fewstep.training.sections import NoiseLevels, Weighting

Times = np.ndarray[Any, np.dtype[np.float64]]


def times(levels: NoiseLevels, rng: np.random.Generator, count: int, schedule: Schedule) -> Times:
    """(count,), on the schedule's own scale.

    Raises:
        TypeError, ValueError: options that the distribution does not have.
    """
    options: dict[str, Any] = dict(levels.options)
    return np.asarray(sample_t(levels.kind, rng, count, schedule, **options), np.float64)


def weights(section: Weighting, t: Times, schedule: Schedule, prediction_type: str) -> Times | None:
    """(B,) for times (B,); None is 1 everywhere.

    Raises:
        TypeError, ValueError: options that the weighting does not have.
    """
    options: dict[str, Any] = dict(section.options)
    if section.kind == "unit" and not options:
        return None
    return np.asarray(weight(section.kind, t, schedule, prediction_type, **options), np.float64)
