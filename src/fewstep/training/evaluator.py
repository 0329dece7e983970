"""The task "evaluator": name the concept of a drawing among all that are trained, and its style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.errors import DataError
from fewstep.models import evaluator
from fewstep.training.objectives import matching
from fewstep.training.sections import EvaluatorRecipe
from fewstep.training.task import Batch, Role, Sample

ROLE = "evaluator"


class _Match(nn.Module):
    """Pictures and texts to logits in one forward, as data-parallel wrappers need it."""

    def __init__(self, network: evaluator.Evaluator) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.network(pixels)
        return self.network.concept_logits(output, candidates), output.style


class EvaluatorTask:
    """Trains an `Evaluator` on samples of `fewstep.data.labelled.LabelledDrawings`."""

    def __init__(self, recipe: EvaluatorRecipe) -> None:
        network = evaluator.build(recipe.model)
        self.objective = recipe.objective
        self._config = network.config
        self.roles: Mapping[str, Role] = {
            ROLE: Role(
                module=_Match(network),
                weights=network,
                optimiser=recipe.optimiser,
                schedule=recipe.schedule,
                ema=recipe.ema,
            )
        }

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Check that sample and network fit; all that is random was drawn by the dataset."""
        width, style = sample["candidates"].shape[-1], int(sample["style"][0])
        if width != self._config.text_width or style >= self._config.styles:
            raise DataError(
                f"texts have {width} features and style is number {style}, but model.text_width is "
                f"{self._config.text_width} and model.styles {self._config.styles}; correct the model section"
            )
        return sample

    def active(self, images_seen: int) -> Sequence[str]:
        """The one role, always."""
        return (ROLE,)

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of the concept plus weighted cross-entropy of the style, per image."""
        concepts, styles = modules[ROLE](batch["pixels"], batch["candidates"])
        smoothing = self.objective.label_smoothing
        concept = matching.cross_entropy(concepts, batch["concept"], smoothing)
        style = matching.cross_entropy(styles, batch["style"], smoothing)
        values = {
            "concept": concept,
            "style": style,
            "concept_first": matching.first(concepts, batch["concept"]),
            "style_first": matching.first(styles, batch["style"]),
        }
        losses = concept + self.objective.style * style
        return losses, {name: value.detach() for name, value in values.items()}
