"""Local data sets of the Hugging Face `datasets` library: saved ones, Parquet files, image folders.

Only the library's own packaged readers are used, so no code of a data set ever runs, and images are taken as
bytes and opened by `fewstep.data.images` like all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fewstep.data.sources.sample import Sample
from fewstep.data.sources.table import CAPTION_COLUMNS, IMAGE_COLUMNS
from fewstep.errors import DataError, DependencyError

Reader = Literal["saved", "parquet", "arrow", "imagefolder"]


class HuggingFaceSource:
    """Rows of a local data set with an image column and a text column.

    Args:
        path: folder or file.
        reader: "saved" for what `save_to_disk` wrote, else the library's packaged reader; default by looking
            at `path`.
        split: which split, where the data set has several.
        image_column: default "image" or another usual name that the set has.
        caption_column: default the first of text, caption, prompt that the set has.

    Raises:
        DependencyError: the library is not installed.
        DataError: no such data set, split or column.
    """

    def __init__(
        self,
        path: Path,
        *,
        reader: Reader | None = None,
        split: str = "train",
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        self._path = path
        self._rows: Any = _load(path, reader or _guess(path), split)
        columns = list(self._rows.column_names)
        self._image = _column(path, "image", image_column, ("image", *IMAGE_COLUMNS), columns)
        self._caption = _column(path, "caption", caption_column, CAPTION_COLUMNS, columns)
        import datasets

        if isinstance(self._rows.features[self._image], datasets.Image):
            self._rows = self._rows.cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """Return the row number, counted from 0."""
        return f"{self._path.name}[{index}]"

    def read(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            DataError: the row has no image, or one that is not stored locally.
        """
        row = self._rows[index]
        value = row[self._image]
        image: Path | bytes
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            image = value["bytes"]
        elif isinstance(value, bytes):
            image = value
        elif isinstance(value, dict) and isinstance(value.get("path"), str) and Path(value["path"]).is_file():
            image = Path(value["path"])
        else:
            raise DataError("no image: the row holds neither bytes nor a local file")
        caption = row[self._caption]
        metadata = {k: v for k, v in row.items() if k not in (self._image, self._caption)}
        return Sample(self.key(index), image, caption if isinstance(caption, str) else "", metadata)

    def fingerprint(self) -> str:
        """Return a hash of the number of rows, the columns and the captions; images are not read."""
        digest = hashlib.sha256(f"{len(self._rows)}{sorted(self._rows.column_names)}".encode())
        for caption in self._rows[self._caption]:
            digest.update(f"{caption}\0".encode())
        return digest.hexdigest()


def _guess(path: Path) -> Reader:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return "saved"
    if path.suffix in (".parquet", ".arrow"):
        return "parquet" if path.suffix == ".parquet" else "arrow"
    return "parquet" if path.is_dir() and any(path.rglob("*.parquet")) else "imagefolder"


def _load(path: Path, reader: Reader, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            "reading this data set needs the datasets library: pip install 'fewstep[train]'"
        ) from error
    if not path.exists():
        raise DataError(f"{path}: no such data set; give a local folder or file")
    if reader not in ("saved", "parquet", "arrow", "imagefolder"):
        raise DataError(f"reader {reader!r}: known are saved, parquet, arrow, imagefolder")
    try:
        if reader == "saved":
            found: Any = datasets.load_from_disk(str(path))
        elif reader == "imagefolder":
            found = datasets.load_dataset("imagefolder", data_dir=str(path))
        else:
            files = sorted(path.rglob(f"*.{reader}")) if path.is_dir() else [path]
            found = datasets.load_dataset(reader, data_files=[str(file) for file in files])
    except Exception as error:  # the library raises its own and pyarrow's errors, without a common base
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not readable as {reader} ({reason}); check files and reader") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(found)}")
        found = found[split]
    return found


def _column(path: Path, what: str, asked: str | None, known: Sequence[str], columns: Sequence[str]) -> str:
    for name in (asked,) if asked is not None else known:
        if name in columns:
            return name
    raise DataError(f"{path}: no {what} column; it has {', '.join(columns)}, name one of them")
