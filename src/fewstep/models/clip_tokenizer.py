"""CLIP's tokenizer from the vocabulary that comes with the package, for files that hold none.

The file is OpenAI's (``clip_vocabulary``, MIT): a list of merges, from which the vocabulary follows: 256
bytes, the same at the end of a word, the first 48,894 merges, and the two markers, 49,408 in all.
"""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

from fewstep.errors import CheckpointError

SIZE = 49_408
"""Tokens."""
LENGTH = 77
"""Tokens of one text, with its two markers."""

END = "<|endoftext|>"
START = "<|startoftext|>"
FIRST = "!"
"""The token of number 0, with which OpenCLIP pads; CLIP pads with `END`."""

_FILE = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
_MERGES = SIZE - 2 * 256 - 2


def tokenizer(padding: str = END) -> Any:
    """A transformers ``CLIPTokenizer`` as the published models of Stable Diffusion have it.

    Args:
        padding: `END`, or `FIRST` for OpenCLIP.
    """
    import transformers

    return transformers.CLIPTokenizer(
        vocab=vocabulary(),
        merges=list(_merges()),
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=padding,
        model_max_length=LENGTH,
    )


def check(tokens: int, name: str) -> None:
    """Refuse a text encoder of another vocabulary.

    Args:
        tokens: rows of its embedding table.
        name: of the file, for the message.

    Raises:
        CheckpointError: it has another size than CLIP's.
    """
    if tokens != SIZE:
        raise CheckpointError(
            f"{name}: its text encoder knows {tokens} tokens, and CLIP's vocabulary has {SIZE}; give a "
            "pipeline folder, which has a tokenizer of its own"
        )


def files() -> dict[str, bytes]:
    """The vocabulary as a tokenizer folder has it: ``vocab.json`` and ``merges.txt``."""
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _merges()), ""]
    return {
        "vocab.json": json.dumps(vocabulary(), ensure_ascii=False).encode("utf-8"),
        "merges.txt": "\n".join(lines).encode("utf-8"),
    }


@functools.cache
def vocabulary() -> dict[str, int]:
    """Token -> number."""
    letters = _letters()
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *("".join(pair) for pair in _merges()),
        START,
        END,
    ]
    return {token: number for number, token in enumerate(tokens)}


@functools.cache
def _merges() -> tuple[tuple[str, str], ...]:
    lines = gzip.decompress(_FILE.read_bytes()).decode("utf-8").split("\n")
    found = []
    for line in lines[1 : 1 + _MERGES]:  # the first is a heading
        left, right = line.split()
        found.append((left, right))
    return tuple(found)


def _letters() -> list[str]:
    """A printable letter for each of 256 bytes, in the order of the vocabulary: the printable ones first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]
