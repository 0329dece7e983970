"""A folder of images, each with its caption in a text file of the same name or in ``metadata.jsonl``."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fewstep.data.sources.sample import Sample
from fewstep.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


METADATA = "metadata.jsonl"
"""One JSON object a line: ``file_name``, relative to the folder, and ``text``, as `datasets` reads it."""


class FolderSource:
    """Images of a folder and its sub-folders: `b.jpg` has its caption in `b.txt`, its scores in `b.json`.

    A `METADATA` file may have captions too; a text file goes before it.

    Args:
        folder: the folder.
        caption: of images that have none; without it such an image is a bad sample.
        read_all: let the fingerprint depend on what is in the images, for small folders.

    Raises:
        DataError: no such folder, no image in it, or a broken `METADATA`.
    """

    def __init__(self, folder: Path, *, caption: str | None = None, read_all: bool = False) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give a folder of images with captions in .txt files")
        self._folder, self._caption, self._read_all = folder, caption, read_all
        found = [
            Path(current, name).relative_to(folder)
            for current, _, names in os.walk(folder)
            for name in names
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
        ]
        self._names = sorted(found, key=lambda path: path.as_posix())
        if not self._names:
            raise DataError(
                f"{folder}: no image in this folder; known endings are {', '.join(sorted(SUFFIXES))}"
            )
        self._listed = _listed(folder / METADATA)

    def __len__(self) -> int:
        return len(self._names)

    def key(self, index: int) -> str:
        """Return the path inside the folder."""
        return self._names[index].as_posix()

    def read(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: no caption file, or one that is not UTF-8.
        """
        image = self._folder / self._names[index]
        caption = self.caption(index)
        extra = image.with_suffix(".json")
        metadata: dict[str, Any] = {}
        if extra.is_file():
            metadata = read_object(read_text(extra, "metadata"))
        return Sample(self.key(index), image, caption, metadata)

    def caption(self, index: int) -> str:
        """Return a sample's caption.

        Raises:
            DataError: there is none, or it is not UTF-8.
        """
        beside = (self._folder / self._names[index]).with_suffix(".txt")
        if not beside.is_file():
            listed = self._listed.get(self.key(index), self._caption)
            if listed is not None:
                return listed
        text = read_text(beside, "caption")
        return text if text.strip() or self._caption is None else self._caption

    def fingerprint(self) -> str:
        """Return a hash of names, image sizes in bytes and captions; of contents with ``read_all`` only."""
        digest = hashlib.sha256()
        if self._listed or self._caption is not None:
            digest.update(json.dumps([self._listed, self._caption], sort_keys=True).encode())
        for index, name in enumerate(self._names):
            image = self._folder / name
            caption = image.with_suffix(".txt")
            digest.update(f"{self.key(index)}\0{image.stat().st_size if image.is_file() else -1}\0".encode())
            if self._read_all and image.is_file():
                with image.open("rb") as handle:
                    digest.update(hashlib.file_digest(handle, "sha256").digest())
            digest.update(caption.read_bytes() if caption.is_file() else b"\0missing")
        return digest.hexdigest()


def _listed(path: Path) -> dict[str, str]:
    """Captions of a `METADATA` file by the image's name; empty where there is no such file."""
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save it as UTF-8, or remove it") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = read_object(line)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}; correct the line, or remove the file") from None
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f"{path}, line {number}: no file_name with its text; give both as texts")
        found[name] = text
    return found


def read_text(path: Path, what: str) -> str:
    """Read a small UTF-8 text file of a sample.

    Raises:
        DataError: missing, larger than 1 MB, or not UTF-8.
    """
    try:
        if path.stat().st_size > 2**20:
            raise DataError(f"{what} file too large: {path.name} has more than 1 MB")
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no {what} file: {path.name} is not there") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{what} not UTF-8: {path.name}, byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{what} not readable: {path.name} ({error.strerror})") from error


def read_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        DataError: not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"not a JSON object: {type(value).__name__}")
    return value
