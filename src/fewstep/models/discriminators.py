"""Discriminators for adversarial training."""

from __future__ import annotations

import torch
from torch import nn


class PatchGAN(nn.Module):
    """Scores overlapping patches of an image as real or not (Isola et al. 2017, arXiv 1611.07004, 6.1.2).

    ``layers`` strided 4x4 convolutions halve the size each, then two more of stride 1. Group instead of batch
    normalisation, so that the score of an image does not depend on its neighbours in the batch, nor on how a
    batch is split over processes.

    Args:
        in_channels: channels of the image.
        channels: channels of the first convolution, doubled up to 8 times that.
        layers: strided convolutions.
    """

    def __init__(self, in_channels: int = 3, channels: int = 32, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            before, width = width, channels * min(2**layer, 8)
            blocks += [
                nn.Conv2d(before, width, 4, stride, 1, bias=False),
                nn.GroupNorm(_groups(width), width),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [-1, 1] -> scores (B, 1, h, w), above 0 for real."""
        scores: torch.Tensor = self.blocks(image)
        return scores


def _groups(width: int) -> int:
    return next(groups for groups in (16, 8, 4, 2, 1) if width % groups == 0)
