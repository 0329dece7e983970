"""A word that a text encoder does not know: its vectors are learnt, everything else stays.

Gal et al. 2022 (arXiv 2208.01618), section 4, with several vectors a word. The learnt rows have negative
token ids, -1 for the first: CLIP finds the end of a text by its id, in older files by the largest one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import RecipeError


class WordVectors(nn.Module):
    """The vectors of a word in each text encoder: what an optimiser trains and a checkpoint holds."""

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        super().__init__()
        for number, value in enumerate(vectors):
            self.register_parameter(f"encoder_{number}", nn.Parameter(value.clone().float()))

    @property
    def by_encoder(self) -> list[nn.Parameter]:
        """(N, D) for every encoder."""
        return list(self.parameters())


class EmbeddingWithWord(nn.Module):
    """A token embedding that gives learnt rows for negative ids.

    Args:
        known: the encoder's own embedding.
        word: (N, D); id -1 - i is row i.
    """

    def __init__(self, known: nn.Module, word: nn.Parameter) -> None:
        super().__init__()
        self.known, self.word = known, word

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        learnt = ids < 0
        usual: Tensor = self.known(ids.clamp_min(0))
        rows = self.word[(-1 - ids).clamp(0, len(self.word) - 1)].to(usual.dtype)
        return torch.where(learnt[..., None], rows, usual)


def start_vectors(encoder: Any, tokenizer: Any, text: str, count: int) -> Tensor:
    """(count, D): the embeddings of the words of a text, repeated; for no words the mean of all."""
    table: Tensor = encoder.get_input_embeddings().weight.detach()
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        return table.mean(0, keepdim=True).repeat(count, 1)
    return table[torch.tensor([ids[i % len(ids)] for i in range(count)])]


class WordTokens:
    """Tokenises texts that have a learnt word in them.

    Args:
        tokenizer: of one encoder; is changed: it gets a token for every vector.
        word: as it stands in captions.
        count: of vectors.

    Raises:
        RecipeError: the word is one of the tokenizer's own tokens.
    """

    def __init__(self, tokenizer: Any, word: str, count: int) -> None:
        if {word, f"{word}</w>"} & tokenizer.get_vocab().keys():
            raise RecipeError(
                f"pictures.trigger is {word!r}: a word that the text encoder knows; choose one of your own"
            )
        self._tokenizer = tokenizer
        self._word = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        self._names = [f"<fewstep-{i}>" for i in range(count)]
        tokenizer.add_tokens(self._names)
        numbers = tokenizer.convert_tokens_to_ids(self._names)
        self._ids = dict(zip(numbers, range(-1, -1 - count, -1), strict=True))

    def __call__(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, length), int64; a text is cut at ``length``."""
        spelt = [self._word.sub("".join(self._names), text) for text in texts]
        encoded = self._tokenizer(
            spelt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        ids: Tensor = encoded.input_ids.clone()
        for number, learnt in self._ids.items():
            ids[ids == number] = learnt
        return ids, encoded.attention_mask
