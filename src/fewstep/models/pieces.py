"""T5's vocabulary as sentencepiece wrote it (``spiece.model``), where a folder has no ``tokenizer.json``.

transformers reads such a file with sentencepiece and protobuf. It takes an empty file for an empty vocabulary
and speaks of tiktoken where the file is broken or protobuf is missing, so both are looked at here before.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fewstep.errors import CheckpointError, DependencyError

FILE = "spiece.model"
_PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
_MAX_BYTES = 64_000_000
_SPECIAL = 3
"""Padding, the end, the unknown: a vocabulary of no more has no words."""


def check(folder: Path) -> None:
    """Refuse a tokenizer folder whose only vocabulary is a sentencepiece model that cannot be read.

    Raises:
        CheckpointError: too large, broken, or without words.
        DependencyError: a package that reads it is missing.
    """
    path = folder / FILE
    if (folder / "tokenizer.json").is_file() or not path.is_file():
        return
    if missing := [package for module, package in _PACKAGES.items() if not _installed(module)]:
        raise DependencyError(
            f"{folder}: a sentencepiece model, which needs {' and '.join(missing)}; install the extra "
            "'fewstep[torch]', or: pip install sentencepiece protobuf"
        )
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: too large for a vocabulary; fetch the folder again")
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor()
        model.LoadFromSerializedProto(path.read_bytes())
        words = model.GetPieceSize()
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no sentencepiece model; fetch the folder again") from error
    if words <= _SPECIAL:
        raise CheckpointError(f"{path}: a vocabulary of {words} pieces; fetch the folder again")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False
