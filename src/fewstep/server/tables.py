"""The tables of the server's database: jobs, the servers that do them, pictures and their tags.

Times are seconds since 1970, as doubles. Pictures have a number besides their id because SQLite's full-text
index knows rows by numbers; it is nothing that anybody outside of the database sees, and a rebuilt database
has others.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Double, ForeignKey, Index, Integer, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

# SQLite numbers rows by itself only in a column of exactly this type.
_Number = BigInteger().with_variant(Integer(), "sqlite")


def storable(value: str) -> str:
    """Return a text as every database takes it: without null characters and halves of surrogate pairs."""
    return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")


class VersionRow(SQLModel, table=True):
    """One row: the version of all tables."""

    __tablename__ = "schema_version"

    number: int = Field(primary_key=True)


class ServerRow(SQLModel, table=True):
    """A process that does jobs, for as long as it lives."""

    __tablename__ = "servers"

    id: str = Field(primary_key=True, max_length=32)
    host: str = Field(max_length=255)
    process: int
    """Process id on ``host``."""
    process_started: float = Field(sa_type=Double)
    """Tells the process from a later one with its id."""
    seen: float = Field(sa_type=Double)
    """When it last said that it lives."""


class JobRow(SQLModel, table=True):
    """One order of a caller, and what became of it."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("owner", "idempotency_key", name="one_job_per_key"),
        Index("jobs_newest", "created", "id"),
        Index("jobs_of_owner", "owner", "created", "id"),
    )

    id: str = Field(primary_key=True, max_length=32)
    """128 random bits in hexadecimal."""
    owner: str = Field(max_length=64)
    """Name of the key that asked; empty without keys."""
    kind: str = Field(max_length=32)
    """``generate``, ``upscale``, ``train`` and so on."""
    client: str = Field(max_length=32)
    state: str = Field(max_length=16, index=True)
    """One of `fewstep.server.jobstore.STATES`."""
    order: dict[str, Any] = Field(sa_column=Column("order_json", JSON, nullable=False))
    """What was asked, as JSON: enough to do it again."""
    result: dict[str, Any] | None = Field(
        default=None, sa_column=Column("result_json", JSON(none_as_null=True))
    )
    error: str | None = Field(default=None, sa_type=Text)
    created: float = Field(sa_type=Double)
    started: float | None = Field(default=None, sa_type=Double)
    finished: float | None = Field(default=None, sa_type=Double)
    attempts: int = 1
    """How many times it was put into a queue."""
    idempotency_key: str | None = Field(default=None, max_length=255)
    fingerprint: str | None = Field(default=None, max_length=64)
    """Of the request's body: the same key with another is refused."""
    server: str = Field(max_length=32)
    """Id of the `ServerRow` that has it."""


class ImageRow(SQLModel, table=True):
    """A picture of the history. Its file says all of this but ``words``, which are made from it."""

    __tablename__ = "images"
    # Not one of these on `trashed` alone: SQLite would take it, and sort nearly all rows for every page.
    __table_args__ = (
        Index("images_newest", "created", "id"),
        Index("images_of_owner", "owner", "created", "id"),
    )

    number: int | None = Field(default=None, sa_column=Column(_Number, primary_key=True, autoincrement=True))
    id: str = Field(max_length=32, unique=True, index=True)
    created: float = Field(sa_type=Double)
    owner: str = Field(max_length=64)
    client: str = Field(max_length=32)
    job_id: str | None = Field(default=None, max_length=32, index=True)
    parent: str | None = Field(default=None, max_length=32, index=True)
    """Id of the picture that it was made from."""
    day: str = Field(max_length=10)
    """Name of its folder, ``YYYY-MM-DD`` in UTC."""
    kind: str = Field(max_length=4)
    """``png``, ``jpg`` or ``webp``; also the end of the file's name."""
    width: int
    height: int
    size: int = Field(sa_type=BigInteger)
    """Bytes of the file."""
    model: str = Field(max_length=255, index=True)
    prompt: str = Field(sa_type=Text)
    negative_prompt: str = Field(sa_type=Text)
    record: dict[str, Any] = Field(sa_column=Column("record_json", JSON, nullable=False))
    """The whole record that the file carries."""
    favourite: bool = False
    trashed: float | None = Field(default=None, sa_type=Double)
    """When it was thrown away; None for one that was not."""
    undo: str | None = Field(default=None, max_length=32, index=True)
    """Names the deletion that it went with."""
    words: str = Field(sa_type=Text)
    """What a search looks through, see `fewstep.server.history_search.words`."""


class TagRow(SQLModel, table=True):
    """One tag of one picture."""

    __tablename__ = "tags"

    image: int = Field(
        sa_column=Column("image", _Number, ForeignKey("images.number", ondelete="CASCADE"), primary_key=True)
    )
    tag: str = Field(primary_key=True, max_length=64, index=True)
