"""Text encoders of a pipeline as its denoiser wants them: which layer, which pooled vector, which padding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.models.families import TextStyle

Placed = tuple[int, int, Tensor]
"""Row and position of vectors (n, width) that are read in place of those of token ids."""


class Text(NamedTuple):
    """What a denoiser is told of B texts."""

    tokens: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, P)."""
    mask: Tensor | None = None
    """(B, L), 0 for padding that must not be attended to."""
    classes: Tensor | None = None
    """(B,), in place of a text."""


class TextStack(nn.Module):
    """All text encoders of a pipeline.

    Args:
        style: how their outputs are put together.

            ``last``: the last hidden state of one encoder (Stable Diffusion 1 and 2; BERT). Stable Diffusion
            2's files hold one layer less, so that this is OpenCLIP's last but one.
            ``sdxl``: the last hidden state but one of two CLIPs side by side, pooled from the second.
            ``sd3``: the same of two CLIPs, padded to T5's width, T5's tokens behind them, both pooled. Where
            T5 is missing, `fewstep.models.calls` puts zeros in its place.
            ``t5``: T5's last hidden state with its attention mask.
        encoders: transformers models in the order of the style; SD3 may come without T5.
        width: D, for ``sd3``.
        masked: give the encoder of ``last`` its attention mask.
    """

    def __init__(
        self,
        style: TextStyle,
        encoders: Sequence[Any],
        *,
        width: int = 0,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.style = style
        self.encoders = nn.ModuleList(encoders)
        self.width, self.masked = width, masked

    def forward(
        self,
        ids: Sequence[Tensor | None],
        masks: Sequence[Tensor | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Text:
        """Encode texts.

        Args:
            ids: (B, L) per encoder; None for T5 of ``sd3`` leaves its tokens out.
            masks: as ``ids``.
            clip_skip: layers of the CLIP encoders to leave out, beyond the style's own. Both prompts skip
                them; diffusers' pipelines skip none for the negative prompt.
            placed: per encoder, vectors of textual inversion; empty without any.
        """
        with contextlib.ExitStack() as stack:
            for encoder, own in zip(self.encoders, placed, strict=False):
                if own:
                    stack.enter_context(_with_vectors(encoder, own))
            return self._encoded(ids, masks, clip_skip)

    def _encoded(self, ids: Sequence[Tensor | None], masks: Sequence[Tensor | None], clip_skip: int) -> Text:
        if self.style == "last":
            return Text(self._last(ids[0], masks[0], clip_skip))
        if self.style == "t5":
            hidden = self.encoders[0](_given(ids[0]), attention_mask=masks[0])[0]
            return Text(hidden, mask=masks[0])
        pairs = [
            self._clip(encoder, _given(own), clip_skip)
            for encoder, own in zip(self.encoders[:2], ids[:2], strict=True)
        ]
        tokens = torch.cat([hidden for hidden, _ in pairs], dim=-1)
        if self.style == "sdxl":
            return Text(tokens, pairs[1][1])
        pooled = torch.cat([pooled for _, pooled in pairs], dim=-1)
        return Text(self._with_t5(tokens, ids[2] if len(ids) > 2 else None), pooled)

    def _last(self, ids: Tensor | None, mask: Tensor | None, clip_skip: int) -> Tensor:
        encoder: Any = self.encoders[0]
        given = mask if self.masked else None
        if clip_skip == 0:
            last: Tensor = encoder(_given(ids), attention_mask=given)[0]
            return last
        states = encoder(_given(ids), attention_mask=given, output_hidden_states=True).hidden_states
        # As the last state went through it, so must an earlier one.
        normed: Tensor = encoder.final_layer_norm(states[-(clip_skip + 1)])
        return normed

    def _clip(self, encoder: Any, ids: Tensor, clip_skip: int) -> tuple[Tensor, Tensor]:
        output = encoder(ids, output_hidden_states=True)
        return output.hidden_states[-(clip_skip + 2)], output[0]

    def _with_t5(self, clip: Tensor, ids: Tensor | None) -> Tensor:
        padded = nn.functional.pad(clip, (0, self.width - clip.shape[-1]))
        if ids is None:
            return padded
        return torch.cat([padded, self.encoders[2](ids)[0]], dim=1)

    def widths(self) -> tuple[int, ...]:
        """Numbers per token of every encoder, where they stand side by side; else zeros."""
        encoders: list[Any] = list(self.encoders)
        return tuple(int(one.config.hidden_size) if self.style == "sdxl" else 0 for one in encoders)

    def vector_widths(self) -> tuple[int, ...]:
        """Numbers of a token's vector, as CLIP encoders take one from elsewhere; zeros of other encoders."""
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        return tuple(int(own.hidden_size) if own.model_type == "clip_text_model" else 0 for own in configs)

    def max_clip_skip(self) -> int:
        """How many layers of its CLIP encoders can be left out."""
        if self.style == "t5":
            return 0
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        layers = [int(own.num_hidden_layers) for own in configs if own.model_type == "clip_text_model"]
        kept = 1 if self.style == "last" else 2
        return max(min(layers) - kept, 0) if layers else 0


class ClassStack(nn.Module):
    """In place of a `TextStack`, for models that draw classes: a text is one id, that of its class."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList()

    def forward(
        self,
        ids: Sequence[Tensor | None],
        masks: Sequence[Tensor | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Text:
        """Ids of shape (B, 1) as classes, and tokens of shape (B, 1, 1) that nobody reads."""
        classes = _given(ids[0])[:, 0]
        return Text(torch.zeros(len(classes), 1, 1, device=classes.device), classes=classes)

    def widths(self) -> tuple[int, ...]:
        """As of `TextStack`."""
        return (0,)

    def vector_widths(self) -> tuple[int, ...]:
        """As of `TextStack`."""
        return (0,)

    def max_clip_skip(self) -> int:
        """As of `TextStack`."""
        return 0


@contextlib.contextmanager
def _with_vectors(encoder: Any, placed: Sequence[Placed]) -> Iterator[None]:
    """Inside the block an encoder reads these vectors where their ids stand.

    The ids stay: encoders look among them for the token whose output is the pooled vector.
    """

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        for row, position, vectors in placed:
            changed[row, position : position + len(vectors)] = vectors.to(changed)
        return changed

    handle = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _given(ids: Tensor | None) -> Tensor:
    assert ids is not None, "only T5 can be left out"
    return ids
