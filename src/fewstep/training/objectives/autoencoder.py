"""Reconstruction and KL terms of a variational autoencoder: pure functions returning one loss per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SCALES = (2, 4, 8)


def l1(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute error; (B, C, H, W) in [-1, 1] twice -> (B,)."""
    return (reconstruction - pixels).abs().flatten(1).mean(1)


def mse(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean squared error; (B, C, H, W) twice -> (B,)."""
    return (reconstruction - pixels).square().flatten(1).mean(1)


def multiscale_l1(
    reconstruction: torch.Tensor, pixels: torch.Tensor, scales: tuple[int, ...] = SCALES
) -> torch.Tensor:
    """Sum of the mean absolute errors after averaging ``k`` x ``k`` blocks, for every k in ``scales``.

    Stands in for a perceptual network, which would need weights from outside: it asks for right colours over
    areas, where `l1` alone is content with the median. Averaging is linear, so the difference is averaged.

    Args:
        reconstruction: (B, C, H, W) in [-1, 1]; H and W multiples of the largest scale.
        pixels: the same shape.
        scales: block sizes.

    Returns:
        (B,)
    """
    difference = reconstruction - pixels
    total = torch.zeros(len(pixels), device=pixels.device, dtype=pixels.dtype)
    for scale in scales:
        total = total + F.avg_pool2d(difference, scale).abs().flatten(1).mean(1)
    return total


def dissimilarity(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """1 - SSIM: structure, and above all the stillness of plain areas.

    Wang et al. 2004, equation 13, as torchmetrics computes it. Where an image is flat its contrast term is
    ``C2 / (variance + C2)``: ripples of a hundredth of the range cost a tenth, and almost no L1.

    Args:
        reconstruction: (B, C, H, W) in [-1, 1]; H and W more than 5.
        pixels: the same shape.

    Returns:
        (B,), 0 to 2.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    # In [0, 1], as `fewstep.evaluation.reconstruction.ssim` measures: the luminance term is made for that.
    pair = [(images + 1.0) / 2.0 for images in (reconstruction, pixels)]
    similarity = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")
    assert isinstance(similarity, torch.Tensor)
    return 1.0 - similarity


def shrunk(images: torch.Tensor, scale: float, multiple: int = 1) -> torch.Tensor:
    """Images or latents made smaller, for latents that shrink as images do.

    Kouzelis et al. 2025 (EQ-VAE, arXiv 2502.09509) ask of an autoencoder that transformed latents decode to
    the transformed image, ``D(tau(E(x))) = tau(x)``: latents get smoother, and diffusion models learn them
    sooner. Of their transformations we use the scaling; drawings have one way up, so none is turned.

    Args:
        images: (B, C, H, W).
        scale: 0 to 1; 1 returns the images themselves.
        multiple: the sides of the result are this times a whole number, so that images fit their latents.

    Returns:
        (B, C, H', W'), by bilinear interpolation with antialiasing.
    """
    if scale == 1.0:
        return images
    height, width = (max(1, round(side // multiple * scale)) * multiple for side in images.shape[2:])
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mean, exp(log_variance)) from N(0, 1), a mean over latent elements.

    Kingma and Welling 2014 (arXiv 1312.6114), appendix B; there it is a sum over elements.

    Args:
        mean: (B, C, h, w)
        log_variance: the same shape.

    Returns:
        (B,), at least 0.
    """
    element = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return element.flatten(1).mean(1)
