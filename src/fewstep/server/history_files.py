"""The files of the history: the truth that its database is made from.

::

    images/2026-11-26/0f3c….png     a picture; carries its "parameters" text and its whole record
    images/2026-11-26/0f3c….json    its marks: favourite, tags; only where it has any
    images/.trash/0f3c….png, .json  thrown away; the marks say when, and from which day
    images/.thumbs/0f3c….webp       made when they are asked for

A name is the picture's id, 128 random bits in hexadecimal, and never anything that a caller wrote. The day is
that of its making in UTC. Everything is written completely or not at all (`fewstep.checkpoint.atomic`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fewstep.checkpoint import atomic
from fewstep.errors import DataError, FewstepError, OutputError
from fewstep.prompt import containers
from fewstep.server.ids import is_id

TRASH = ".trash"
THUMBS = ".thumbs"
THUMB_SIDE = 256
"""Pixels of a thumbnail's longer side, at most."""
KEY = "history"
"""Entry of the record with what the history knows: id, created, owner, client, job_id, parent, timings."""

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_READERS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
_MAX_PIXELS = 1 << 28
_MAX_MARKS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What a person did with a picture after it was made."""

    favourite: bool = False
    tags: tuple[str, ...] = ()
    trashed: float | None = None
    undo: str | None = None
    day: str | None = None
    """Of a picture in the trash: the folder that it came from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A picture as its file tells it."""

    path: Path
    day: str
    kind: containers.Format
    width: int
    height: int
    size: int
    record: dict[str, Any]
    marks: Marks
    id: str = field(default="")


def day_of(created: float) -> str:
    """Return the folder of a picture that was made at this time, seconds since 1970."""
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d")


def path_of(root: Path, day: str, image_id: str, kind: str, *, trashed: bool = False) -> Path:
    """Return where a picture is."""
    return root / (TRASH if trashed else day) / f"{image_id}.{kind}"


def save(path: Path, data: bytes) -> None:
    """Write a picture.

    Raises:
        OutputError: it cannot be written; nothing is left of it.
    """
    atomic.write_bytes(path, data)


def write_marks(picture: Path, marks: Marks) -> None:
    """Write a picture's marks beside it; the file goes when there are none.

    Raises:
        OutputError: it cannot be written; the old marks stay.
    """
    path = picture.with_suffix(".json")
    if marks == Marks():
        _remove(path)
        return
    value = {
        "favourite": marks.favourite,
        "tags": list(marks.tags),
        **({"trashed": marks.trashed, "undo": marks.undo, "day": marks.day} if marks.trashed else {}),
    }
    atomic.write_text(path, json.dumps(value, indent=1) + "\n")


def read_marks(picture: Path) -> Marks:
    """Return a picture's marks; those of a broken file are none."""
    path = picture.with_suffix(".json")
    try:
        if path.stat().st_size > _MAX_MARKS:
            return Marks()
        value = json.loads(path.read_bytes())
        trashed, undo, day = value.get("trashed"), value.get("undo"), value.get("day")
        return Marks(
            favourite=value.get("favourite") is True,
            tags=tuple(sorted({str(tag)[:64] for tag in value.get("tags", ())})),
            trashed=float(trashed) if trashed is not None else None,
            undo=undo if isinstance(undo, str) and is_id(undo) else None,
            day=day if isinstance(day, str) and _DAY.fullmatch(day) else None,
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return Marks()


def throw_away(root: Path, picture: Path, marks: Marks) -> None:
    """Move a picture to the trash; ``marks`` say when.

    Raises:
        OutputError: it cannot be moved; then it is where it was.
    """
    _move(picture, root / TRASH / picture.name, marks)


def put_back(root: Path, picture: Path, day: str, marks: Marks) -> None:
    """Move a picture out of the trash to its day.

    Raises:
        OutputError: it cannot be moved; then it is where it was.
    """
    _move(picture, root / day / picture.name, marks)


def _move(picture: Path, target: Path, marks: Marks) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The marks first: a picture in the trash without any would not know where it came from.
    write_marks(target, marks)
    try:
        atomic.rename_file(picture, target)
    except OutputError:
        _remove(target.with_suffix(".json"))
        raise
    _remove(picture.with_suffix(".json"))


def destroy(root: Path, picture: Path) -> None:
    """Delete a picture, its marks and its thumbnail for good.

    Raises:
        OutputError: it cannot be deleted.
    """
    _remove(picture)
    _remove(picture.with_suffix(".json"))
    _remove(root / THUMBS / f"{picture.stem}.webp")


def thumbnail(root: Path, picture: Path) -> bytes:
    """Return a small picture as WebP, made once; without place on the disk it is made each time.

    Raises:
        DataError: the picture cannot be read.
    """
    path = root / THUMBS / f"{picture.stem}.webp"
    try:
        return path.read_bytes()
    except OSError:
        pass
    from PIL import Image

    try:
        with Image.open(picture, formats=list(_READERS.values())) as image:
            small = image.convert("RGB")
            small.thumbnail((THUMB_SIDE, THUMB_SIDE))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"picture {picture.stem}: cannot be read; its file is broken") from error
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    try:
        atomic.write_bytes(path, buffer.getvalue())
    except OutputError:
        return buffer.getvalue()
    return buffer.getvalue()


