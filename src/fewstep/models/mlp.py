"""A small denoiser for points in the plane, the student of the toy recipes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewstep.models.conditions import Conditions


class MLPDenoiser(nn.Module):
    """Points, time and class through residual layers.

    ``encoder`` gives features of the input in which a discriminator can look (its tap), ``decoder`` the
    output.

    Args:
        width: of the hidden layers.
        depth: residual layers, half of them in the encoder; at least 2.
        classes: number of classes; class ``classes`` itself stands for none.
        dims: coordinates of a point.
        time_scale: the largest time that the network is given.
    """

    def __init__(
        self, width: int = 128, depth: int = 4, classes: int = 1, dims: int = 2, time_scale: float = 1000.0
    ) -> None:
        super().__init__()
        self.dims, self.classes, self.time_scale = dims, classes, time_scale
        self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.entry = nn.Linear(dims, width)
        self.encoder = nn.Sequential(*(_Residual(width) for _ in range(depth // 2)))
        self.decoder = nn.Sequential(*(_Residual(width) for _ in range(depth - depth // 2)))
        self.out = nn.Linear(width, dims)

    def forward(self, x_t: Tensor, model_time: Tensor, conditions: Conditions) -> Tensor:
        """Raw output (B, dims) for points (B, dims) and times (B,)."""
        classes = conditions.classes
        if classes is None:
            classes = torch.full((len(x_t),), self.classes, device=x_t.device)
        angle = (model_time.to(x_t.dtype) / self.time_scale)[:, None] * _rates(x_t)
        told = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1)) + self.label(classes)
        hidden = self.encoder(self.entry(x_t) + told)
        output: Tensor = self.out(self.decoder(hidden + told))
        return output


FREQUENCIES = 8


def _rates(like: Tensor) -> Tensor:
    return math.pi * 2.0 ** torch.arange(FREQUENCIES, device=like.device, dtype=like.dtype) / 2.0


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # No normalisation: it takes away how far out a point is, and trained to a tenth of the accuracy.
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.layers(x)
        return output
