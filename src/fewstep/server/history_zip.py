"""A ZIP file that is sent while it is made: never more of it in memory than one piece."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

_PIECE = 1 << 18


class _Pieces:
    """What `zipfile` writes to; it cannot seek, so sizes and checksums follow each file's content."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def stream(pictures: Sequence[tuple[Path, float]]) -> Iterator[bytes]:
    """Yield a ZIP file of pictures under their own names, which are ids; they are compressed already.

    Args:
        pictures: path, and time of making in seconds since 1970.
    """
    pieces = _Pieces()
    with zipfile.ZipFile(pieces, "w", zipfile.ZIP_STORED) as archive:
        for path, created in pictures:
            made = datetime.fromtimestamp(created, UTC)
            about = zipfile.ZipInfo(path.name, (max(made.year, 1980), *made.timetuple()[1:6]))
            about.external_attr = 0o644 << 16
            with path.open("rb") as source, archive.open(about, "w") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
                    yield pieces.take()
    yield pieces.take()
