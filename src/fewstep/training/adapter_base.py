"""The model that an adapter is taught on: opened, its text and pictures encoded, its denoiser callable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.checkpoint import bundle, safetensors
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import CheckpointError, NotFoundError
from fewstep.models import calls, families, load, opening, wrappers
from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import ConditionedUNet
from fewstep.models.opening import OpenedModel
from fewstep.models.prompting import Text, TextStack
from fewstep.models.source import ModelSource
from fewstep.training.adapter_sections import Base
from fewstep.training.objectives.textual_inversion import WordTokens

Given = Mapping[str, Tensor]
"""What a denoiser is told of B texts: ``tokens`` (B, L, D) with ``pooled`` (B, P) and ``mask`` (B, L) where
the family has them; or, where text is encoded in every step, ``ids_0`` and ``mask_0`` (B, L) of each encoder,
and ``empty`` (B,), 1 where the text is none. ``time_ids`` (B, 6) for SDXL."""

_ROWS = 4  # pictures and texts encoded at a time


@dataclass(frozen=True)
class TaughtModel:
    """A base model with what training asks of it; networks are loaded when they are first used."""

    opened: OpenedModel
    contract: SamplingContract
    hash: str
    """Of the base and of the student in it."""
    student: str | None = None
    schedule: Schedule = field(init=False)
    _words: list[WordTokens] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", self.contract.make_schedule())

    @cached_property
    def network(self) -> Any:
        """The denoiser, float32, frozen."""
        if self.student is None:
            return self.opened.denoiser.load(torch.float32)
        assert self.opened.folder is not None
        network, _ = load.load_student(self.opened.folder, self.student)
        return network.requires_grad_(False)

    @cached_property
    def autoencoder(self) -> Any:
        """The autoencoder, float32, frozen."""
        return self.opened.parts["vae"].load(torch.float32)

    @cached_property
    def text(self) -> TextStack:
        """The text encoders, float32, frozen."""
        opened = self.opened
        encoders = [opened.parts[name].load(torch.float32) for name in opened.text_parts]
        stack = TextStack(
            opened.family.text,
            encoders,
            width=int(opened.denoiser.config.get("joint_attention_dim") or 0),
            masked=bool(getattr(encoders[0].config, "use_attention_mask", False)),
        )
        return stack.eval().requires_grad_(False)

    @cached_property
    def tokenizers(self) -> list[Any]:
        """Of the text encoders, in their order."""
        return self.opened.tokenizers()

    @property
    def part(self) -> str:
        """``unet`` or ``transformer``."""
        return self.opened.family.denoiser

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along one side."""
        return families.downscale(self.opened.parts["vae"].config)

    @property
    def sized(self) -> bool:
        """Whether the denoiser is told the picture's size and crop (SDXL)."""
        return self.opened.denoiser.config.get("addition_embed_type") == "text_time"

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.contract.native_sizes[0]

    @property
    def size_multiple(self) -> int:
        """Widths and heights are multiples of this."""
        if self.part == "transformer":
            return self.downscale * int(self.opened.denoiser.config.get("patch_size") or 1)
        # every level of the U-Net but the last halves the latents
        levels = len(self.opened.denoiser.config.get("block_out_channels") or [1])
        return self.downscale * (1 << (levels - 1))

    def caller(self) -> calls.Call:
        """How its denoiser is called."""
        family = self.opened.family
        missing = family.max_tokens is not None and "text_encoder_3" not in self.opened.parts
        return calls.caller(
            self.network, self.downscale, empty_tokens=(family.max_tokens or 0) if missing else 0
        )

    def encode_images(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scaled latents (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1]: the posterior's mode."""
        encoder = wrappers.encoder(self.autoencoder)
        scale, shift = self._latent_scale()
        with torch.no_grad():
            parts = [encoder(torch.from_numpy(pixels[i : i + 1])) for i in range(len(pixels))]
            latents: NDArray[np.float32] = ((torch.cat(parts) - shift) * scale).float().numpy()
        return latents

    def decode(self, latents: Tensor) -> NDArray[np.float32]:
        """Pictures (B, 3, H, W) in [-1, 1] of scaled latents."""
        decoder, (scale, shift) = wrappers.decoder(self.autoencoder), self._latent_scale()
        with torch.no_grad():
            raw = latents.float().cpu() / scale + shift
            parts = [decoder(raw[i : i + 1]) for i in range(len(raw))]
            pixels: NDArray[np.float32] = torch.cat(parts).clamp(-1, 1).numpy()
        return pixels

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids_i`` and ``mask_i`` (B, L), int64, of every encoder."""
        family, found = self.opened.family, {}
        prepared = [text.lower().strip() if family.text == "t5" else text for text in texts]
        for number, tokenizer in enumerate(self.tokenizers):
            t5 = type(tokenizer).__name__.lower().startswith("t5")
            length = family.max_tokens if t5 and family.max_tokens else int(tokenizer.model_max_length)
            if self._words:
                found[f"ids_{number}"], found[f"mask_{number}"] = self._words[number](prepared, length)
                continue
            encoded = tokenizer(
                prepared, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            found[f"ids_{number}"] = encoded.input_ids
            found[f"mask_{number}"] = encoded.attention_mask
        return found

    def know_word(self, words: Sequence[WordTokens]) -> None:
        """Let `tokens` find a learnt word; one of each tokenizer."""
        self._words[:] = words

    def encode_text(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``tokens``, ``pooled`` and ``mask`` of texts as drawing encodes them; an empty one may be zeros."""
        parts = []
        for start in range(0, len(texts), _ROWS):
            some = list(texts[start : start + _ROWS])
            with torch.no_grad():
                parts.append(told(self.text, self.live(some), zero_empty=self.zero_empty))
        names = [name for name in ("tokens", "pooled", "mask") if name in parts[0]]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def live(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `told` needs to encode texts in every step."""
        return self.tokens(texts) | {"empty": torch.tensor([float(not text) for text in texts])}

    @property
    def zero_empty(self) -> bool:
        """Whether the empty text is zeros (SDXL)."""
        return self.opened.index.zero_empty_negative

    def free(self, *, text: bool, autoencoder: bool) -> None:
        """Let go of networks that are not needed any more."""
        for name, unused in (("text", text), ("autoencoder", autoencoder)):
            if unused:
                self.__dict__.pop(name, None)

    def _latent_scale(self) -> tuple[Any, Any]:
        """(scale, shift) of ``(mean - shift) * scale``, by channel where the autoencoder has statistics."""
        config = self.autoencoder.config
        scale, mean, std = float(config.scaling_factor), config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            return scale / torch.tensor(std).view(1, -1, 1, 1), torch.tensor(mean).view(1, -1, 1, 1)
        return scale, float(config.get("shift_factor") or 0.0)


class TaughtDenoiser(nn.Module):
    """A denoiser as adapters are trained: ``module(x_t, model_time, given) -> raw output``.

    Args:
        model: whose network is called; its parameters are this module's.
        live: encode text in every step, with gradients for what is trained in the encoders.
    """

    def __init__(self, model: TaughtModel, *, live: bool) -> None:
        super().__init__()
        self.network = model.network
        self.text = model.text if live else None
        self._zero_empty = model.zero_empty
        self._call = model.caller()
        self._conditioned = (ConditionedUNet(self.network),) if model.sized else None  # not a submodule twice

    def train(self, mode: bool = True) -> TaughtDenoiser:
        """Training mode for the denoiser only: a text encoder's own dropout is not wanted."""
        super().train(mode)
        if self.text is not None:
            self.text.eval()
        return self

    def forward(self, x_t: Tensor, model_time: Tensor, given: Given) -> Tensor:
        """Raw output (B, C, h, w) for x_t (B, C, h, w) and the network's times (B,)."""
        if self.text is not None:
            given = {**given, **told(self.text, given, zero_empty=self._zero_empty)}
        conditions = Conditions(
            text=given["tokens"], pooled=given.get("pooled"), time_ids=given.get("time_ids")
        )
        if self._conditioned is not None and conditions.time_ids is not None:
            output: Tensor = self._conditioned[0](x_t, model_time, conditions)
            return output
        return self._call(x_t, model_time, conditions, given.get("mask"))


def told(stack: TextStack, live: Given, *, zero_empty: bool) -> dict[str, Tensor]:
    """Encode tokens: ``ids_i``, ``mask_i`` and ``empty`` become ``tokens``, ``pooled`` and ``mask``."""
    count = len(stack.encoders)
    text: Text = stack([live[f"ids_{i}"] for i in range(count)], [live[f"mask_{i}"] for i in range(count)])
    tokens, pooled = text.tokens, text.pooled
    if zero_empty:
        kept = (1.0 - live["empty"]).to(tokens.dtype)
        tokens = tokens * kept[:, None, None]
        pooled = None if pooled is None else pooled * kept[:, None]
    found = {"tokens": tokens}
    if pooled is not None:
        found["pooled"] = pooled
    if text.mask is not None:
        found["mask"] = text.mask
    return found


def open_base(section: Base) -> TaughtModel:
    """Open the model that a recipe names.

    Raises:
        NotFoundError: nothing at a path, or no such student.
        CheckpointError: a model that cannot be taught, or none at all.
    """
    path = Path(section.path).expanduser()
    if not path.exists():
        raise NotFoundError(f"base.path {path}: nothing there; give a pipeline folder or a single file")
    if bundle.is_bundle(path):
        raise CheckpointError(
            f"{path}: a runtime bundle, which can be drawn with but not taught; give the pipeline folder "
            "that it was made from"
        )
    source = ModelSource(
        base=path,
        denoiser=None if section.unet is None else Path(section.unet).expanduser(),
        vae=None if section.vae is None else Path(section.vae).expanduser(),
    )
    opened = opening.open_model(source)
    _check_teachable(opened)
    if section.student is None:
        return TaughtModel(opened=opened, contract=opened.contract, hash=opened.hash)
    contracts = {} if opened.folder is None else load.student_contracts(opened.folder)
    if section.student not in contracts:
        raise NotFoundError(
            f"base.student {section.student!r}: {opened.name} has no such student; there are: "
            f"{', '.join(contracts) or 'none'}"
        )
    assert opened.folder is not None
    own = safetensors.folder_hash(opened.folder / bundle.student_part(section.student))
    return TaughtModel(opened=opened, contract=contracts[section.student], hash=own, student=section.student)


def _check_teachable(opened: OpenedModel) -> None:
    config, title = opened.denoiser.config, opened.family.title
    channels = opened.parts["vae"].config.get("latent_channels")
    if config.get("in_channels") != channels:
        raise CheckpointError(
            f"{opened.name}: its denoiser takes {config.get('in_channels')} channels and the autoencoder has "
            f"{channels}: a model for inpainting or editing, which cannot be taught yet; give a plain model "
            f"of {title}, and use the adapter on this one"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise CheckpointError(
            f"{opened.name}: is told its guidance as a number, and cannot be taught without its teacher; "
            f"give the model of {title} that it was distilled from, and use the adapter on this one"
        )
