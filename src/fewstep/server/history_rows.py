"""Between the files of the history and its rows: what a record says of a picture, and what is given out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, SQLModel, col, delete, select

from fewstep.server import history_files as files
from fewstep.server.history_search import searchable
from fewstep.server.ids import is_id
from fewstep.server.tables import ImageRow, TagRow, storable

_ADD = SQLModel.metadata.tables["images"].insert()
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
_MAX_NAME = 255
_MAX_CLIENT = 32
_MAX_OWNER = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A picture of the history."""

    id: str
    created: float
    """Seconds since 1970."""
    owner: str
    client: str
    job_id: str | None
    parent: str | None
    """Id of the picture that it was made from, if any."""
    kind: str
    """``png``, ``jpg`` or ``webp``."""
    width: int
    height: int
    size: int
    """Bytes."""
    model: str
    prompt: str
    negative_prompt: str
    favourite: bool
    tags: tuple[str, ...]
    trashed: float | None
    record: Mapping[str, Any]
    """Everything that decided its pixels, and under ``history`` what the history knows."""

    @property
    def media_type(self) -> str:
        """For a Content-Type."""
        return MEDIA_TYPES[self.kind]

    def facts(self) -> dict[str, Any]:
        """Return all of it, JSON-ready and without paths."""
        names = [name for name in self.__dataclass_fields__ if name not in ("tags", "record")]
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "tags": list(self.tags), "record": dict(self.record)}


def row(found: files.Found) -> ImageRow:
    """Return the row of a picture, without its number."""
    return ImageRow(**values(found))


def add(session: Session, found: files.Found) -> Kept:
    """Add a picture that is new and has no marks."""
    made = values(found)
    # By the table and not by its class, whose objects nobody holds: a third of the time.
    columns = {"record_json" if name == "record" else name: value for name, value in made.items()}
    session.connection().execute(_ADD, columns)
    return Kept(tags=(), **{name: made[name] for name in Kept.__dataclass_fields__ if name != "tags"})


def values(found: files.Found) -> dict[str, Any]:
    """Return the values of a picture's row, without its number."""
    record, known = found.record, found.record[files.KEY]
    prompt, negative, model = (_text(record.get(name)) for name in ("prompt", "negative_prompt", "model"))
    student = record.get("student")
    adapters = record.get("adapters")
    named = [student, *(adapters if isinstance(adapters, list) else [])]
    names = [_text(one.get("name")) for one in named if isinstance(one, Mapping)]
    return {
        "id": found.id,
        "created": round(float(known["created"]), 6),
        "owner": _text(known["owner"])[:_MAX_OWNER],
        "client": _text(known.get("client"))[:_MAX_CLIENT],
        "job_id": _id(known.get("job_id")),
        "parent": _id(known.get("parent")),
        "day": found.day,
        "kind": found.kind,
        "width": found.width,
        "height": found.height,
        "size": found.size,
        "model": model[:_MAX_NAME],
        "prompt": prompt,
        "negative_prompt": negative,
        "record": record,
        "favourite": found.marks.favourite,
        "trashed": found.marks.trashed,
        "undo": found.marks.undo,
        "words": searchable((prompt, negative, model, *names)),
    }


def put(session: Session, found: Sequence[files.Found]) -> None:
    """Add pictures, or bring their rows up to date."""
    ids = [one.id for one in found]
    there = {one.id: one for one in session.exec(select(ImageRow).where(col(ImageRow.id).in_(ids)))}
    for one in found:
        made = row(one)
        if (old := there.get(one.id)) is None:
            session.add(made)
            there[one.id] = made
        else:
            for name in ImageRow.model_fields.keys() - {"number", "id"}:
                if getattr(old, name) != getattr(made, name):
                    setattr(old, name, getattr(made, name))
            session.add(old)
    session.flush()
    for one in found:
        set_tags(session, there[one.id], one.marks.tags)


def set_tags(session: Session, image: ImageRow, tags: Sequence[str]) -> None:
    """Give a picture these tags and no others."""
    number = image.number
    assert number is not None, "the row was not flushed"
    session.exec(delete(TagRow).where(col(TagRow.image) == number))
    session.add_all(TagRow(image=number, tag=tag) for tag in tags)


def marks(session: Session, image: ImageRow) -> files.Marks:
    """Return the marks of a picture, as its file has them while it is not in the trash."""
    tags = session.exec(select(TagRow.tag).where(TagRow.image == image.number)).all()
    return files.Marks(favourite=image.favourite, tags=tuple(sorted(tags)))


def kept(session: Session, rows: Sequence[ImageRow]) -> list[Kept]:
    """Return pictures with their tags, in the order of the rows."""
    numbers = [one.number for one in rows]
    tags: dict[int | None, list[str]] = {}
    for tag in session.exec(select(TagRow).where(col(TagRow.image).in_(numbers))):
        tags.setdefault(tag.image, []).append(tag.tag)
    return [
        Kept(
            id=one.id,
            created=one.created,
            owner=one.owner,
            client=one.client,
            job_id=one.job_id,
            parent=one.parent,
            kind=one.kind,
            width=one.width,
            height=one.height,
            size=one.size,
            model=one.model,
            prompt=one.prompt,
            negative_prompt=one.negative_prompt,
            favourite=one.favourite,
            tags=tuple(sorted(tags.get(one.number, ()))),
            trashed=one.trashed,
            record=one.record,
        )
        for one in rows
    ]


def _text(value: object) -> str:
    return storable(value) if isinstance(value, str) else ""


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and is_id(value) else None
