"""T5's vocabulary where a folder has only ``spiece.model``: read as sentencepiece does, or refused."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import CheckpointError, DependencyError
from fewstep.models import load, pieces

sentencepiece = pytest.importorskip("sentencepiece")
pytest.importorskip("google.protobuf")


@pytest.fixture(scope="module")
def model() -> bytes:
    texts = ["a red apple on a blue table", "green pear & yellow banana!", "Übergröße naïve café"] * 20
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=writer, vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return writer.getvalue()


def folder(root: Path, data: bytes) -> Path:
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    (root / "tokenizer" / "spiece.model").write_bytes(data)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    return root / "tokenizer"


@pytest.mark.parametrize("class_name", ["T5Tokenizer", "T5TokenizerFast"])
def test_the_tokenizer_gives_sentencepieces_numbers(class_name: str, model: bytes, tmp_path: Path) -> None:
    opened = load._tokenizer(folder(tmp_path, model), class_name)
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in ("a red apple", "Übergröße  two   spaces", "apple 日本 table", " leading", "", "<b>&"):
        assert opened(text)["input_ids"] == [*own.encode(text), own.eos_id()]
    padded = opened("a", padding="max_length", max_length=8, truncation=True)
    assert padded["input_ids"][-1] == own.pad_id() and sum(padded["attention_mask"]) < 8


@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "cut", "noise"])
def test_a_file_that_is_broken_is_said_to_be(kind: str, model: bytes, tmp_path: Path) -> None:
    data = {
        "empty": b"",
        "text": b"x",
        "pickle": b"\x80\x04\x95" + bytes(100),
        "cut": model[: len(model) // 3],
        "noise": bytes(range(256)) * 20,
    }[kind]
    with pytest.raises(CheckpointError, match=r"spiece\.model: no sentencepiece model; fetch"):
        load._tokenizer(folder(tmp_path, data), "T5Tokenizer")


def test_a_file_that_is_too_large_is_not_read(model: bytes, tmp_path: Path) -> None:
    path = folder(tmp_path, model) / "spiece.model"
    with path.open("r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(CheckpointError, match="too large for a vocabulary"):
        pieces.check(path.parent)


@pytest.mark.parametrize(
    ("missing", "said"), [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")]
)
def test_the_package_that_is_missing_is_named(
    missing: str, said: str, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return None if name == missing else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(DependencyError, match=rf"which needs {said}; install the extra 'fewstep\[torch\]'"):
        pieces.check(folder(tmp_path, model))


def test_a_folder_with_the_newer_file_needs_none_of_them(tmp_path: Path) -> None:
    path = folder(tmp_path, b"broken")
    (path / "tokenizer.json").write_text("{}")
    pieces.check(path)
