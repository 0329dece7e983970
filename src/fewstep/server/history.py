"""The history: every picture that a server made and was asked to keep.

Files are the truth (`fewstep.server.history_files`), the database answers questions about them quickly and
can be made from them anew (`fewstep.server.history_rebuild`). Every change goes to the files first.

An ``owner`` of None sees everybody's pictures; to every other owner a picture of somebody else is as unknown
as one that never was. Calls wait for the disk: make them in a thread, not in an event loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlmodel import Session, col, func, select

from fewstep.errors import NotFoundError, OutputError, UsageError
from fewstep.prompt import containers, infotext
from fewstep.server import history_files as files
from fewstep.server import history_rows as rows
from fewstep.server import history_trash as trashing
from fewstep.server.database import Database
from fewstep.server.history_rows import Kept
from fewstep.server.history_search import Search, cursor, statement
from fewstep.server.ids import is_id, new_id
from fewstep.server.tables import ImageRow, TagRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_TAGS = 64
MAX_TAG = 64
MAX_IDS = 1000
"""Of one call that takes several pictures."""
_MAX_GENERATIONS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Pictures that a search found, newest first."""

    images: list[Kept]
    next: str | None
    """`Search.before` of the page after this one; None for the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where a picture came from and what was made from it."""

    parents: list[Kept]
    """Its parent, the parent's parent, and so on, as far as they are there."""
    children: list[Kept]
    """Oldest first."""


