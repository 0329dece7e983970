"""How much memory an adapter's training takes, estimated before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.training.adapter_data import PictureSet
from fewstep.training.adapter_task import ROLE, AdapterTask

_MB = 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training step, without those of Python and its libraries."""

    networks: int
    """Weights, trained or not."""
    optimiser: int
    """Gradients, AdamW's two averages and the average of the weights."""
    activations: int
    """What a backward pass needs of the forward pass, of all pictures that are taken at once."""

    @property
    def total(self) -> int:
        """The sum; the libraries take about half a gigabyte more."""
        return self.networks + self.optimiser + self.activations

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {value / _MB:.0f}"
            for name, value in (
                ("networks", self.networks),
                ("optimiser", self.optimiser),
                ("activations", self.activations),
            )
        )
        return f"about {self.total / _MB:.0f} MB ({parts}), and Python with its libraries"


def estimate(task: AdapterTask, pictures: PictureSet) -> Memory:
    """Count weights, and what the forward passes of one and of two pictures keep for the backward pass.

    The passes are run at the training size and change nothing. What is computed a second time with gradient
    checkpointing comes on top.
    """
    recipe, role = task.recipe, task.roles[ROLE]
    seen = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors(role.module)}
    trained = sum(p.nbytes for p in role.weights.parameters())
    averaged = trained if recipe.ema is not None else 0
    together = max(1, recipe.data.batch_size // recipe.runtime.accumulation)
    kept = _kept(task, pictures, set(seen), 1)
    if together > 1:
        # what does not grow with the pictures, such as weights in half precision, counts once
        kept += (_kept(task, pictures, set(seen), 2) - kept) * (together - 1)
    return Memory(sum(seen.values()), 3 * trained + averaged, kept)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _kept(task: AdapterTask, pictures: PictureSet, weights: set[int], count: int) -> int:
    """Bytes of the different tensors that the graph of some pictures holds besides weights."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    rng = np.random.default_rng(0)
    sample = task.draw(pictures.batch(np.zeros(count, np.int64), rng), rng)
    batch: dict[str, Any] = {
        name: torch.from_numpy(value) if value.dtype != np.float64 else value
        for name, value in sample.items()
    }
    modules = {name: role.module for name, role in task.roles.items()}
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(task.recipe.runtime.mixed_precision)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", dtype=kind, enabled=kind is not None),
    ):
        # the graph lives until the line below is done, so that no two tensors of it share an address
        losses = task.loss(ROLE, batch, modules, {}, 0)
    total = sum(sizes.values())
    del losses
    return total
