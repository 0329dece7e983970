"""Text becomes conditions here, for the engine and for evaluation alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fewstep.engine.tokens import Tokens

if TYPE_CHECKING:
    from fewstep.engine.backends.base import Backend, Conditions, ModelInfo

NEGATIVE = "negative prompt"
PROMPT = "prompt"


def tokenizers(info: ModelInfo) -> tuple[Tokens, ...]:
    """One tokenizer per text encoder of a model.

    Raises:
        CheckpointError: one cannot be read.
    """
    return tuple(Tokens(encoder.tokenizer_json, encoder.length) for encoder in info.encoders)


def embed(
    backend: Backend,
    tokens: tuple[Tokens, ...],
    texts: Mapping[str, str],
    *,
    clip_skip: int = 0,
) -> tuple[Conditions, list[str]]:
    """Encode texts.

    Args:
        backend: runs the text encoders.
        tokens: from `tokenizers`.
        texts: what a text is called in a warning -> the text; B of them. The one called `NEGATIVE` is zeros
            when it is empty and the model wants that (SDXL: ``force_zeros_for_empty_prompt``).
        clip_skip: last layers of the text encoder to leave out.

    Returns:
        Conditions of B rows, and a warning for every text that was cut.
    """
    encoded = [tokenizer.encode(texts) for tokenizer in tokens]
    # Two encoders with the same tokenizer cut the same text at the same place.
    warnings = list(dict.fromkeys(warning for _, _, found in encoded for warning in found))
    conditions = backend.encode_text(
        [ids for ids, _, _ in encoded], [mask for _, mask, _ in encoded], clip_skip
    )
    if backend.info.zero_empty_negative and texts.get(NEGATIVE) == "":
        conditions = _zeroed(conditions, list(texts).index(NEGATIVE))
    return conditions, warnings


def _zeroed(conditions: Conditions, row: int) -> Conditions:
    kept = np.arange(len(conditions)) != row
    tokens = np.where(kept[:, None, None], conditions.tokens, np.float32(0.0))
    pooled = conditions.pooled
    if pooled is not None:
        pooled = np.where(kept[:, None], pooled, np.float32(0.0))
    return dataclasses.replace(conditions, tokens=tokens, pooled=pooled)
