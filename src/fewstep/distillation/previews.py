"""Sample grids of a student in training: fixed prompts and seeds, at every step count that it is made for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fewstep.diffusion.noise import image_noise
from fewstep.distillation.build import Base, Stage
from fewstep.distillation.drawing import draw
from fewstep.distillation.roles import NetworkTeacher
from fewstep.distillation.run import StageHooks, StageRecipe
from fewstep.models import autoencoder as autoencoders
from fewstep.models import text
from fewstep.models.conditions import Conditions
from fewstep.training.logs import Image
from fewstep.training.loop import Sampler
from fewstep.training.previews import grid
from fewstep.training.sections import LoopRecipe


class GridHooks(StageHooks):
    """Draws ``samples.prompts`` with the student: a row of pictures for every step count."""

    def sampler(self, stage: Stage, base: Base, recipe: StageRecipe) -> Sampler | None:
        """A sampler, where the recipe has prompts and the teacher is a pipeline."""
        prompts = recipe.samples.prompts
        if base.components is None or not prompts:
            return None
        parts = base.components
        embeddings = text.encode(list(prompts), parts.text_encoder, parts.tokenizer)
        counts = stage.contract.allowed_steps or (stage.contract.num_inference_steps,)
        size = int(parts.denoiser.config["sample_size"])
        shape = (int(parts.autoencoder.config["latent_channels"]), size, size)
        noise = np.stack([image_noise(recipe.samples.seed + i, shape) for i in range(len(prompts))])

        def draw_grid(modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int) -> Image | None:
            # Not modules["student"]: of an adapter these are the small matrices alone.
            weight = next(stage.network.parameters())
            teller = NetworkTeacher(stage.network, base.schedule, stage.contract.prediction_type)
            denoise = teller.denoiser(Conditions(text=embeddings.to(weight.device, weight.dtype)))
            x = torch.from_numpy(noise).to(weight.device, weight.dtype)
            rows = [
                draw(denoise, stage.contract, x, steps=steps, seed=recipe.samples.seed) for steps in counts
            ]
            latents = torch.cat(rows).float().cpu().numpy()
            return grid(autoencoders.decode(parts.autoencoder, latents), columns=len(prompts))

        return draw_grid
