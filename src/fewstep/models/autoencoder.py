"""What is done with an ``AutoencoderKL``: numpy images to scaled latents and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Images = NDArray[np.float32]
"""(B, 3, H, W) in [-1, 1]."""


def encode(autoencoder: AutoencoderKL, images: Images) -> NDArray[np.float32]:
    """Scaled latents of images: the posterior's mode times ``scaling_factor``.

    The mode, not a sample: what is cached is read many times, and the posterior is narrow (its sampling noise
    changes a reconstruction by less than one grey level).

    Args:
        autoencoder: in evaluation mode.
        images: (B, 3, H, W) in [-1, 1].

    Returns:
        float32 (B, C, H / f, W / f), about unit variance.
    """
    import torch

    network: Any = autoencoder
    with torch.no_grad():
        latents = network.encode(_to_torch(autoencoder, images)).latent_dist.mode()
    scaled: NDArray[np.float32] = (latents * float(network.config.scaling_factor)).float().cpu().numpy()
    return scaled


def decode(autoencoder: AutoencoderKL, latents: NDArray[np.float32]) -> Images:
    """Images of scaled latents (B, C, h, w), clipped to [-1, 1]."""
    import torch

    network: Any = autoencoder
    with torch.no_grad():
        images = network.decode(_to_torch(autoencoder, latents) / float(network.config.scaling_factor)).sample
    clipped: Images = images.clamp(-1, 1).float().cpu().numpy()
    return clipped


def latent_scale(autoencoder: AutoencoderKL, images: Images) -> float:
    """The ``scaling_factor`` that gives the latents of these images a mean square of 1.

    Rombach et al. 2022 (arXiv 2112.10752, appendix G) divide by the standard deviation of the latents. We
    divide by the root mean square: a diffusion model sees second moments, and plain backgrounds give the
    latents a mean that is not 0.

    Args:
        autoencoder: its present ``scaling_factor`` does not matter.
        images: a few hundred training images.
    """
    present = float(autoencoder.config["scaling_factor"])
    latents = encode(autoencoder, images) / present
    return float(1.0 / np.sqrt(np.mean(np.square(latents, dtype=np.float64))))


def _to_torch(autoencoder: AutoencoderKL, values: NDArray[np.float32]) -> Any:
    import torch

    weight = next(autoencoder.parameters())
    return torch.from_numpy(np.ascontiguousarray(values)).to(weight.device, weight.dtype)