class History:
    """Pictures in a folder, and the database that knows them."""

    def __init__(self, database: Database, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a history; the folder is made when the first picture is kept.

        Args:
            database: may be shared with jobs and with other servers.
            root: folder of the pictures; all who share the database must see the same files in it.
            clock: seconds since 1970.
        """
        self.database = database
        self.root = root
        self._clock = clock

    def add(
        self,
        pixels: NDArray[np.uint8],
        record: Mapping[str, Any],
        *,
        parameters: str | None = None,
        owner: str = "",
        client: str = "native",
        job_id: str | None = None,
        parent: str | None = None,
        timings: Mapping[str, float] | None = None,
        image_format: containers.Format = "png",
        quality: int = 95,
    ) -> Kept:
        """Keep a picture: its file with everything in it, then its row.

        Args:
            pixels: uint8 of shape (H, W, 3), RGB.
            record: what decided its pixels, as `fewstep.prompt.infotext.from_record` reads it.
            parameters: infotext; made from the record when left out.
            owner: name of the key that asked.
            client: API that was asked.
            job_id: job that it was made by.
            parent: id of the picture of the history that it was made from.
            timings: seconds by phase.
            image_format: ``png``, ``jpg`` or ``webp``.
            quality: 1 to 100 of the latter two.

        Raises:
            OutputError: file or row cannot be written, because the disk is full or the record too long for
                the format; nothing is left of either.
            NotReady: the database does not answer; nothing is left of the file.
        """
        created = round(self._clock(), 6)
        image_id = new_id()
        known = {
            "id": image_id,
            "created": created,
            "owner": owner,
            "client": client,
            "job_id": job_id,
            "parent": parent,
            "timings": dict(timings or {}),
        }
        whole = {**record, files.KEY: known}
        text = infotext.from_record(record) if parameters is None else parameters
        data = containers.encode(pixels, image_format, parameters=text, record=whole, quality=quality)
        day = files.day_of(created)
        path = files.path_of(self.root, day, image_id, image_format)
        found = files.Found(
            id=image_id,
            path=path,
            day=day,
            kind=image_format,
            width=pixels.shape[1],
            height=pixels.shape[0],
            size=len(data),
            record=whole,
            marks=files.Marks(),
        )
        try:
            files.save(path, data)
            with self.database.writing() as session:
                kept = rows.add(session, found)
        except BaseException:
            # A picture may be whole under its name and its folder not flushed.
            with contextlib.suppress(OutputError):
                files.destroy(self.root, path)
            raise
        return kept

    def get(self, image_id: str, owner: str | None) -> Kept:
        """Return a picture's facts, also of one in the trash.

        Raises:
            NotFoundError: this owner has none with this id.
        """
        with self.database.reading() as session:
            return rows.kept(session, [self.row(session, image_id, owner)])[0]

    def path(self, image_id: str, owner: str | None) -> Path:
        """Return the file of a picture, also of one in the trash.

        Raises:
            NotFoundError: this owner has none with this id, or its file is gone.
        """
        with self.database.reading() as session:
            path = self.path_of(self.row(session, image_id, owner))
        if not path.is_file():
            raise NotFoundError(f"picture {image_id}: its file is gone; fewstep history rebuild forgets it")
        return path

    def open(self, image_id: str, owner: str | None) -> bytes:
        """Return the bytes of a picture's file; raises as `path`."""
        return self.path(image_id, owner).read_bytes()

    def thumbnail(self, image_id: str, owner: str | None) -> bytes:
        """Return a small picture as WebP, at most 256 pixels on its longer side.

        Raises:
            NotFoundError: as `path`.
            DataError: the file is broken.
        """
        return files.thumbnail(self.root, self.path(image_id, owner))

    def search(self, wanted: Search) -> Page:
        """Return a page of pictures, newest first.

        Raises:
            UsageError: see `fewstep.server.history_search.statement`.
        """
        query = statement(wanted, full_text=self.database.full_text)
        with self.database.reading() as session:
            found = session.exec(query).all()
            page = found[: wanted.limit]
            more = len(found) > wanted.limit
            return Page(images=rows.kept(session, page), next=cursor(page[-1]) if more else None)

    def tags(self, owner: str | None) -> dict[str, int]:
        """Return the tags of an owner's pictures outside of the trash, with how many have each."""
        query = (
            select(TagRow.tag, func.count())
            .join(ImageRow, col(ImageRow.number) == col(TagRow.image))
            .where(col(ImageRow.trashed).is_(None))
            .group_by(col(TagRow.tag))
            .order_by(col(TagRow.tag))
        )
        if owner is not None:
            query = query.where(ImageRow.owner == owner)
        with self.database.reading() as session:
            return dict(session.exec(query).all())

    def favourite(self, image_id: str, owner: str | None, value: bool = True) -> Kept:
        """Mark a picture as a favourite, or as none.

        Raises:
            NotFoundError: this owner has no such picture outside of the trash.
            OutputError: the mark cannot be written; nothing is changed.
        """
        return self._mark(image_id, owner, lambda marks: replace(marks, favourite=value))

    def tag(
        self, image_id: str, owner: str | None, *, add: Collection[str] = (), remove: Collection[str] = ()
    ) -> Kept:
        """Give a picture tags, and take tags from it.

        Raises:
            NotFoundError, OutputError: as `favourite`.
            UsageError: a tag is empty, longer than 64 characters or does not print, or there would be more
                than 64.
        """
        new = {checked_tag(tag) for tag in add}

        def change(marks: files.Marks) -> files.Marks:
            tags = (set(marks.tags) | new) - {tag.strip() for tag in remove}
            if len(tags) > MAX_TAGS:
                raise UsageError(f"{len(tags)} tags of one picture: at most {MAX_TAGS}; remove some")
            return replace(marks, tags=tuple(sorted(tags)))

        return self._mark(image_id, owner, change)

    def trash(self, ids: Sequence[str], owner: str | None) -> str:
        """Throw pictures away; see `fewstep.server.history_trash.throw_away`."""
        return trashing.throw_away(self, ids, owner, now=self._clock())

    def undo(self, token: str, owner: str | None) -> list[str]:
        """Take back a deletion; see `fewstep.server.history_trash.undo`."""
        return trashing.undo(self, token, owner)

    def restore(self, ids: Sequence[str], owner: str | None) -> None:
        """Take pictures out of the trash; see `fewstep.server.history_trash.restore`."""
        trashing.restore(self, ids, owner)

    def purge(self, older_than: float, owner: str | None = None) -> int:
        """Delete for good what was thrown away more than ``older_than`` seconds ago; return how many.

        Raises:
            OutputError: a file cannot be deleted; those before it are.
        """
        return trashing.purge(self, self._clock() - older_than, owner)

    def lineage(self, image_id: str, owner: str | None) -> Lineage:
        """Return what a picture was made from, and what was made from it.

        Raises:
            NotFoundError: this owner has none with this id.
        """
        with self.database.reading() as session:
            image = self.row(session, image_id, owner)
            children = select(ImageRow).where(ImageRow.parent == image.id, col(ImageRow.trashed).is_(None))
            if owner is not None:
                children = children.where(ImageRow.owner == owner)
            made = session.exec(
                children.order_by(col(ImageRow.created), col(ImageRow.id)).limit(MAX_IDS)
            ).all()
            parents: list[ImageRow] = []
            seen = {image.id}
            while image.parent is not None and image.parent not in seen and len(parents) < _MAX_GENERATIONS:
                seen.add(image.parent)
                parent = session.exec(self._select(image.parent)).first()
                if parent is None or (owner is not None and parent.owner != owner):
                    break
                parents.append(parent)
                image = parent
            return Lineage(parents=rows.kept(session, parents), children=rows.kept(session, made))

    def archive(self, ids: Sequence[str], owner: str | None) -> Iterator[bytes]:
        """Return a ZIP file of pictures, piece by piece; errors come before the first piece.

        Raises:
            NotFoundError: this owner has not all of them, or a file is gone.
            UsageError: there are none, or more than 1000.
        """
        from fewstep.server import history_zip

        unique = list(dict.fromkeys(ids))
        if not unique:
            raise UsageError("no ids: give those of the pictures that are wanted")
        with self.database.reading() as session:
            found = self.rows(session, unique, owner)
            wanted = [(self.path_of(image), image.created) for image in found]
        for path, _ in wanted:
            if not path.is_file():
                raise NotFoundError(
                    f"picture {path.stem}: its file is gone; fewstep history rebuild forgets it"
                )
        return history_zip.stream(wanted)

    def _select(self, image_id: str) -> Any:
        return select(ImageRow).where(ImageRow.id == image_id)

    def row(self, session: Session, image_id: str, owner: str | None, *, change: bool = False) -> ImageRow:
        """Return the row of a picture, locked when it will be changed.

        Raises:
            NotFoundError: this owner has none with this id.
        """
        image: ImageRow | None = None
        if is_id(image_id):
            query = self._select(image_id)
            image = session.exec(query.with_for_update() if change else query).first()
        if image is None or (owner is not None and image.owner != owner):
            raise NotFoundError("there is no such picture; list the pictures to see which there are")
        return image

    def rows(
        self, session: Session, ids: Sequence[str], owner: str | None, *, change: bool = False
    ) -> list[ImageRow]:
        """Return the rows of pictures, each once.

        Raises:
            NotFoundError: this owner has not all of them.
            UsageError: there are more than 1000.
        """
        if len(ids) > MAX_IDS:
            raise UsageError(f"{len(ids)} pictures at once: give at most {MAX_IDS}")
        return [self.row(session, one, owner, change=change) for one in dict.fromkeys(ids)]

    def path_of(self, image: ImageRow) -> Path:
        """Return where the file of a row is."""
        trashed = image.trashed is not None
        return files.path_of(self.root, image.day, image.id, image.kind, trashed=trashed)

    def _mark(self, image_id: str, owner: str | None, change: Callable[[files.Marks], files.Marks]) -> Kept:
        with self.database.writing() as session:
            image = self.row(session, image_id, owner, change=True)
            if image.trashed is not None:
                raise NotFoundError(f"picture {image_id} is in the trash: restore it first")
            before = rows.marks(session, image)
            after = change(before)
            if after != before:
                files.write_marks(self.path_of(image), after)
                image.favourite = after.favourite
                rows.set_tags(session, image, after.tags)
            session.flush()
            return rows.kept(session, [image])[0]


def checked_tag(tag: str) -> str:
    """Return a tag without spaces around it.

    Raises:
        UsageError: it is empty, longer than 64 characters, or has characters that do not print.
    """
    tag = tag.strip()
    if not tag or len(tag) > MAX_TAG or not tag.isprintable():
        raise UsageError(f"tag of {len(tag)} characters: give 1 to {MAX_TAG} that print")
    return tag
