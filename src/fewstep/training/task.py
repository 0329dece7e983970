"""What a training method tells the loop: its roles, its random draws and its losses.

The loop in `fewstep.training.loop` knows nothing of diffusion; a task knows nothing of optimisers, processes,
checkpoints or signals. Distillation methods are tasks with more roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fewstep.training.sections import Ema, Optimiser, Schedule

Sample = dict[str, Any]
"""One image as numpy arrays with a batch axis of 1, and lists of one text."""

Batch = dict[str, Any]
"""A part of a batch: tensors on the device; float64 arrays (times) stay on the host, texts are lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """One network in a run: what is called, what is saved, and how it is trained.

    Attributes:
        module: called in `Task.loss`; its forward must reach every trained parameter.
        weights: what checkpoints and averages hold; ``module`` itself unless that is only a wrapper.
        optimiser: None for a frozen role (a teacher).
        schedule: learning rate over images seen.
        ema: None for no average.
        every: batches per step; the average's half-life counts the images of all of them.
    """

    module: nn.Module
    weights: nn.Module
    optimiser: Optimiser | None
    schedule: Schedule
    ema: Ema | None = None
    every: int = 1


class Task(Protocol):
    """A training method."""

    roles: Mapping[str, Role]

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Add what is random about one image (noise, time, dropped caption), on the host.

        ``rng`` is derived from (seed, images seen), so results do not depend on how batches are cut. May run
        in a background thread: no torch operations here.
        """
        ...

    def active(self, images_seen: int) -> Sequence[str]:
        """Roles that this batch trains, in the order in which `loss` is called for them."""
        ...

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Per-sample losses of one role for a part of a batch.

        Args:
            role: the role to be trained; the parameters of all others do not require gradients now.
            batch: the part.
            modules: what to call for every role, wrapped for many processes where needed.
            shared: lives for this part only; a later role finds here what an earlier one computed.
            images_seen: images seen before this batch.

        Returns:
            Losses of shape (B,), and detached values of shape (B,) or () to log under their names.
        """
        ...
