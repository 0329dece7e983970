"""Making the history's database from its files: all of it, or what was missed.

Files are read outside of any transaction, and rows are written a few hundred at a time, so that a server that
uses the database meanwhile is not held up; what it adds meanwhile stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from sqlmodel import col, select

from fewstep.errors import DataError
from fewstep.server import history_files as files
from fewstep.server import history_rows as rows
from fewstep.server.history import History
from fewstep.server.tables import ImageRow

_BATCH = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rebuilt:
    """What was found."""

    images: int
    """That the database knows now, in the trash or not."""
    added: int
    """That it did not know before."""
    removed: int
    """Whose files are gone."""
    broken: int
    """Files that cannot be read or that the history did not write under their names: left out, and left."""
    foreign: int
    """Files with other names in the folders of days, which nothing looks into."""


def rebuild(
    history: History,
    *,
    only_new: bool = False,
    on_image: Callable[[int], None] | None = None,
) -> Rebuilt:
    """Bring the database into line with the files.

    Args:
        history: whose files are read.
        only_new: do not read files that have a row at their place, as a server does when it starts: pictures
            that it wrote before it was killed come back, and those that were deleted by hand go.
        on_image: called with the number of files that have been looked at.

    Raises:
        OutputError, NotReady: the database cannot be written.
    """
    files.sweep(history.root)
    with history.database.reading() as session:
        before = {
            image_id: (day, trashed is not None)
            for image_id, day, trashed in session.exec(select(ImageRow.id, ImageRow.day, ImageRow.trashed))
        }
    seen: set[str] = set()
    broken = 0
    batch: list[files.Found] = []

    def write() -> None:
        with history.database.writing() as session:
            rows.put(session, batch)
        batch.clear()

    for number, path in enumerate(files.pictures(history.root), 1):
        if on_image is not None:
            on_image(number)
        place = before.get(path.stem)
        trashed = path.parent.name == files.TRASH
        if (
            only_new
            and place is not None
            and place[1] == trashed
            and (trashed or place[0] == path.parent.name)
        ):
            seen.add(path.stem)
            continue
        try:
            found = files.read(path)
            if found.id in seen:
                raise DataError(f"{path}: another file has this id; delete one of the two")
        except DataError as error:
            _log.warning("%s", error)
            broken += 1
            continue
        seen.add(found.id)
        batch.append(found)
        if len(batch) == _BATCH:
            write()
    if batch:
        write()
    gone = sorted(before.keys() - seen)
    for start in range(0, len(gone), _BATCH):
        with history.database.writing() as session:
            part = gone[start : start + _BATCH]
            for image in session.exec(select(ImageRow).where(col(ImageRow.id).in_(part))):
                session.delete(image)
    return Rebuilt(
        images=len(seen),
        added=len(seen - before.keys()),
        removed=len(gone),
        broken=broken,
        foreign=files.others(history.root),
    )
