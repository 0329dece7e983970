"""Sample grids of a student in training: fixed prompts and seeds, at every step count that it is made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.noise import image_noise
from fewstep.distillation.build import Base, Stage
from fewstep.distillation.drawing import draw
from fewstep.distillation.roles import NetworkTeacher
from fewstep.distillation.run import StageHooks, StageRecipe
from fewstep.distillation.task import conditions_of
from fewstep.models import autoencoder as autoencoders
from fewstep.models import text
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
        shape = tuple(base.sample["latents"].shape[1:])
        # What is told beside texts (a mask, a small image) is that of the first sample of the data.
        first, _ = conditions_of(base.sample)
        told = first.map(lambda value: value.expand(len(prompts), *value.shape[1:]))
        told = dataclasses.replace(told, text=embeddings)
        noise = np.stack([image_noise(recipe.samples.seed + i, shape) for i in range(len(prompts))])

        def draw_grid(modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int) -> Image | None:
            # Not modules["student"]: of an adapter these are the small matrices alone.
            weight = next(stage.network.parameters())
            teller = NetworkTeacher(stage.network, base.schedule, stage.contract.prediction_type)

            def moved(value: Tensor) -> Tensor:
                return value.to(weight.device, weight.dtype if value.is_floating_point() else None)

            denoise = teller.denoiser(told.map(moved))
            x = torch.from_numpy(noise).to(weight.device, weight.dtype)
            rows = [
                draw(denoise, stage.contract, x, steps=steps, seed=recipe.samples.seed) for steps in counts
            ]
            latents = torch.cat(rows).float().cpu().numpy()
            return grid(autoencoders.decode(parts.autoencoder, latents), columns=len(prompts))

        return draw_grid
