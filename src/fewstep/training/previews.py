"""Sample grids of a denoiser in training: fixed prompts, fixed seeds, drawn with the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.noise import image_noise
from fewstep.diffusion.prediction import Prediction, to_prediction
from fewstep.diffusion.sampler import sample
from fewstep.models import autoencoder as autoencoders
from fewstep.models import load, text
from fewstep.training.loop import Sampler
from fewstep.training.products import sampling_contract
from fewstep.training.sections import DenoiserRecipe, LoopRecipe

Image = NDArray[np.uint8]


def sampler_for(recipe: LoopRecipe) -> Sampler | None:
    """The sampler of a recipe that asks for sample grids and says what to draw them with; else None."""
    if not isinstance(recipe, DenoiserRecipe) or recipe.pipeline is None or not recipe.samples.prompts:
        return None
    parts = recipe.pipeline
    return denoiser_sampler(Path(parts.autoencoder).expanduser(), Path(parts.text).expanduser())


def denoiser_sampler(autoencoder: Path, text_folder: Path) -> Sampler:
    """A sampler for `fewstep.training.trainer.train`, which draws ``recipe.samples.prompts`` as one grid.

    Args:
        autoencoder: the ``vae`` folder of the latents.
        text_folder: folder with ``text_encoder`` and ``tokenizer``; read once, now.
    """
    vae = load.autoencoder(autoencoder)
    encoder, tokenizer = load.text_parts(text_folder)
    embeddings: dict[tuple[str, ...], torch.Tensor] = {}

    def draw(modules: Mapping[str, nn.Module], recipe: LoopRecipe, images_seen: int) -> Image | None:
        assert isinstance(recipe, DenoiserRecipe)
        prompts = recipe.samples.prompts
        if not prompts:
            return None
        if prompts not in embeddings:
            embeddings[prompts] = text.encode(["", *prompts], encoder, tokenizer)
        network = modules["denoiser"]
        latents = draw_latents(network, embeddings[prompts], recipe)
        return grid(autoencoders.decode(vae, latents.float().cpu().numpy()))

    return draw


def draw_latents(network: nn.Module, embeddings: torch.Tensor, recipe: DenoiserRecipe) -> torch.Tensor:
    """Sample one latent a caption, image i from seed ``samples.seed`` + i, as the finished model will.

    Args:
        network: the denoiser.
        embeddings: (1 + B, L, D), the empty caption first.
        recipe: its samples section says how.

    Returns:
        (B, C, h, w), scaled latents.
    """
    unet: Any = network
    contract = sampling_contract(recipe, "preview", 8)
    schedule = contract.make_schedule()
    weight = next(network.parameters())
    text_cond = embeddings[1:].to(weight.device, weight.dtype)
    text_uncond = embeddings[:1].to(weight.device, weight.dtype).expand_as(text_cond)
    size = int(unet.config.sample_size)
    shape = (int(unet.config.in_channels), size, size)
    noise = np.stack([image_noise(recipe.samples.seed + i, shape) for i in range(len(text_cond))])

    def denoise_with(condition: torch.Tensor) -> Callable[[Any, Any], Prediction]:
        def denoise(x_t: torch.Tensor, t: Any) -> Prediction:
            time = torch.as_tensor(np.asarray(schedule.model_time(t)), dtype=torch.float32, device=x_t.device)
            output = unet(x_t, time, encoder_hidden_states=condition, return_dict=False)[0]
            return to_prediction(output, x_t, t, schedule, contract.prediction_type)

        return denoise

    guided = classifier_free(
        denoise_with(text_cond),
        denoise_with(text_uncond),
        scale=contract.guidance_scale,
        rescale=contract.guidance_rescale,
        schedule=schedule,
        prediction_type=contract.prediction_type,
    )
    with torch.no_grad():
        x = torch.from_numpy(noise).to(weight.device, weight.dtype)
        latents: torch.Tensor = sample(guided, x, contract.grid(), contract.make_solver(), schedule=schedule)
    return latents


def grid(images: NDArray[np.float32], *, columns: int | None = None) -> Image:
    """Lay images (B, 3, H, W) in [-1, 1] out as one picture, row by row, with a white margin of 2 pixels."""
    count, _, height, width = images.shape
    across = columns or math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    sheet = np.full((down * (height + 2) + 2, across * (width + 2) + 2, 3), 255, np.uint8)
    pixels = np.clip((images + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for index, image in enumerate(pixels):
        top, left = (2 + (index // across) * (height + 2), 2 + (index % across) * (width + 2))
        sheet[top : top + height, left : left + width] = image
    return sheet
