"""A folder of images, each with its caption in a text file of the same name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fewstep.data.sources.sample import Sample
from fewstep.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


class FolderSource:
    """Images of a folder and its sub-folders: `b.jpg` has its caption in `b.txt`, its scores in `b.json`.

    Raises:
        DataError: no such folder, or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give a folder of images with captions in .txt files")
        self._folder = folder
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
        caption = read_text(image.with_suffix(".txt"), "caption")
        extra = image.with_suffix(".json")
        metadata: dict[str, Any] = {}
        if extra.is_file():
            metadata = read_object(read_text(extra, "metadata"))
        return Sample(self.key(index), image, caption, metadata)

    def fingerprint(self) -> str:
        """Return a hash of the names, image sizes in bytes and captions; contents of images are not read."""
        digest = hashlib.sha256()
        for index, name in enumerate(self._names):
            image = self._folder / name
            caption = image.with_suffix(".txt")
            digest.update(f"{self.key(index)}\0{image.stat().st_size if image.is_file() else -1}\0".encode())
            digest.update(caption.read_bytes() if caption.is_file() else b"\0missing")
        return digest.hexdigest()


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
