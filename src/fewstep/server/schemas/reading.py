"""What pictures say of their making, drawing them again, and what can enlarge them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.server.schemas.native import Base64, Strict


class ReadBody(Strict):
    """A picture."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"image": "iVBORw0KGgo="}]}
    )

    image: Base64


class PictureFacts(BaseModel):
    """What a picture's file says. All texts are the file's own: nobody has checked them."""

    format: str
    width: int
    height: int
    bytes: int
    tool: str | None = Field(description="That made it, as far as it can be told")
    prompt: str = ""
    negative_prompt: str = ""
    settings: dict[str, Any] = Field(description="As the tool calls them, in its order")
    models: list[str] = Field(default_factory=list, description="Names, as the tool calls them")
    parameters: str | None = Field(None, description="The text of the web UI")
    record: dict[str, Any] | None = Field(None, description="Of fewstep: everything that decided the pixels")
    texts: dict[str, str] = Field(description="Every text of the file, by its name; long ones are cut")
    note: str | None = Field(None, description="Why something cannot be read")


class ReplayView(BaseModel):
    """A picture that was drawn again from its record."""

    verdict: Literal["equal", "close", "different"]
    largest: int | None = Field(description="Difference of a pixel, in levels of 255; null for other sizes")
    share: float | None = Field(description="Of pixels that differ, 0 to 1")
    reasons: list[str] = Field(description="What is not as it was")
    image: str = Field(description="Base64 of the new picture, a PNG")
    record: dict[str, Any] = Field(description="Of the new picture")


class UpscalerView(BaseModel):
    """Something that enlarges pictures."""

    name: str
    scales: list[int] = Field(description="What one pass of it makes; none for any scale")
    noise: list[int] = Field(description="Levels of noise that it can remove")
    installed: bool


class UpscalerList(BaseModel):
    """Upscalers, those without a network first."""

    default: str = Field(description="What auto is here")
    upscalers: list[UpscalerView]
