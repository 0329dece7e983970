"""What a visitor of the studio prefers, as the native API shows and takes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.server.schemas.native import Strict

Side = Annotated[int, Field(ge=16, le=16384)]
Stop = Annotated[str, Field(pattern=r"^([1-9][0-9]{0,2}|teacher)$")]


class Preferences(Strict):
    """All preferences. The defaults are those of somebody who has set nothing."""

    model: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="Draws; null is the server's own"
    )
    width: Side | None = Field(None, description="Pixels; null is the model's own")
    height: Side | None = None
    n: int = Field(4, ge=1, le=64, description="Pictures of one order")
    stop: Stop | None = Field(
        None, description="Of the quality dial: steps, or teacher; null is the studio's choice"
    )
    save: bool = Field(True, description="Keep pictures of orders that do not say")
    format: Literal["png", "jpg", "webp"] = Field(
        "png", description="Of the pictures that are kept; png keeps every bit"
    )
    quality: int = Field(95, ge=1, le=100, description="Of jpg and webp")
    live: bool = Field(True, description="Draw while the prompt is typed")
    language: Literal["auto", "en", "zh"] = "auto"
    theme: Literal["auto", "light", "dark"] = "auto"
    page: int = Field(48, ge=12, le=200, description="Pictures on a page of the history")


class PreferencesBody(Strict):
    """What is to change. What is left out stays; null sets the default again."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"n": 2, "theme": "dark"}]}
    )

    model: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    width: Side | None = None
    height: Side | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    stop: Stop | None = None
    save: bool | None = None
    format: Literal["png", "jpg", "webp"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    live: bool | None = None
    language: Literal["auto", "en", "zh"] | None = None
    theme: Literal["auto", "light", "dark"] | None = None
    page: Annotated[int, Field(ge=12, le=200)] | None = None

    def changes(self) -> dict[str, Any]:
        """What was given, by name."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class PreferencesView(BaseModel):
    """Preferences of the key that asks, and which of them it has set itself."""

    values: Preferences
    own: list[str] = Field(description="Names of those that are not the default by being left alone")
