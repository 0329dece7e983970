"""What a distillation method is to a stage: its critics, its random draws, and two losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.distillation.roles import Teacher, ask
from fewstep.models.conditions import Conditions
from fewstep.training.task import Role

Terms = dict[str, Tensor]
"""Detached values of shape (B,) or () to log."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a loss may look at, for a part of a batch.

    Attributes:
        x0: clean data (B, ...).
        drawn: what the method's `Method.draw` gave, by its names: float64 on the host, float32 as tensors.
        conditions: of the B images.
        null: the empty caption or class, for guidance; None where there is none.
        step: optimiser steps done before this batch.
        rng: on the host; the same numbers for every role and process in this batch.
        student: called as ``student(x_t, model_time, conditions)``.
        student_type: what its output means.
        teacher: the teacher.
        schedule: of all times.
        networks: the method's critics, as they are to be called.
        shared: lives for this part of the batch: what the student's loss computed and the critics use again.
    """

    x0: Tensor
    drawn: Mapping[str, Any]
    conditions: Conditions
    null: Conditions | None
    step: int
    rng: np.random.Generator
    student: nn.Module
    student_type: str
    teacher: Teacher
    schedule: Schedule
    networks: Mapping[str, nn.Module]
    shared: dict[str, Any] = field(default_factory=dict)

    def predict(self, x_t: Tensor, t: FloatArray, conditions: Conditions | None = None) -> Prediction:
        """The student's estimate at (x_t, t), with its graph."""
        told = self.conditions if conditions is None else conditions
        return ask(self.student, x_t, t, told, self.schedule, self.student_type)


class Method(Protocol):
    """A distillation method in a stage; one file per method has its class."""

    roles: Mapping[str, Role]
    """Networks that it brings along and trains, by the names that `critic_loss` is called with."""

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """What is random about one image, every array with a batch axis of 1.

        Args:
            shape: of the image's data, with a batch axis of 1.
            rng: derived from (seed, images seen).
        """
        ...

    def critics(self, step: int) -> Sequence[str]:
        """Names out of ``roles`` that this batch trains."""
        ...

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """The student's loss (B,), before the weight of the method."""
        ...

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """The loss (B,) of one of ``roles``; the student has no part in it."""
        ...

    def contract(self, base: SamplingContract) -> SamplingContract:
        """How the student is to be sampled, given how the teacher is."""
        ...


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Standard normal float32 of a shape."""
    return rng.standard_normal(shape, dtype=np.float32)


def indices(drawn: Any) -> np.ndarray[Any, Any]:
    """Drawn indices, which travel as float64 so that they stay on the host, as integers."""
    return np.asarray(drawn).astype(np.int64)
