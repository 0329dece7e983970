"""The tasks "lora", "dreambooth" and "textual_inversion": denoising a folder's pictures on a frozen base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import FlowSchedule
from fewstep.errors import RecipeError
from fewstep.models import adapters
from fewstep.models.adapters import AdapterWeights, LoraSpec
from fewstep.training import levels
from fewstep.training.adapter_base import TaughtDenoiser, TaughtModel
from fewstep.training.adapter_data import told_rows
from fewstep.training.adapter_sections import (
    AdapterRecipe,
    DreamboothRecipe,
    LoraRecipe,
    TextualInversionRecipe,
)
from fewstep.training.objectives.denoising import denoising
from fewstep.training.objectives.textual_inversion import (
    EmbeddingWithWord,
    WordTokens,
    WordVectors,
    start_vectors,
)
from fewstep.training.sections import NoiseLevels
from fewstep.training.task import Batch, Role, Sample

ROLE = "adapter"


class LoraWeights(nn.Module):
    """The parameters of the adapters of several networks, by the part of the pipeline."""

    def __init__(self, parts: Mapping[str, AdapterWeights]) -> None:
        super().__init__()
        for name, weights in parts.items():
            self.add_module(name, weights)


class AdapterTask:
    """Trains what ``weights`` holds through the model's denoiser; `teach` makes it from a recipe.

    Samples are those of `fewstep.training.adapter_data.PictureSet`.
    """

    def __init__(
        self, recipe: AdapterRecipe, model: TaughtModel, weights: nn.Module, denoiser: TaughtDenoiser
    ) -> None:
        self.recipe, self.model = recipe, model
        self.levels = recipe.objective.noise_levels or default_levels(model)
        self.tables: Mapping[str, Tensor] = {}
        """Rows of texts, see `fewstep.training.adapter_data.text_tables`; set before the first step."""
        self._check_options()
        self.roles: Mapping[str, Role] = {
            ROLE: Role(
                module=denoiser,
                weights=weights,
                optimiser=recipe.optimiser,
                schedule=recipe.schedule,
                ema=recipe.ema,
            )
        }

    def _check_options(self) -> None:
        try:
            t = self._times(np.random.default_rng(0), 1)
            self._weights(t)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"objective: {error}") from None

    def _times(self, rng: np.random.Generator, count: int) -> levels.Times:
        return levels.times(self.levels, rng, count, self.model.schedule)

    def _weights(self, t: levels.Times) -> levels.Times | None:
        kind = self.model.contract.prediction_type
        return levels.weights(self.recipe.objective.weighting, t, self.model.schedule, kind)

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Add noise and time, and drop the caption in a share of the images."""
        latents = sample["latents"]
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        dropped = rng.random() < self.recipe.objective.caption_dropout
        t = self._times(rng, len(latents))
        rows = np.zeros_like(sample["rows"]) if dropped else sample["rows"]
        return {**sample, "rows": rows, "noise": noise, "t": t}

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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted denoising error per image; `fewstep.training.objectives.denoising`."""
        given = told_rows(self.tables, batch["rows"]) | {"time_ids": batch["time_ids"]}

        def network(x_t: Tensor, model_time: Tensor) -> Tensor:
            output: Tensor = modules[ROLE](x_t, model_time, given)
            return output

        losses = denoising(
            network,
            batch["latents"],
            batch["noise"],
            batch["t"],
            schedule=self.model.schedule,
            prediction_type=self.model.contract.prediction_type,
            weight=self._weights(batch["t"]),
        )
        return losses * batch["weight"], {}


def teach(recipe: AdapterRecipe, model: TaughtModel) -> AdapterTask:
    """Put what a recipe trains on its base, which does not change what the base computes yet.

    Raises:
        RecipeError: targets that no layer answers to, or something that this family cannot be taught.
    """
    network, live = model.network, encodes_live(recipe)
    if recipe.runtime.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if recipe.runtime.channels_last and model.part == "unet":
        network.to(memory_format=torch.channels_last)
    weights: nn.Module
    if isinstance(recipe, LoraRecipe):
        weights = _lora(recipe, model)
    elif isinstance(recipe, TextualInversionRecipe):
        weights = _word(recipe, model)
    else:
        assert isinstance(recipe, DreamboothRecipe)
        weights = network.requires_grad_(True)
    return AdapterTask(recipe, model, weights, TaughtDenoiser(model, live=live))


def encodes_live(recipe: AdapterRecipe) -> bool:
    """Whether something in the text encoders is trained, so that text is encoded in every step."""
    return isinstance(recipe, TextualInversionRecipe) or (
        isinstance(recipe, LoraRecipe) and recipe.lora.text_encoder
    )


def check_teachable(recipe: AdapterRecipe, model: TaughtModel) -> None:
    """Refuse what a family cannot be taught, before anything is encoded.

    Raises:
        RecipeError: a word where T5 reads the prompt.
    """
    family = model.opened.family
    if isinstance(recipe, TextualInversionRecipe) and family.text not in ("last", "sdxl"):
        raise RecipeError(
            f"{family.title} reads its text with T5, for which no file format of learnt words is agreed on; "
            "train a LoRA"
        )


def default_levels(model: TaughtModel) -> NoiseLevels:
    """Times that a model's adapters are trained at: a few-step model's own, else its family's."""
    if model.contract.method != "base":
        return NoiseLevels(kind="discrete", options={"times": student_times(model)})
    if isinstance(model.schedule, FlowSchedule):
        # Esser 2024 (arXiv 2403.03206), section 5.1
        return NoiseLevels(kind="logit_normal", options={"mean": 0.0, "std": 1.0})
    return NoiseLevels()