def pictures(root: Path) -> Iterator[Path]:
    """Yield every file that has the place and the name of a picture, oldest day first, the trash last."""
    days = sorted(entry.name for entry in _entries(root) if _DAY.fullmatch(entry.name))
    for folder in (*days, TRASH):
        for path in sorted(_entries(root / folder)):
            if is_id(path.stem) and path.suffix[1:] in _READERS:
                yield path


def others(root: Path) -> int:
    """Return how many files lie in folders of days and are no pictures, nor marks of one."""
    count = 0
    for day in (entry for entry in _entries(root) if _DAY.fullmatch(entry.name) or entry.name == TRASH):
        for path in _entries(day):
            named = is_id(path.stem) and path.suffix[1:] in {*_READERS, "json"}
            count += not named and not path.name.startswith(".")
    return count


def sweep(root: Path) -> None:
    """Remove what killed processes left half-written."""
    for folder in (entry for entry in _entries(root) if entry.is_dir()):
        atomic.sweep(folder)


def read(path: Path) -> Found:
    """Read a picture back: decoded as a whole, so that a broken one is noticed.

    Raises:
        DataError: the file is broken, or none that the history wrote under this name.
    """
    from PIL import Image

    kind: containers.Format = path.suffix[1:]  # type: ignore[assignment]
    try:
        with Image.open(path, formats=[_READERS[kind]]) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels; the history has none as large")
            image.load()
            record = containers.decode(image).record
            width, height = image.size
        size = path.stat().st_size
    except FewstepError:
        raise
    except Exception as error:  # whatever a broken file leads the decoder to
        raise DataError(f"{path}: cannot be read; its file is broken") from error
    known = (record or {}).get(KEY)
    if record is None or not isinstance(known, Mapping) or not _is_ours(known, path.stem):
        raise DataError(f"{path}: has no record of the history under this name; another tool wrote it")
    marks = read_marks(path)
    if path.parent.name == TRASH and marks.trashed is None:
        marks = Marks(favourite=marks.favourite, tags=marks.tags, trashed=path.stat().st_mtime)
    day = path.parent.name
    if day == TRASH:
        day = marks.day or day_of(known["created"])
    return Found(
        path=path, day=day, kind=kind, width=width, height=height, size=size, record=record, marks=marks,
        id=path.stem,
    )  # fmt: skip


def _is_ours(known: Mapping[str, Any], image_id: str) -> bool:
    created, owner = known.get("created"), known.get("owner")
    if known.get("id") != image_id or not isinstance(owner, str) or isinstance(created, bool):
        return False
    return isinstance(created, int | float) and 0 <= created < 1e11


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be deleted ({error.strerror}); may this account write there?"
        ) from error
