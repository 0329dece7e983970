"""CLIP's tokenizer from the package's vocabulary: published numbers, another reading of the same merges."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import re
import unicodedata
from pathlib import Path

import pytest

from fewstep.checkpoint import tokenizers as folders
from fewstep.engine.tokens import Tokens
from fewstep.errors import CheckpointError
from fewstep.models import clip_tokenizer, fixed_tokenizer

FOLDER = Path(clip_tokenizer.__file__).parent / "clip_vocabulary"
TEXTS = (
    "a photo of a cat",
    "A RED apple, on a blue table!!",
    "it's 42 don't",
    "naïve café déjà-vu",
    "日本の猫 и кошка",
    "  spaces\tand\nlines  ",
    "emoji 🍎🍏 (masterpiece:1.2), [x|y]",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "3.14159 100% #tag @user",
    "",
)


def test_the_file_is_openais_and_says_so():
    data = (FOLDER / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    text = (FOLDER / "LICENSE").read_text()
    assert digest in text and "MIT License" in text and "Copyright (c) 2021 OpenAI" in text
    assert "clip_vocabulary" in (FOLDER.parents[3] / "NOTICE").read_text()


def test_numbers_that_are_published():
    """Of the README of openai/CLIP's users and of every model card: 49406 begins, 49407 ends."""
    vocabulary = clip_tokenizer.vocabulary()
    assert len(vocabulary) == clip_tokenizer.SIZE == len(set(vocabulary.values()))
    assert vocabulary["<|startoftext|>"] == 49406 and vocabulary["<|endoftext|>"] == 49407
    assert vocabulary["!"] == 0 and vocabulary["a</w>"] == 320
    assert clip_tokenizer.tokenizer()("a photo of a cat").input_ids == [
        49406,
        320,
        1125,
        539,
        320,
        2368,
        49407,
    ]


@pytest.mark.parametrize("padding", [clip_tokenizer.END, clip_tokenizer.FIRST])
@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_what_the_algorithm_says(text, padding):
    tokenizer = clip_tokenizer.tokenizer(padding)
    made = fixed_tokenizer.to_json(tokenizer)
    ids, mask, warnings = Tokens(made, clip_tokenizer.LENGTH).encode({"prompt": text})
    plain = text if padding == clip_tokenizer.END else text.replace("!", "")
    expected = [49406, *plainly(plain), 49407]
    if padding == clip_tokenizer.END or "!" not in text:
        assert ids[0, : len(expected)].tolist() == expected
    pad = clip_tokenizer.vocabulary()[padding]
    length = int(mask.sum())
    assert (ids[0, length:] == pad).all() and not warnings
    assert ids[0, :length].tolist() == tokenizer(text).input_ids


@pytest.mark.parametrize("padding", [clip_tokenizer.END, clip_tokenizer.FIRST])
def test_it_is_the_tokenizer_of_a_folder_with_the_same_vocabulary(padding, tmp_path):
    import transformers

    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in clip_tokenizer._merges()), ""])
    files = {
        "vocab.json": json.dumps(clip_tokenizer.vocabulary()).encode(),
        "merges.txt": merges.encode(),
    }
    for name, data in folders._clip(files, padding).items():
        (tmp_path / name).write_bytes(data)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = clip_tokenizer.tokenizer(padding)
    assert fixed_tokenizer.to_json(ours) == fixed_tokenizer.to_json(theirs)


def test_another_vocabulary_is_refused():
    with pytest.raises(CheckpointError, match=r"x: its text encoder knows 99 tokens, and CLIP's .* 49408"):
        clip_tokenizer.check(99, "x")


def plainly(text: str) -> list[int]:
    """The byte-pair encoding of Sennrich (2016, 1508.07909) as CLIP uses it, read from the file anew."""
    ranks, numbers, letters = _table()
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()
    found = []
    for word in _words(text):
        pieces = [letters[byte] for byte in word.encode("utf-8")]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            pairs = [(ranks.get((a, b), 10**9), i) for i, (a, b) in enumerate(itertools.pairwise(pieces))]
            rank, index = min(pairs)
            if rank == 10**9:
                break
            pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
        found += [numbers[piece] for piece in pieces]
    return found


def _words(text: str) -> list[str]:
    """Contractions, runs of letters, single digits, runs of anything else that is no space."""
    words, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        if match := re.match(r"'(?:s|t|re|ve|m|ll|d)", text[at:]):
            end = at + match.end()
        else:
            kind, end = _kind(text[at]), at + 1
            while kind != "N" and end < len(text) and _kind(text[end]) == kind:
                end += 1
        words.append(text[at:end])
        at = end
    return words


def _kind(letter: str) -> str:
    if letter.isspace():
        return " "
    category = unicodedata.category(letter)[0]
    return category if category in "LN" else "other"


@functools.cache
def _table() -> tuple[dict[tuple[str, str], int], dict[str, int], dict[int, str]]:
    lines = gzip.decompress((FOLDER / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    hidden = [b for b in range(256) if b not in shown]
    letters = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    single = [letters[b] for b in (*shown, *hidden)]
    pieces = [*single, *(piece + "</w>" for piece in single), *("".join(pair) for pair in merges)]
    return (
        {pair: rank for rank, pair in enumerate(merges)},
        {piece: number for number, piece in enumerate(pieces)},
        letters,
    )
