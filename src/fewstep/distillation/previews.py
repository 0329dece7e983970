"""What can be seen of a student in training: fixed prompts and noise, at every step count it is made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.noise import image_noise
from fewstep.distillation.build import Stage
from fewstep.distillation.drawing import draw
from fewstep.distillation.origins import Base
from fewstep.distillation.roles import NetworkTeacher
from fewstep.distillation.run import StageHooks, StageRecipe
from fewstep.distillation.task import conditions_of
from fewstep.models import autoencoder as autoencoders
from fewstep.models import text
from fewstep.models.conditions import Conditions
from fewstep.training.logs import Image
from fewstep.training.loop import Metric, Sampler
from fewstep.training.previews import grid
from fewstep.training.sections import LoopRecipe


class GridHooks(StageHooks):
    """Draws ``samples.prompts`` with the student, and says how far it ends from the teacher.

    Both need a pipeline as teacher and prompts in the recipe.
    """

    def sampler(self, stage: Stage, base: Base, recipe: StageRecipe) -> Sampler | None:
        """A grid with a row of pictures for every step count."""
        if base.components is None or not recipe.samples.prompts:
            return None
        vae, fixed = base.components.autoencoder, _fixed(stage, base, recipe)

        def draw_grid(modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int) -> Image | None:
            latents = torch.cat(list(fixed.drawn().values())).float().cpu().numpy()
            return grid(autoencoders.decode(vae, latents), columns=len(recipe.samples.prompts))

        return draw_grid

    def metrics(self, stage: Stage, base: Base, recipe: StageRecipe) -> Sequence[Metric]:
        """``teacher_distance/N``: mean squared distance, in latents, of N steps from the teacher's end.

        The teacher is the recipe's pipeline, drawn once as its contract says. A student that keeps its
        teacher's way comes near; an adversarial one may leave it and draw no worse.
        """
        if base.components is None or base.open_network is None or not recipe.samples.prompts:
            return ()
        fixed, ends = _fixed(stage, base, recipe), _teacher_ends(stage, base, recipe)

        def distance(modules: Mapping[str, nn.Module], images_seen: int) -> Mapping[str, float]:
            return {
                f"teacher_distance/{steps}": float((drawn.float().cpu() - ends).square().mean())
                for steps, drawn in fixed.drawn().items()
            }

        return (distance,)


@dataclass(frozen=True)
class _Fixed:
    """The same task for a student at every moment of its training."""

    stage: Stage
    base: Base
    told: Conditions
    noise: Tensor
    seed: int

    def drawn(self) -> dict[int, Tensor]:
        """Latents (B, C, h, w) by step count."""
        # Not the loop's module: of an adapter these are the small matrices alone.
        network, contract = self.stage.network, self.stage.contract
        weight = next(network.parameters())

        def moved(value: Tensor) -> Tensor:
            return value.to(weight.device, weight.dtype if value.is_floating_point() else None)

        teller = NetworkTeacher(network, self.base.schedule, contract.prediction_type)
        denoise, x = teller.denoiser(self.told.map(moved)), moved(self.noise)
        counts = contract.allowed_steps or (contract.num_inference_steps,)
        return {steps: draw(denoise, contract, x, steps=steps, seed=self.seed) for steps in counts}


def _fixed(stage: Stage, base: Base, recipe: StageRecipe) -> _Fixed:
    parts, prompts, seed = base.components, recipe.samples.prompts, recipe.samples.seed
    assert parts is not None
    shape = tuple(base.sample["latents"].shape[1:])
    # What is told beside texts (a mask, a small image) is that of the first sample of the data.
    first, _ = conditions_of(base.sample)
    told = first.map(lambda value: value.expand(len(prompts), *value.shape[1:]))
    embeddings = text.encode(list(prompts), parts.text_encoder, parts.tokenizer)
    noise = np.stack([image_noise(seed + i, shape) for i in range(len(prompts))])
    return _Fixed(stage, base, dataclasses.replace(told, text=embeddings), torch.from_numpy(noise), seed)


def _teacher_ends(stage: Stage, base: Base, recipe: StageRecipe) -> Tensor:
    fixed, contract = _fixed(stage, base, recipe), base.contract
    assert base.open_network is not None
    _, null = conditions_of(base.sample, base.null_class)
    guided = contract.guidance_scale != 1.0 and null is not None
    denoise = NetworkTeacher(base.open_network(), base.schedule, contract.prediction_type).denoiser(
        fixed.told,
        null,
        contract.guidance_scale if guided else 1.0,
        contract.guidance_rescale if guided else 0.0,
    )
    return draw(denoise, contract, fixed.noise, seed=fixed.seed)
