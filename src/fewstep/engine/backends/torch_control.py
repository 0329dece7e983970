"""Control networks of the torch backend: what ControlNets and T2I-adapters add to the U-Net's features.

Zhang 2023 (2302.05543): a ControlNet sees x_t, its time and the text, and adds to the skip connections and
behind the middle block. Mou 2023 (2302.08453): a T2I-adapter sees its picture alone, and adds inside the down
blocks. Both halves of guidance are given both, as in diffusers without its guess mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.engine.control import CLASSES, ControlUse
from fewstep.errors import CheckpointError, UsageError
from fewstep.models import families, strict
from fewstep.models.conditions import Conditions


class Controls:
    """Control networks on one device, and those of them that the present request uses.

    Args:
        unet: configuration of the model's U-Net; None for a model with another denoiser.
        downscale: pixels per latent cell.
        device: of the networks.
        dtype: of their weights.
    """

    def __init__(self, unet: Any, downscale: int, device: Any, dtype: Any) -> None:
        self._unet, self._downscale = unet, downscale
        self._device, self._dtype = device, dtype
        self._networks: dict[Path, Any] = {}
        self._used: list[tuple[Any, Tensor, float]] = []
        self._features: tuple[Tensor, ...] = ()

    def use(self, uses: Sequence[ControlUse]) -> None:
        """Take these networks from now on, and no others.

        Raises:
            UsageError: the model has no U-Net, or one of another shape.
            CheckpointError, NotFoundError: a folder that is not accepted or broken.
        """
        self._used, self._features = [], ()
        if uses and self._unet is None:
            raise UsageError(f"control {uses[0].name!r}: this model has no U-Net, leave --control out")
        for use in uses:
            network = self._network(use)
            channels = 3
            if type(network).__name__ == "T2IAdapter":
                channels = int(network.config.in_channels)
            self._used.append((network, self._pixels(use, channels), use.scale))

    def add(self, x: Tensor, t: Tensor, told: Conditions) -> Conditions:
        """Conditions with what the networks add for these latents (B, C, h, w) at times (B,).

        Raises:
            UsageError: a network that was made for another model.
        """
        if not self._used:
            return told
        residuals: list[Tensor] = []
        middle: Tensor | None = None
        for network, pixels, scale in self._used:
            if type(network).__name__ == "T2IAdapter":
                continue
            down, mid = self._controlnet(network, pixels.expand(len(x), -1, -1, -1), scale, x, t, told)
            residuals = [a + b for a, b in zip(residuals, down, strict=True)] if residuals else list(down)
            middle = mid if middle is None else middle + mid
        if not self._features:
            self._features = self._adapters()
        # Every guided call has its own number of rows; an adapter's features are the same for all.
        features = tuple(feature.expand(len(x), -1, -1, -1).clone() for feature in self._features)
        return dataclasses.replace(
            told, residuals=tuple(residuals), mid_residual=middle, adapter_residuals=features
        )

    def _controlnet(
        self, network: Any, pixels: Tensor, scale: float, x: Tensor, t: Tensor, told: Conditions
    ) -> tuple[Sequence[Tensor], Tensor]:
        added: dict[str, Tensor] | None = None
        if network.config.addition_embed_type == "text_time":
            height, width = x.shape[2] * self._downscale, x.shape[3] * self._downscale
            ids = torch.tensor([height, width, 0, 0, height, width], device=x.device, dtype=torch.float32)
            assert told.pooled is not None
            added = {"text_embeds": told.pooled, "time_ids": ids.expand(len(x), 6)}
        down, mid = network(
            x,
            t,
            encoder_hidden_states=told.text,
            controlnet_cond=pixels,
            conditioning_scale=scale,
            added_cond_kwargs=added,
            return_dict=False,
        )
        return down, mid

    def _adapters(self) -> tuple[Tensor, ...]:
        total: list[Tensor] = []
        for network, pixels, scale in self._used:
            if type(network).__name__ == "T2IAdapter":
                features = [feature * scale for feature in network(pixels)]
                total = [a + b for a, b in zip(total, features, strict=True)] if total else features
        return tuple(total)

    def _network(self, use: ControlUse) -> Any:
        if use.folder not in self._networks:
            network = load(use.folder)
            _check_fits(use.name, network, self._unet)
            torch.nn.Module.to(network, self._device, self._dtype)
            self._networks[use.folder] = network
        return self._networks[use.folder]

    def _pixels(self, use: ControlUse, channels: int) -> Tensor:
        """(1, C, H, W) in [0, 1]; grey where the network has one channel."""
        pixels = use.image.astype(np.float32) / np.float32(255.0)
        if channels == 1:
            # Rec. 601, as PIL's "L".
            pixels = (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
        array = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return torch.from_numpy(array).to(self._device, self._dtype)


def load(folder: Path) -> Any:
    """Load a control network: a folder with ``config.json`` and safetensors.

    Raises:
        CheckpointError: a class that is not in `CLASSES`, a pickle, or a broken file.
        NotFoundError: no weights.
    """
    import diffusers

    kind = families.config(folder).get("_class_name")
    if kind not in CLASSES:
        raise CheckpointError(
            f"{folder}: _class_name is {kind!r:.80}; only these are read as control networks: "
            f"{', '.join(CLASSES)}"
        )
    return strict.diffusers_network(getattr(diffusers, kind), folder, torch.float32, "a control network")


def _check_fits(name: str, network: Any, unet: Any) -> None:
    """Refuse a network whose features cannot be added to the U-Net's."""
    if type(network).__name__ == "T2IAdapter":
        theirs = list(network.config.channels)
        fits = theirs == list(unet["block_out_channels"])[: len(theirs)]
        what = f"channels {theirs}, the model {list(unet['block_out_channels'])}"
    else:
        keys = ("block_out_channels", "cross_attention_dim", "layers_per_block")
        pairs = {key: (_plain(network.config.get(key)), _plain(unet.get(key))) for key in keys}
        # A configuration that was written by hand may leave a key out.
        fits = all(None in pair or pair[0] == pair[1] for pair in pairs.values())
        what = ", ".join(f"{key} {mine}, the model {own}" for key, (mine, own) in pairs.items())
    if not fits:
        raise UsageError(
            f"control {name!r}: made for another model (it has {what}); take one of the model's family"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
