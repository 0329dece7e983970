"""Discriminators for adversarial training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import features


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


class Head(nn.Module):
    """Features to one logit per sample.

    Images: 3 strided 4x4 convolutions with group normalisation (fewer where the features are small), then
    the mean
    of a last convolution's logits, as DMD2's head (Yin 2024, 2405.14867). Logits are averaged, so that
    another image
    size is another number of patches and nothing else. Vectors: two linear layers.

    Args:
        in_channels: channels, or width of a vector.
        channels: of the head's own layers.
        spatial: (h, w) of the features that it will see most; None for vectors.
    """

    def __init__(self, in_channels: int, channels: int, spatial: tuple[int, int] | None) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = in_channels
        if spatial is None:
            blocks = [nn.Linear(width, channels), nn.SiLU(), nn.Linear(channels, channels), nn.SiLU()]
            blocks.append(nn.Linear(channels, 1))
        else:
            side = min(spatial)
            for _ in range(3):
                if side < 4:
                    break
                blocks += [
                    nn.Conv2d(width, channels, 4, 2, 1),
                    nn.GroupNorm(_groups(channels), channels),
                    nn.SiLU(),
                ]
                width, side = channels, side // 2
            blocks += [nn.Conv2d(width, channels, 1), nn.SiLU(), nn.Conv2d(channels, 1, 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) or (B, C) -> (B, 1)."""
        logits: torch.Tensor = self.blocks(features).flatten(1).mean(1, keepdim=True)
        return logits


class PairDiscriminator(nn.Module):
    """SDXL-Lightning's discriminator: a trained encoder looks at one or two points of a trajectory.

    Lin 2024 (2402.13929), section 3.2: the middle features of both points, by shared weights, are joined on
    the
    channels and scored by a head; section 3.3: of the end alone.

    Args:
        backbone: called as ``backbone(x, model_time, conditions)``; trained with the head. Whatever comes
        after the
            tap should be cut off, it would only take memory.
        tap: the part of it whose output is looked at.
        head: of twice the features' channels when there is a start.
    """

    def __init__(self, backbone: nn.Module, tap: str, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.tap, self.head = backbone, tap, head

    def forward(
        self,
        ends: Sequence[torch.Tensor],
        end_time: torch.Tensor,
        conditions: Conditions,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Logits (B, 1) of each of ``ends``, above 0 for the teacher's.

        All points go through the encoder in one pass, the start once for all ends.

        Args:
            ends: (B, ...) each, the samples to be judged.
            end_time: (B,), their time as the network counts.
            conditions: of the B images.
            start: where the jump began, and its time; None leaves it out of the judgement.
        """
        points, times = list(ends), [end_time] * len(ends)
        if start is not None:
            points.append(start[0])
            times.append(start[1])
        told = conditions.map(lambda tensor: torch.cat([tensor] * len(points)))
        seen = features(self.backbone, self.tap, torch.cat(points), torch.cat(times), told).chunk(len(points))
        if start is not None:
            seen = tuple(torch.cat([end, seen[-1]], dim=1) for end in seen[:-1])
        return [self.head(end) for end in seen]


class ScoringDenoiser(nn.Module):
    """A denoiser with a head on its middle features: DMD2's fake score and discriminator in one.

    Args:
        network: called as ``network(x, model_time, conditions)``.
        tap: the part whose output is scored.
        head: scores it.
    """

    def __init__(self, network: nn.Module, tap: str, head: nn.Module | None) -> None:
        super().__init__()
        self.denoiser, self.tap, self.head = network, tap, head

    def forward(
        self, x_t: torch.Tensor, model_time: torch.Tensor, conditions: Conditions, logits: bool = False
    ) -> torch.Tensor:
        """The raw output (B, ...), or with ``logits`` the head's scores (B, 1)."""
        if not logits:
            output: torch.Tensor = self.denoiser(x_t, model_time, conditions)
            return output
        assert self.head is not None
        scores: torch.Tensor = self.head(features(self.denoiser, self.tap, x_t, model_time, conditions))
        return scores
