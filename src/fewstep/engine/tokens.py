"""Text to token ids with the `tokenizers` library, and a word about what did not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewstep.engine.backends.base import IntArray
from fewstep.errors import CheckpointError


class Tokens:
    """A model's tokenizer.

    Args:
        tokenizer_json: text of a ``tokenizer.json`` that pads and cuts to ``length``.
        length: token ids per text, L.

    Raises:
        CheckpointError: the text is not a tokenizer, or pads to another length.
    """

    def __init__(self, tokenizer_json: str, length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"tokenizer.json: cannot be read ({str(error)[:100]}); export the model again"
            ) from None
        padding = self._tokenizer.padding
        if padding is None or padding.get("length") != length or self._tokenizer.truncation is None:
            raise CheckpointError(
                f"tokenizer.json: does not pad and cut to {length} tokens; export the model again"
            )
        self.length = length

    def encode(self, texts: Mapping[str, str]) -> tuple[IntArray, IntArray, list[str]]:
        """Encode texts.

        Args:
            texts: what a text is called in a warning -> the text; B of them.

        Returns:
            ids and attention mask of shape (B, L), int64, and a warning for every text that was cut.
        """
        encodings = self._tokenizer.encode_batch(list(texts.values()))
        warnings = []
        for (name, text), encoding in zip(texts.items(), encodings, strict=True):
            if encoding.overflowing:
                kept = max(end for _, end in encoding.offsets)
                rest = " ".join(text[kept:].split())
                shown = rest if len(rest) <= 60 else rest[:57] + "..."
                warnings.append(
                    f"{name} longer than the encoder takes ({self.length} tokens): left out {shown!r}"
                )
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return ids, mask, warnings
