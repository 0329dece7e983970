"""The task "denoiser": a conditional U-Net on cached latents and text embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.diffusion.schedule import FlowSchedule, Schedule, make_schedule
from fewstep.errors import DataError, RecipeError
from fewstep.training import levels
from fewstep.training.objectives.denoising import denoising
from fewstep.training.sections import DenoiserRecipe, NoiseSchedule
from fewstep.training.task import Batch, Role, Sample

ROLE = "denoiser"


class DenoiserTask:
    """Trains ``unet(x_t, t, encoder_hidden_states=text).sample`` as the recipe's objective says.

    Samples hold ``latents`` (1, C, h, w), ``text`` (1, L, D) and ``uncond`` (L, D), the embedding of the
    empty caption, which takes the place of a dropped one.
    """

    def __init__(self, recipe: DenoiserRecipe) -> None:
        from fewstep.models import build

        unet = build.denoiser(dict(recipe.model))
        self.objective = recipe.objective
        self.schedule = noise_schedule(recipe.objective.schedule)
        config: Any = unet.config
        self._channels, self._text_width = int(config.in_channels), config.cross_attention_dim
        self._check_options()
        self.roles: Mapping[str, Role] = {
            ROLE: Role(
                module=unet,
                weights=unet,
                optimiser=recipe.optimiser,
                schedule=recipe.schedule,
                ema=recipe.ema,
            )
        }

    def _check_options(self) -> None:
        drawn, weighting = self.objective.noise_levels, self.objective.weighting
        try:
            t = self._times(np.random.default_rng(0), 1)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"objective.noise_levels {drawn.kind!r}: {error}") from None
        try:
            self._weights(t)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"objective.weighting {weighting.kind!r}: {error}") from None

    def _times(self, rng: np.random.Generator, count: int) -> levels.Times:
        return levels.times(self.objective.noise_levels, rng, count, self.schedule)

    def _weights(self, t: levels.Times) -> levels.Times | None:
        return levels.weights(self.objective.weighting, t, self.schedule, self.objective.prediction_type)

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Add noise and time, and drop the caption in a share of the images."""
        latents = np.asarray(sample["latents"], np.float32)
        channels, width = latents.shape[1], np.shape(sample["text"])[-1]
        if channels != self._channels or width != self._text_width:
            raise DataError(
                f"latents have {channels} channels and texts {width} features, "
                f"but model.in_channels is {self._channels} and cross_attention_dim {self._text_width}; "
                "use the cache that was made for this model"
            )
        # Every image draws all three in this order, so that one setting does not change what another draws.
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        dropped = rng.random() < self.objective.caption_dropout
        t = self._times(rng, len(latents))
        text = np.asarray(sample["uncond"])[None] if dropped else sample["text"]
        return {
            "latents": latents,
            "noise": noise,
            "t": t,
            "text": np.asarray(text, np.float32),
        }

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
        """Weighted denoising error per image; `fewstep.training.objectives.denoising`."""

        def network(x_t: torch.Tensor, model_time: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = modules[ROLE](
                x_t, model_time, encoder_hidden_states=batch["text"], return_dict=False
            )[0]
            return output

        losses = denoising(
            network,
            batch["latents"],
            batch["noise"],
            batch["t"],
            schedule=self.schedule,
            prediction_type=self.objective.prediction_type,
            weight=self._weights(batch["t"]),
        )
        return losses, {}


def noise_schedule(section: NoiseSchedule) -> Schedule:
    """The forward process that a recipe describes."""
    if section.kind == "flow":
        return FlowSchedule(shift=section.shift, num_train_timesteps=section.num_train_timesteps)
    return make_schedule(
        section.kind,
        num_train_timesteps=section.num_train_timesteps,
        beta_start=section.beta_start,
        beta_end=section.beta_end,
        rescale_zero_terminal_snr=section.rescale_zero_terminal_snr,
    )
