"""Pictures that are thrown away: moved, found again, and at last deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmodel import col, select

from fewstep.errors import NotFoundError, OutputError
from fewstep.server import history_files as files
from fewstep.server import history_rows as rows
from fewstep.server.ids import is_id, new_id
from fewstep.server.tables import ImageRow

if TYPE_CHECKING:
    from fewstep.server.history import History


def throw_away(history: History, ids: Sequence[str], owner: str | None, *, now: float) -> str:
    """Throw pictures away, all or none, and return a token that `undo` takes.

    One whose file is gone is forgotten. One that is in the trash already stays as it is.

    Raises:
        NotFoundError: this owner has not all of them.
        OutputError: a file cannot be moved; all are where they were.
    """
    token, now = new_id(), round(now, 6)
    moved: list[tuple[Path, str, files.Marks]] = []
    try:
        with history.database.writing() as session:
            for image in history.rows(session, ids, owner, change=True):
                if image.trashed is not None:
                    continue
                path = history.path_of(image)
                if not path.is_file():
                    session.delete(image)
                    continue
                marks = rows.marks(session, image)
                files.throw_away(history.root, path, replace(marks, trashed=now, undo=token, day=image.day))
                moved.append((history.root / files.TRASH / path.name, image.day, marks))
                image.trashed, image.undo = now, token
    except BaseException:
        for path, day, marks in moved:
            with contextlib.suppress(OutputError):
                files.put_back(history.root, path, day, marks)
        raise
    return token


def undo(history: History, token: str, owner: str | None) -> list[str]:
    """Take back a deletion, and return the ids of the pictures that are there again.

    Raises:
        NotFoundError: this owner deleted nothing under this token, or it is purged.
        OutputError: a file cannot be moved; call again for the rest.
    """
    query = select(ImageRow.id).where(ImageRow.undo == token, col(ImageRow.trashed).is_not(None))
    if owner is not None:
        query = query.where(ImageRow.owner == owner)
    with history.database.reading() as session:
        ids = [*session.exec(query)] if is_id(token) else []
    if not ids:
        raise NotFoundError("there is no such deletion, or it cannot be undone any more")
    restore(history, ids, owner)
    return ids


def restore(history: History, ids: Sequence[str], owner: str | None) -> None:
    """Take pictures out of the trash; those that are not in it stay as they are.

    Raises:
        NotFoundError: this owner has not all of them.
        OutputError: a file cannot be moved; those before it are restored.
    """
    with history.database.reading() as session:
        history.rows(session, ids, owner)
    for image_id in ids:
        with history.database.writing() as session:
            image = history.row(session, image_id, owner, change=True)
            if image.trashed is not None:
                files.put_back(history.root, history.path_of(image), image.day, rows.marks(session, image))
                image.trashed = image.undo = None


def purge(history: History, before: float, owner: str | None) -> int:
    """Delete for good what was thrown away before this time, seconds since 1970; return how many.

    Raises:
        OutputError: a file cannot be deleted; those before it are.
    """
    query = select(ImageRow.id).where(col(ImageRow.trashed) < before)
    if owner is not None:
        query = query.where(ImageRow.owner == owner)
    with history.database.reading() as session:
        ids = [*session.exec(query)]
    count = 0
    for image_id in ids:
        with history.database.writing() as session:
            image = session.exec(select(ImageRow).where(ImageRow.id == image_id).with_for_update()).first()
            if image is not None and image.trashed is not None:  # nobody took it back meanwhile
                files.destroy(history.root, history.path_of(image))
                session.delete(image)
                count += 1
    return count
