"""Hinge losses of a patch discriminator: pure functions returning one loss per sample.

Lim and Ye 2017 (arXiv 1705.02894), equations 9 and 10, averaged over patches as in Isola et al. 2017
(arXiv 1611.07004), section 3.2.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def discriminator_hinge(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Loss of the discriminator: 0 where it says >= 1 to real and <= -1 to fake patches.

    Args:
        real: scores of real images (B, 1, h, w).
        fake: scores of their reconstructions, the same shape.

    Returns:
        (B,), half the sum of both terms, as the latent diffusion autoencoders are trained.
    """
    return 0.5 * (F.relu(1.0 - real).flatten(1).mean(1) + F.relu(1.0 + fake).flatten(1).mean(1))


def generator_hinge(fake: torch.Tensor) -> torch.Tensor:
    """Loss of the generator: minus the mean score of its images (B, 1, h, w) -> (B,)."""
    return -fake.flatten(1).mean(1)
