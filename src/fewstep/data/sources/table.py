"""A table of image names and captions: CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.data.sources.folder import read_object
from fewstep.data.sources.sample import Sample
from fewstep.errors import DataError

IMAGE_COLUMNS = ("file_name", "image", "path", "filename")
CAPTION_COLUMNS = ("text", "caption", "prompt")


class TableSource:
    """Rows of a CSV, TSV or JSONL file; images are files inside `root`.

    Args:
        table: the file; the ending .csv, .tsv, .jsonl or .ndjson says what it is.
        root: folder that image names are relative to; default the table's. Names that lead out of it are
            refused, so that a foreign table cannot make training read other files.
        image_column: default the first of file_name, image, path, filename that the table has.
        caption_column: default the first of text, caption, prompt that the table has.

    Raises:
        DataError: no such file, not a table, or a column is missing.
    """

    def __init__(
        self,
        table: Path,
        *,
        root: Path | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        self._table = table
        self._root = (root or table.parent).resolve()
        self._rows: list[dict[str, Any] | str] = _read_rows(table)
        columns: set[str] = set()
        for row in self._rows:
            if isinstance(row, dict):
                columns |= set(row)
        if not columns:
            raise DataError(f"{table}: no readable row; give a table with image and caption columns")
        self._image = _choose(table, "image", image_column, IMAGE_COLUMNS, columns)
        self._caption = _choose(table, "caption", caption_column, CAPTION_COLUMNS, columns)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """Return the image name with its row, counted from 1."""
        row = self._rows[index]
        name = row.get(self._image) if isinstance(row, dict) else None
        return f"row {index + 1}: {name or '(no image)'}"

    def read(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: a broken row, or an image name that is missing or leads out of the root.
        """
        row = self._rows[index]
        if isinstance(row, str):
            raise DataError(row)
        name, caption = row.get(self._image), row.get(self._caption)
        if not isinstance(name, str) or not name:
            raise DataError("no image name: the column is empty")
        try:
            image = (self._root / name).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"image name not usable: {error}") from error
        if not image.is_relative_to(self._root):
            raise DataError(f"image name leads out of the folder: {name}")
        metadata = {k: v for k, v in row.items() if k not in (self._image, self._caption)}
        return Sample(self.key(index), image, caption if isinstance(caption, str) else "", metadata)

    def fingerprint(self) -> str:
        """Return a hash of the table's content and of the sizes of the image files."""
        digest = hashlib.sha256(json.dumps(self._rows, sort_keys=True, default=str).encode())
        for row in self._rows:
            name = row.get(self._image) if isinstance(row, dict) else None
            image = self._root / name if isinstance(name, str) and "\0" not in name else self._root
            digest.update(str(image.stat().st_size if image.is_file() else -1).encode())
        return digest.hexdigest()


def _read_rows(table: Path) -> list[dict[str, Any] | str]:
    kind = table.suffix.lower()
    try:
        text = table.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{table}: no such file; give a .csv, .tsv or .jsonl file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as UTF-8 ({error}); convert it") from error
    rows: list[dict[str, Any] | str] = []
    if kind in (".csv", ".tsv"):
        try:
            reader = csv.DictReader(text.splitlines(), delimiter="\t" if kind == ".tsv" else ",")
            rows += [{k: v for k, v in row.items() if k is not None} for row in reader]
        except csv.Error as error:
            raise DataError(f"{table}: not a readable table ({error}); write it again as CSV") from error
    elif kind in (".jsonl", ".ndjson"):
        for line in text.split("\n"):
            if line.strip():
                try:
                    rows.append(read_object(line))
                except DataError as error:
                    rows.append(str(error))  # a bad sample, not a bad set
    else:
        raise DataError(f"{table}: unknown kind of table; give a .csv, .tsv or .jsonl file")
    return rows


def _choose(table: Path, what: str, asked: str | None, known: Sequence[str], columns: set[str]) -> str:
    for name in (asked,) if asked is not None else known:
        if name in columns:
            return name
    wanted = asked or ", ".join(known)
    raise DataError(f"{table}: no {what} column ({wanted}); it has {', '.join(sorted(columns))}, name one")
