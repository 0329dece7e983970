"""The task "autoencoder": reconstruction with a small KL term, and a patch discriminator after a warm-up."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.training.objectives import adversarial, autoencoder
from fewstep.training.sections import AutoencoderRecipe
from fewstep.training.task import Batch, Role, Sample

ROLE = "autoencoder"
DISCRIMINATOR = "discriminator"


class _Reconstruct(nn.Module):
    """Encode, sample with given noise, shrink, decode in one forward, as data-parallel wrappers need it."""

    def __init__(self, network: nn.Module, *, train_encoder: bool = True) -> None:
        super().__init__()
        self.network = network
        self.train_encoder = train_encoder

    def forward(
        self, pixels: torch.Tensor, noise: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        network: Any = self.network
        # A frozen encoder gets no gradient at all, so that no optimiser moves it.
        with contextlib.nullcontext() if self.train_encoder else torch.no_grad():
            posterior = network.encode(pixels).latent_dist
        latents = autoencoder.shrunk(posterior.mean + posterior.std * noise, scale)
        return network.decode(latents).sample, posterior.mean, posterior.logvar


class AutoencoderTask:
    """Trains an ``AutoencoderKL``; samples hold ``pixels`` (1, 3, H, W) in [-1, 1]."""

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        from fewstep.models import build

        network = build.autoencoder(dict(recipe.model))
        self.objective = recipe.objective
        config: Any = network.config
        self._latent_channels = int(config.latent_channels)
        self._downsampling = 2 ** (len(config.block_out_channels) - 1)
        roles = {
            ROLE: Role(
                module=_Reconstruct(network, train_encoder=recipe.encoder == "train"),
                weights=network,
                optimiser=recipe.optimiser,
                schedule=recipe.schedule,
                ema=recipe.ema,
            )
        }
        gan = recipe.objective.adversarial
        if gan is not None:
            from fewstep.models.discriminators import PatchGAN

            critic = PatchGAN(int(config.in_channels), gan.channels, gan.layers)
            roles[DISCRIMINATOR] = Role(
                module=critic, weights=critic, optimiser=gan.optimiser, schedule=recipe.schedule
            )
        self.roles: Mapping[str, Role] = roles

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Add the noise of the posterior sample, and the scale of `Equivariance`."""
        pixels = np.asarray(sample["pixels"], np.float32)
        count, _, height, width = pixels.shape
        shape = (count, self._latent_channels, height // self._downsampling, width // self._downsampling)
        drawn: Sample = {"pixels": pixels, "noise": rng.standard_normal(shape, dtype=np.float32)}
        equivariance = self.objective.equivariance
        if equivariance is not None:
            chosen = equivariance.scales[int(rng.integers(len(equivariance.scales)))]
            drawn["scale"] = np.full(count, chosen if rng.random() < equivariance.probability else 1.0)
        return drawn

    def active(self, images_seen: int) -> Sequence[str]:
        """The autoencoder, and after the warm-up its discriminator, both on the same reconstructions."""
        gan = self.objective.adversarial
        return (ROLE,) if gan is None or images_seen < gan.start_images else (ROLE, DISCRIMINATOR)

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Weighted sum of the recipe's terms per image, or the discriminator's hinge loss."""
        # A batch has one size: the scale that its first image drew holds for all of it.
        scale = float(batch["scale"][0]) if "scale" in batch else 1.0
        if role == DISCRIMINATOR:
            # One call for both halves: a data-parallel wrapper allows one forward per backward.
            scores = modules[DISCRIMINATOR](torch.cat([shared["pixels"], shared["reconstruction"]]))
            real, fake = scores.chunk(2)
            return adversarial.discriminator_hinge(real, fake), {
                "real": real.detach().mean(),
                "fake": fake.detach().mean(),
            }
        weights = self.objective
        reconstruction, mean, log_variance = modules[ROLE](batch["pixels"], batch["noise"], scale)
        pixels = autoencoder.shrunk(batch["pixels"], scale, self._downsampling)
        shared.update(reconstruction=reconstruction.detach(), pixels=pixels)
        terms = {
            "l1": (weights.l1, autoencoder.l1(reconstruction, pixels)),
            "kl": (weights.kl, autoencoder.kl(mean, log_variance)),
            "mse": (weights.mse, autoencoder.mse(reconstruction, pixels)),
        }
        if weights.multiscale_l1:
            terms["multiscale_l1"] = (
                weights.multiscale_l1,
                autoencoder.multiscale_l1(reconstruction, pixels),
            )
        if weights.ssim:
            terms["ssim"] = (weights.ssim, autoencoder.dissimilarity(reconstruction, pixels))
        if DISCRIMINATOR in self.active(images_seen):
            assert weights.adversarial is not None
            scores = modules[DISCRIMINATOR](reconstruction)
            terms["adversarial"] = (weights.adversarial.weight, adversarial.generator_hinge(scores))
        total = sum(weight * term for weight, term in terms.values() if weight)
        assert isinstance(total, torch.Tensor), "a recipe with all weights 0 is refused by its schema"
        return total, {name: term.detach() for name, (_, term) in terms.items()}
