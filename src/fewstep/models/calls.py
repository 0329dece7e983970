"""How each kind of denoiser is called: latents, times and conditions in, the raw output out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import ConditionedUNet

Call = Callable[[Tensor, Tensor, Conditions, Tensor | None], Tensor]
"""(x (B,C,h,w), t (B,), conditions, token mask (B,L) or None) -> raw output (B,C,h,w)."""


def caller(network: Any, downscale: int, *, empty_tokens: int = 0) -> Call:
    """How a denoiser of any family is called.

    Sizes that a network is told (SDXL's time ids, PixArt-alpha's resolution) are those of the picture that
    the latents make: drawn at that size, not cropped.

    Args:
        network: a ``UNet2DConditionModel``, ``SD3Transformer2DModel``, ``PixArtTransformer2DModel`` or
            ``DiTTransformer2DModel``.
        downscale: pixels per latent cell along one side.
        empty_tokens: tokens of zeros that stand for a missing T5 (SD3).
    """
    kind = type(network).__name__
    if kind == "SD3Transformer2DModel":
        return _sd3(network, empty_tokens)
    if kind == "PixArtTransformer2DModel":
        return _pixart(network, downscale)
    if kind == "DiTTransformer2DModel":
        return _dit(network)
    return _unet(network, downscale)


def _unet(network: Any, downscale: int) -> Call:
    conditioned = ConditionedUNet(network)
    sized = network.config.addition_embed_type == "text_time"

    def call(x: Tensor, t: Tensor, conditions: Conditions, mask: Tensor | None) -> Tensor:
        if sized:
            height, width = x.shape[2] * downscale, x.shape[3] * downscale
            # float32: their embedding is computed in it
            ids = torch.tensor([height, width, 0, 0, height, width], device=x.device, dtype=torch.float32)
            ids = ids.expand(len(x), 6)
            conditions = dataclasses.replace(conditions, time_ids=ids)
        output: Tensor = conditioned(x, t, conditions)
        return output

    return call


def _sd3(network: Any, empty_tokens: int) -> Call:
    def call(x: Tensor, t: Tensor, conditions: Conditions, mask: Tensor | None) -> Tensor:
        text = conditions.text
        assert text is not None
        if empty_tokens:
            text = torch.cat([text, text.new_zeros(len(text), empty_tokens, text.shape[2])], dim=1)
        output: Tensor = network(
            hidden_states=x,
            timestep=t,
            encoder_hidden_states=text,
            pooled_projections=conditions.pooled,
            return_dict=False,
        )[0]
        return output

    return call


def _pixart(network: Any, downscale: int) -> Call:
    def call(x: Tensor, t: Tensor, conditions: Conditions, mask: Tensor | None) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            height, width = x.shape[2] * downscale, x.shape[3] * downscale
            added["resolution"] = x.new_tensor([height, width]).expand(len(x), 2)
            added["aspect_ratio"] = x.new_tensor([height / width]).expand(len(x), 1)
        output: Tensor = network(
            x,
            encoder_hidden_states=conditions.text,
            timestep=t,
            added_cond_kwargs=added,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
        return _mean(output, x)

    return call


def _dit(network: Any) -> Call:
    def call(x: Tensor, t: Tensor, conditions: Conditions, mask: Tensor | None) -> Tensor:
        output: Tensor = network(x, timestep=t, class_labels=conditions.classes, return_dict=False)[0]
        return _mean(output, x)

    return call


def _mean(output: Tensor, x: Tensor) -> Tensor:
    """Without the second half of the channels, a learned variance, which no solver here uses."""
    return output.chunk(2, dim=1)[0] if output.shape[1] == 2 * x.shape[1] else output
