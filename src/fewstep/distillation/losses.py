"""Distances, adversarial losses and distribution matching: pure functions, one loss per sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.errors import RecipeError

Distance = Callable[[Tensor, Tensor], Tensor]
"""``distance(a, b) -> (B,)`` for two tensors (B, ...)."""


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference, (B,)."""
    return (a - b).square().flatten(1).mean(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference, (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt(d^2 + c^2) - c, a mean over elements, (B,).

    Song and Dhariwal 2023 (2310.14189), section 3.3, element by element as the LCM and PCM scripts have it
    (the
    paper takes the norm of the whole sample).
    """
    return ((a - b).square() + c * c).sqrt().sub(c).flatten(1).mean(1)


DISTANCES: dict[str, Distance] = {"l2": l2, "l1": l1, "huber": pseudo_huber}


def perceptual(network: Callable[[Tensor], list[Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """Distance in the features of a network, as LPIPS compares them (Zhang 2018, 1801.03924, eq. 1).

    Features are brought to unit length over channels; the layers' mean squared differences are added,
    without the
    learned weights of channels, which belong to networks from outside.

    Args:
        network: what to compare in -> a list of features (B, C, ...), one per layer.
        a: (B, ...).
        b: (B, ...).

    Returns:
        (B,).
    """
    total = torch.zeros(len(a), device=a.device, dtype=a.dtype)
    for x, y in zip(network(a), network(b), strict=True):
        difference = F.normalize(x, dim=1, eps=1e-6) - F.normalize(y, dim=1, eps=1e-6)
        total = total + difference.square().sum(1).reshape(len(a), -1).mean(1)
    return total


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """What the student loses when its samples are told from real ones.

    Args:
        kind: one of `GAN_LOSSES`.
        fake: logits (B, ...) of the student's samples; a mean over all but the first axis is taken last.

    Returns:
        (B,).

    Raises:
        RecipeError: unknown kind.
    """
    if kind == "non_saturating":  # Goodfellow 2014 (1406.2661), section 3: -log D
        values = F.softplus(-fake)
    elif kind == "vanilla":  # the same paper, eq. 1: log(1 - D), which saturates
        values = -F.softplus(fake)
    elif kind == "hinge":  # Lim and Ye 2017 (1705.02894), eq. 8
        values = -fake
    elif kind == "lsgan":  # Mao 2016 (1611.04076), eq. 9, on probabilities as Flash Diffusion's code has it
        values = (fake.sigmoid() - 1.0).square()
    elif kind == "wgan":  # Arjovsky 2017 (1701.07875), eq. 3
        values = -fake
    else:
        raise RecipeError(f"GAN loss {kind!r} is not known: give one of {', '.join(GAN_LOSSES)}")
    return values.flatten(1).mean(1)


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator loses; arguments, result and sources as `generator_loss`.

    At logits of 0: non_saturating and vanilla 2 ln 2, hinge 2, lsgan 0.25, wgan 0.
    """
    if kind in ("non_saturating", "vanilla"):
        values = F.softplus(-real) + F.softplus(fake)
    elif kind == "hinge":
        values = F.relu(1.0 - real) + F.relu(1.0 + fake)
    elif kind == "lsgan":
        values = 0.5 * ((real.sigmoid() - 1.0).square() + fake.sigmoid().square())
    elif kind == "wgan":
        values = fake - real
    else:
        raise RecipeError(f"GAN loss {kind!r} is not known: give one of {', '.join(GAN_LOSSES)}")
    return values.flatten(1).mean(1)


GAN_LOSSES = ("non_saturating", "vanilla", "hinge", "lsgan", "wgan")


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of samples on the right side of 0, real and fake weighing the same; ()."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())


def approximate_r1(clean: Tensor, disturbed: Tensor) -> Tensor:
    """Squared change of the logits when real samples are disturbed a little, (B,).

    As in NVlabs' FastGen and APT (Lin 2025, 2501.08316): a finite difference in place of the gradient
    penalty of Mescheder 2018 (1801.04406), which needs second derivatives.

    Args:
        clean: logits of real samples (B, ...).
        disturbed: logits of the same samples with noise added.
    """
    return (clean - disturbed).square().flatten(1).mean(1)


def matching_direction(x0: Tensor, x0_real: Tensor, x0_fake: Tensor, *, scale_by: str = "error") -> Tensor:
    """Direction in which distribution matching pushes a sample away: normalised x0_fake - x0_real.

    The gradient of KL(student || teacher) with respect to the sample (Yin 2023, 2311.18828, eq. 7) in x0
    form:
    (eps_real - eps_fake) sigma / alpha is x0_fake - x0_real.

    Args:
        x0: the student's sample (B, ...).
        x0_real: denoised estimate of the (guided) teacher at the noised sample.
        x0_fake: that of the score of the student's own distribution.
        scale_by: ``error`` divides by mean |x0 - x0_real| of each sample (DMD2's code, and Flash Diffusion's
        up to
            its 1e-5), ``none`` does not.

    Returns:
        (B, ...), without gradient; not finite where the sample was not.
    """
    with torch.no_grad():
        direction = x0_fake - x0_real
        if scale_by == "error":
            error = (x0 - x0_real).abs().flatten(1).mean(1)
            direction = direction / (error + 1e-5).reshape((-1,) + (1,) * (x0.dim() - 1))
        return direction


def pushed(x0: Tensor, direction: Tensor) -> Tensor:
    """A loss whose gradient in ``x0`` is ``direction`` over its elements: 0.5 MSE to x0 - direction.

    DMD2's code (Yin 2024, 2405.14867). Flash Diffusion's lacks the 0.5, so its gradient is twice as long.

    Returns:
        (B,).
    """
    return 0.5 * (x0 - (x0 - direction).detach()).square().flatten(1).mean(1)
