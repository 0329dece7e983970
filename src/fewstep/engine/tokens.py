"""Text to token ids with the `tokenizers` library, and a word about what did not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine.backends.base import FloatArray, IntArray
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    from fewstep.prompt.attention import Segment
    from fewstep.prompt.chunks import Chunked, TokenizerSpec


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
        self._json = tokenizer_json
        self._bare: Any = None

    def encode(self, texts: Mapping[str, str]) -> tuple[IntArray, IntArray, list[str]]:
        """Encode texts.

        Args:
            texts: what a text is called in a warning -> the text; B of them.

        Returns:
            ids and attention mask of shape (B, L), int64, and a warning for every text that was cut.
        """
        ids, mask, _, warnings = self._sequences(list(texts.items()))
        return ids, mask, warnings

    def weighed(
        self, texts: Iterable[tuple[str, Sequence[Segment]]]
    ) -> tuple[IntArray, IntArray, FloatArray, list[str]]:
        """Encode texts with a weight per token.

        The ids are those of the text without its brackets: a bracket inside a word does not divide it.

        Args:
            texts: what a text is called in a warning, and its segments without any `BREAK`; B of them.

        Returns:
            ids and mask as `encode`, weights (B, L), each that of the segment where the token ends, 1 for
            special tokens and padding, and the warnings.
        """
        pairs = [(name, list(segments)) for name, segments in texts]
        plain = [(name, "".join(segment.text for segment in segments)) for name, segments in pairs]
        ids, mask, encodings, warnings = self._sequences(plain)
        weights = np.ones(ids.shape, dtype=np.float32)
        for row, (_, segments) in enumerate(pairs):
            of_character = np.repeat([s.weight for s in segments], [len(s.text) for s in segments])
            for place, (begin, end) in enumerate(encodings[row].offsets):
                if end > begin and mask[row, place]:
                    weights[row, place] = of_character[end - 1]
        return ids, mask, weights, warnings

    def chunked(
        self, segments: Sequence[Segment], *, max_chunks: int, embeddings: Mapping[str, int] | None = None
    ) -> Chunked:
        """Divide a text into chunks that are ``length`` long with their begin and end token.

        ``embeddings`` as of `fewstep.prompt.chunks.chunk`.
        """
        from fewstep.prompt.chunks import chunk

        return chunk(segments, self._content, self.spec, max_chunks=max_chunks, embeddings=embeddings)

    @property
    def spec(self) -> TokenizerSpec:
        """What `fewstep.prompt.chunks` must know, as the tokenizer itself shows it for an empty text."""
        from fewstep.prompt.chunks import TokenizerSpec

        special = list(self._unpadded().encode("").ids)
        comma = self._unpadded().token_to_id(",</w>")
        pad = int(self._tokenizer.padding["pad_id"])
        eos = special[-1] if special else pad
        return TokenizerSpec(
            bos=special[0] if len(special) > 1 else None,
            eos=eos,
            pad=pad,
            length=self.length - len(special),
            commas=frozenset() if comma is None else frozenset({comma}),
            placeholder=0 if eos != 0 else 1,
        )

    def _content(self, text: str) -> list[int]:
        return list(self._unpadded().encode(text, add_special_tokens=False).ids)

    def _unpadded(self) -> Any:
        """The same tokenizer without padding and cutting, made when a text needs it."""
        if self._bare is None:
            from tokenizers import Tokenizer

            self._bare = Tokenizer.from_str(self._json)
            self._bare.no_padding()
            self._bare.no_truncation()
        return self._bare

    def _sequences(self, texts: list[tuple[str, str]]) -> tuple[IntArray, IntArray, list[Any], list[str]]:
        encodings = self._tokenizer.encode_batch([text for _, text in texts])
        warnings = []
        for (name, text), encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                kept = max(end for _, end in encoding.offsets)
                rest = " ".join(text[kept:].split())
                shown = rest if len(rest) <= 60 else rest[:57] + "..."
                warnings.append(
                    f"{name} longer than the encoder takes ({self.length} tokens): left out {shown!r}"
                )
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return ids, mask, list(encodings), warnings
