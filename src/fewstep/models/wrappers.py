"""The networks of a pipeline as modules with plain positional tensors in and one tensor out, for tracing.

Latents of the autoencoder wrappers are before scaling: scaling is two host operations, and keeping it out
of the graph keeps the graph right when a pipeline's scaling factor is corrected.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _Denoiser(nn.Module):
    """(x (B,C,h,w), t (B,), text (B,L,D)) -> raw model output (B,C,h,w)."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.unet(x, t, text, return_dict=False)[0]
        return result


class _Encoder(nn.Module):
    """Pixels (B,3,H,W) in [-1, 1] -> mean of the posterior (B,C,h,w)."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.autoencoder.encode(pixels, return_dict=False)[0].mode()
        return result


class _TinyEncoder(nn.Module):
    """Pixels (B,3,H,W) in [-1, 1] -> latents (B,C,h,w), which a tiny autoencoder makes without a variance."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.autoencoder.encode(pixels, return_dict=False)[0]
        return result


class _Decoder(nn.Module):
    """Latents (B,C,h,w) -> pixels (B,3,H,W) in about [-1, 1]."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.autoencoder.decode(latents, return_dict=False)[0]
        return result


class _MaskedText(nn.Module):
    """(ids (B,L), mask (B,L)) -> last hidden state (B,L,D)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.encoder(ids, attention_mask=mask)[0]
        return result


class _Text(nn.Module):
    """(ids (B,L),) -> last hidden state (B,L,D)."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.encoder(ids)[0]
        return result


def denoiser(unet: Any) -> nn.Module:
    """A ``UNet2DConditionModel`` as (x, t, text) -> raw model output."""
    return _Denoiser(unet).eval()


def encoder(autoencoder: Any) -> nn.Module:
    """The encoding half of an autoencoder as pixels -> posterior mean, before scaling.

    Args:
        autoencoder: an ``AutoencoderKL``, or an ``AutoencoderTiny`` (TAESD), whose latents have no posterior.
    """
    tiny = type(autoencoder).__name__ == "AutoencoderTiny"
    return (_TinyEncoder if tiny else _Encoder)(autoencoder).eval()


def decoder(autoencoder: Any) -> nn.Module:
    """The decoding half of an autoencoder as latents, before scaling -> pixels."""
    return _Decoder(autoencoder).eval()


def text_encoder(model: Any, *, masked: bool) -> nn.Module:
    """A transformers text model as ids, and the attention mask where it is used -> last hidden state."""
    return (_MaskedText(model) if masked else _Text(model)).eval()
