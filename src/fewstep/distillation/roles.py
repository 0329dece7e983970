"""The cast of a stage: who teaches, who learns, and how either is asked for a prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.prediction import Denoiser, Prediction, to_prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.toys import GaussianMixture
from fewstep.errors import UsageError
from fewstep.models.conditions import Conditions, joined

Guidance = float | FloatArray
"""A scale, or one per image (B,); 1 is no guidance."""


class Teacher(Protocol):
    """Whoever says where a trajectory goes."""

    @property
    def prediction_type(self) -> str:
        """What its output means, or would mean if it had one."""
        ...

    def denoiser(
        self,
        conditions: Conditions,
        null: Conditions | None = None,
        scale: Guidance = 1.0,
        rescale: float = 0.0,
    ) -> Denoiser:
        """The denoiser under conditions, guided away from ``null`` by ``scale``."""
        ...


def ask(
    module: nn.Module,
    x_t: Tensor,
    t: FloatArray,
    conditions: Conditions,
    schedule: Schedule,
    prediction_type: str,
) -> Prediction:
    """A network's estimate of clean data and noise, with its graph.

    Args:
        module: called as ``module(x_t, model_time, conditions)``.
        x_t: (B, ...).
        t: (B,), on the host.
        conditions: of the B images.
        schedule: of ``t``.
        prediction_type: what the raw output means.
    """
    return to_prediction(
        module(x_t, model_time(schedule, t, x_t), conditions), x_t, t, schedule, prediction_type
    )


def model_time(schedule: Schedule, t: FloatArray | float, like: Tensor) -> Tensor:
    """What the network is given as time, float32 (B,) on its device."""
    times = np.broadcast_to(np.asarray(schedule.model_time(t), np.float32), (len(like),))
    return torch.from_numpy(times.copy()).to(like.device)


@dataclass(frozen=True)
class NetworkTeacher:
    """A network as teacher.

    Attributes:
        module: called as ``module(x_t, model_time, conditions)``.
        schedule: of its times.
        prediction_type: what its output means.
        as_base: entered around every call; an adapter that makes the same network a student is switched off
        in it.
    """

    module: nn.Module
    schedule: Schedule
    prediction_type: str
    as_base: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def raw(self, x_t: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The network's own output, as teacher."""
        with self.as_base(), evaluated(self.module):
            output: Tensor = self.module(x_t, time, conditions)
            return output

    def denoiser(
        self,
        conditions: Conditions,
        null: Conditions | None = None,
        scale: Guidance = 1.0,
        rescale: float = 0.0,
    ) -> Denoiser:
        """See `Teacher`; both halves of guidance are one call of twice the batch."""
        unguided = isinstance(scale, float) and scale == 1.0
        if not unguided and null is None:
            raise UsageError("guidance needs an empty caption or class, the data have none: use a scale of 1")
        both = None if unguided or null is None else joined(conditions.unconditional(null), conditions)

        def denoise(x_t: Tensor, t: FloatArray | float) -> Prediction:
            told = both if both is not None and len(x_t) == both.rows else conditions
            raw = self.raw(x_t, model_time(self.schedule, t, x_t), told)
            return to_prediction(raw, x_t, t, self.schedule, self.prediction_type)

        return classifier_free(
            denoise,
            None,
            scale=1.0 if unguided else scale,
            rescale=rescale,
            schedule=self.schedule,
            prediction_type=self.prediction_type,
            batched=True,
        )


@dataclass(frozen=True)
class ExactTeacher:
    """A Gaussian mixture as teacher: no network, no training error."""

    mixture: GaussianMixture
    schedule: Schedule
    prediction_type: str = "v_prediction"

    def denoiser(
        self,
        conditions: Conditions,
        null: Conditions | None = None,
        scale: Guidance = 1.0,
        rescale: float = 0.0,
    ) -> Denoiser:
        """See `Teacher`; a class that the mixture does not have means none."""
        classes = conditions.classes
        labels = None if classes is None else classes.cpu().numpy()
        return classifier_free(
            self.mixture.denoiser_of(self.schedule, labels),
            self.mixture.denoiser(self.schedule),
            scale=scale,
            rescale=rescale,
            schedule=self.schedule,
            prediction_type=self.prediction_type,
        )


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside: a network that teaches its own student is in training mode for the student."""
    # Past nn.Module's own attribute setter: 2,000 parts of an adapted U-Net took it 5 ms of every call.
    training = [vars(part) for part in module.modules() if part.training] if module.training else []
    for attributes in training:
        attributes["training"] = False
    try:
        yield
    finally:
        for attributes in training:
            attributes["training"] = True
