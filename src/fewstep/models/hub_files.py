"""Which files of a repository of models are fetched: by an allow-list, before any of them is.

Names are a stranger's text: one that is hidden, leads out of the folder or lies deep is not there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fewstep.checkpoint.naming import shown
from fewstep.errors import NotFoundError, UsageError
from fewstep.models import families

_SUFFIXES = (".safetensors", ".json", ".txt")
_ALSO = frozenset({"spiece.model"})
"""T5's vocabulary, a table of sentencepiece."""
_MAX_TEXT = 50_000_000
"""Bytes of a file that is not weights."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema)[.-]")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit."""

    name: str
    size: int
    sha256: str | None = None
    """Where the hub knows it: of large files."""
    blob: str | None = None
    """Git's SHA-1 of a file that is not large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """``owner/name[@revision]``."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """Of the model here."""
        return self.repository.partition("/")[2]


def read_reference(text: str) -> Reference:
    """Read ``owner/name[@revision]``.

    Raises:
        UsageError: another form.
    """
    repository, at, revision = text.partition("@")
    good = _REPOSITORY.fullmatch(repository) and ".." not in text
    if not good or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(f"{text!r:.200} is no repository: give owner/name or owner/name@revision")
    return Reference(repository=repository, revision=revision or "main")


def choose(reference: Reference, there: Sequence[RemoteFile], file: str | None) -> list[RemoteFile]:
    """The files to fetch.

    Args:
        reference: for messages.
        there: all files of the repository.
        file: the one that is wanted; None for the whole model.

    Raises:
        NotFoundError: there is none that is fetched, or not this one.
        UsageError: there are several, and none is named.
    """
    allowed = {one.name: one for one in there if _allowed(one)}
    if file is not None:
        if file not in allowed or not file.endswith(".safetensors"):
            listed = ", ".join(sorted(name for name in allowed if name.endswith(".safetensors"))[:20])
            raise NotFoundError(
                f"{reference.repository}: no weight file {file!r:.120} to be had; there are: "
                f"{listed or 'none'}"
            )
        return [allowed[file]]
    if "model_index.json" in allowed:
        return _pipeline(list(allowed.values()))
    weights = [one for name, one in allowed.items() if name.endswith(".safetensors")]
    if len(weights) == 1:
        return weights
    if not weights:
        raise NotFoundError(
            f"{reference.repository}: holds no safetensors; a repository of pickles is not downloaded"
        )
    names = ", ".join(one.name for one in weights[:20])
    raise UsageError(
        f"{reference.repository}: no pipeline folder, but {len(weights)} weight files; give one with "
        f"--file: {shown(names, 800)}"
    )


def _allowed(one: RemoteFile) -> bool:
    path = PurePosixPath(one.name)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in one.name
    visible = not any(part.startswith(".") for part in path.parts)
    known = path.suffix in _SUFFIXES or path.name in _ALSO
    small = path.suffix == ".safetensors" or one.size <= _MAX_TEXT
    return plain and visible and known and small and one.name.isprintable() and len(path.parts) <= 3


def _pipeline(there: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Files of a pipeline folder: of the parts that are loaded, in half precision where there is that."""
    parts = {part for family in families.FAMILIES for part in family.parts}
    chosen = [one for one in there if one.name in ("model_index.json", "fewstep.json")]
    for part in sorted(parts):
        inside = [one for one in there if one.name.startswith(f"{part}/") and one.name.count("/") == 1]
        weights = [one for one in inside if _is_weights(one.name)]
        half = [one for one in weights if ".fp16" in one.name]
        plain = [one for one in weights if not _VARIANT.search(one.name)]
        chosen += [one for one in inside if not _is_weights(one.name)] + (half or plain)
    return chosen


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or ".safetensors.index." in name
