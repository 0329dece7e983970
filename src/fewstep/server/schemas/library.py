"""Changes of what models there are, as the native API takes them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from fewstep.server.schemas.native import Strict
from fewstep.server.schemas.work import NewName


class AddBody(Strict):
    """A name for a file or folder of the server's machine; only where the server is its user's own."""

    name: str = Field(min_length=1, max_length=100, description="No slash, backslash, colon and '..'")
    path: str = Field(min_length=1, max_length=4096, description="From the root of the disk, or from ~")


class KeepBody(Strict):
    """The name of a merge."""

    name: NewName


class Kept(BaseModel):
    """A merge that is a model now."""

    model: str


class Unloaded(BaseModel):
    """What is no longer in memory."""

    model: str | None = Field(description="null when none was")


class Removed(BaseModel):
    """A model that is no longer there."""

    model: str
    files: bool = Field(description="Whether files were deleted")