def student_times(model: TaughtModel) -> list[Any]:
    """The times at which a few-step model is called, of all step counts that it is made for."""
    counts = model.contract.allowed_steps or (model.contract.num_inference_steps,)
    return sorted({float(t) for count in counts for t in model.contract.grid(count)[:-1]})


def lora_spec(recipe: LoraRecipe, model: TaughtModel) -> LoraSpec:
    """Of the denoiser."""
    section = recipe.lora
    targets = section.targets or (("unet",) if model.part == "unet" else ("attention",))
    return LoraSpec(rank=section.rank, alpha=section.alpha, targets=targets, dropout=section.dropout)


def _lora(recipe: LoraRecipe, model: TaughtModel) -> LoraWeights:
    spec = lora_spec(recipe, model)
    parts = {model.part: adapters.add_lora(model.network, spec, seed=recipe.seed)}
    if recipe.lora.text_encoder:
        own = LoraSpec(
            rank=spec.rank, alpha=spec.alpha, targets=recipe.lora.text_targets, dropout=spec.dropout
        )
        named = zip(model.opened.text_parts, model.text.encoders, strict=True)
        clips = {name: encoder for name, encoder in named if "CLIP" in type(encoder).__name__}
        if not clips:
            raise RecipeError(
                f"lora.text_encoder: {model.opened.family.title} has no CLIP text encoder, and no other can "
                "be adapted; set it to false"
            )
        for number, (name, encoder) in enumerate(clips.items(), 1):
            parts[name] = adapters.add_lora(encoder, own, seed=recipe.seed + number)
    return LoraWeights(parts)


def _word(recipe: TextualInversionRecipe, model: TaughtModel) -> WordVectors:
    word = recipe.pictures.trigger
    assert word is not None
    encoders: list[Any] = list(model.text.encoders)
    pairs = list(zip(encoders, model.tokenizers, strict=True))
    weights = WordVectors([start_vectors(e, t, recipe.start, recipe.vectors) for e, t in pairs])
    for encoder, parameter in zip(encoders, weights.by_encoder, strict=True):
        encoder.set_input_embeddings(EmbeddingWithWord(encoder.get_input_embeddings(), parameter))
    model.know_word([WordTokens(tokenizer, word, recipe.vectors) for _, tokenizer in pairs])
    return weights
