"""The task "denoiser": a conditional U-Net on cached latents and text embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.diffusion.schedule import FlowSchedule, Schedule, make_schedule
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
        self.roles: Mapping[str, Role] = {
            ROLE: Role(
                module=unet,
                weights=unet,
                optimiser=recipe.optimiser,
                schedule=recipe.schedule,
                ema=recipe.ema,
            )
        }

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Add noise and time, and drop the caption in a share of the images."""
        from fewstep.diffusion import noise_levels

        objective = self.objective
        latents = np.asarray(sample["latents"], np.float32)
        levels = objective.noise_levels
        # Every image draws all three in this order, so that one setting does not change what another draws.
        noise = rng.standard_normal(latents.shape, dtype=np.float32)
        dropped = rng.random() < objective.caption_dropout
        t = noise_levels.sample_t(levels.kind, rng, len(latents), self.schedule, **levels.options)
        text = np.asarray(sample["uncond"])[None] if dropped else sample["text"]
        return {
            "latents": latents,
            "noise": noise,
            "t": np.asarray(t, np.float64),
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
        from fewstep.diffusion import weighting

        objective, t = self.objective, batch["t"]
        kind = objective.weighting.kind
        weight = None
        if kind != "unit":
            weight = weighting.weight(
                kind, t, self.schedule, objective.prediction_type, **objective.weighting.options
            )

        def network(x_t: torch.Tensor, model_time: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = modules[ROLE](
                x_t, model_time, encoder_hidden_states=batch["text"], return_dict=False
            )[0]
            return output

        losses = denoising(
            network,
            batch["latents"],
            batch["noise"],
            t,
            schedule=self.schedule,
            prediction_type=objective.prediction_type,
            weight=weight,
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
