"""Text encoders of a pipeline as its denoiser wants them: which layer, which pooled vector, which padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.models.families import TextStyle


class Text(NamedTuple):
    """What a denoiser is told of B texts."""

    tokens: Tensor
    """(B, L, D)."""
    pooled: Tensor | None = None
    """(B, P)."""
    mask: Tensor | None = None
    """(B, L), 0 for padding that must not be attended to."""


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
        self, ids: Sequence[Tensor | None], masks: Sequence[Tensor | None], clip_skip: int = 0
    ) -> Text:
        """Encode texts.

        Args:
            ids: (B, L) per encoder; None for T5 of ``sd3`` leaves its tokens out.
            masks: as ``ids``.
            clip_skip: layers of the CLIP encoders to leave out, beyond the style's own. Both prompts skip
                them; diffusers' pipelines skip none for the negative prompt.
        """
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

    def max_clip_skip(self) -> int:
        """How many layers of its CLIP encoders can be left out."""
        if self.style == "t5":
            return 0
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        layers = [int(own.num_hidden_layers) for own in configs if own.model_type == "clip_text_model"]
        kept = 1 if self.style == "last" else 2
        return max(min(layers) - kept, 0) if layers else 0


def _given(ids: Tensor | None) -> Tensor:
    assert ids is not None, "only T5 can be left out"
    return ids
