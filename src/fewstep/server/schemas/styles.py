"""Styles of prompts, as the native API shows and takes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from fewstep.prompt.grammar import MAX_CHARACTERS
from fewstep.server.schemas.native import Strict


class StyleBody(Strict):
    """A style to write."""

    model_config = ConfigDict(
        extra="forbid", frozen=True,
        json_schema_extra={"examples": [{"name": "film", "prompt": "film still of {prompt}, 35mm"}]},
    )  # fmt: skip

    name: str = Field(min_length=1, max_length=100)
    prompt: str = Field(
        "", max_length=MAX_CHARACTERS, description="Put around {prompt}, or behind it where that is not in it"
    )
    negative_prompt: str = Field("", max_length=MAX_CHARACTERS)


class StyleView(BaseModel):
    """A style that can be named."""

    name: str
    prompt: str
    negative_prompt: str
    own: bool = Field(description="Whether the caller may write and delete it")


class StyleList(BaseModel):
    """All of them."""

    styles: list[StyleView]
