"""Pictures of the history, as the native API shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from fewstep.server.schemas.native import Strict

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ImageView(BaseModel):
    """A picture that was kept."""

    id: str
    created: float = Field(description="Seconds since 1970")
    client: str
    job_id: str | None
    parent: str | None = Field(description="Picture it was made from")
    kind: str
    width: int
    height: int
    size: int = Field(description="Bytes")
    model: str
    prompt: str
    negative_prompt: str
    favourite: bool
    tags: list[str]
    trashed: float | None
    url: str
    thumbnail: str
    record: dict[str, Any] = Field(description="Everything that decided its pixels")


class ImageList(BaseModel):
    """One page, the newest first."""

    images: list[ImageView]
    next: str | None = Field(description="`before` of the page after this one")


class LineageView(BaseModel):
    """Where a picture came from, and what was made from it."""

    parents: list[ImageView]
    children: list[ImageView]


class MarkBody(Strict):
    """What is to change; what is left out stays."""

    favourite: bool | None = None
    add_tags: tuple[str, ...] = Field((), max_length=64)
    remove_tags: tuple[str, ...] = Field((), max_length=64)


class AxisBody(Strict):
    """What changes along one direction of a grid."""

    name: str = Field(min_length=1, max_length=64, description="Of the setting")
    values: tuple[Annotated[str, Field(max_length=500)], ...] = Field(min_length=1, max_length=100)


class GridBody(Strict):
    """Pictures of the history that become one, with labels."""

    axes: tuple[AxisBody, ...] = Field(min_length=1, max_length=3, description="Columns, rows, sheets")
    cells: tuple[tuple[tuple[Id | None, ...], ...], ...] = Field(
        max_length=100, description="By sheet, row and column; null stays empty"
    )


class IdsBody(Strict):
    """Pictures by id."""

    ids: tuple[Id, ...] = Field(min_length=1, max_length=1000)


class UndoBody(Strict):
    """What a deletion gave."""

    token: str = Field(min_length=1, max_length=128)


class Deleted(BaseModel):
    """A deletion, and how it is taken back."""

    deleted: int
    undo: str


class Restored(BaseModel):
    """Pictures that are back."""

    ids: list[str]


class TagList(BaseModel):
    """Tags, and how many pictures have each."""

    tags: dict[str, int]
