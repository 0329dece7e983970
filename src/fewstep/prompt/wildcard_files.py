"""A folder of text files as wildcards: ``animals/cats.txt`` has the name ``animals/cats``, a line is a value.

Empty lines and lines that begin with ``#`` are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fewstep.errors import DataError, NotFoundError

MAX_FILES = 10_000
MAX_BYTES = 4 * 2**20
MAX_LINE = 16_384


class WildcardFolder(Mapping[str, tuple[str, ...]]):
    """The wildcards of a folder. Files are listed once, here, and read when they are asked for.

    A name is looked up in that list and never made into a path, so no name reaches outside of the folder; nor
    does a symbolic link: those that lead outside are not listed.

    Args:
        folder: with ``.txt`` files, UTF-8, at any depth.

    Raises:
        NotFoundError: there is no such folder.
        DataError: it holds more than 10,000 such files.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NotFoundError(f"{folder}: no such folder; give one with .txt files of wildcards")
        root = folder.resolve()
        self._files: dict[str, Path] = {}
        self._lines: dict[str, tuple[str, ...]] = {}
        for where, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(files):
                path = Path(where, file)
                # Regular files only: opening a named pipe would wait for ever.
                inside = Path(os.path.realpath(path)).is_relative_to(root) and path.is_file()
                if path.suffix.lower() == ".txt" and inside:
                    self._files[path.relative_to(root).with_suffix("").as_posix()] = path
            if len(self._files) > MAX_FILES:
                raise DataError(
                    f"{folder}: more than {MAX_FILES} .txt files; give a folder of wildcards only"
                )

    def __getitem__(self, name: str) -> tuple[str, ...]:
        """The lines of a wildcard.

        Raises:
            KeyError: no such name.
            DataError: the file is larger than 4 MiB, has a line of more than 16,384 characters, or cannot be
                read.
        """
        if name not in self._lines:
            self._lines[name] = _read(self._files[name])
        return self._lines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _read(path: Path) -> tuple[str, ...]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; a wildcard is a list of short lines")
    lines = [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
    if max(map(len, lines), default=0) > MAX_LINE:
        raise DataError(
            f"{path}: a line of more than {MAX_LINE} characters; a wildcard is a list of short lines"
        )
    return tuple(line for line in lines if line and not line.startswith("#"))
