"""Adapters, as the native API shows them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class AdapterView(BaseModel):
    """An adapter (LoRA) that can be asked for, and what its file says of itself."""

    name: str
    alias: str | None = Field(None, description="What its trainer called it; another name of it")
    bytes: int
    modified: float = Field(description="Seconds since 1970")
    family: str | None = Field(None, description="Of models that it was made for; null is unknown")
    fits: bool = Field(description="Whether the model takes it, as far as can be told without drawing")
    why: str | None = Field(None, description="Why it does not fit")
    trigger_words: list[str] = Field(description="What prompts say to call for it, the usual first")
    weight: float = Field(description="Its authors', 1 where they are not known")
    picture: str | None = Field(None, description="Where a picture is that lies beside its file")


class AdapterList(BaseModel):
    """Adapters, in the order of search."""

    model: str = Field(description="Name of the model that they are compared with")
    adapters: list[AdapterView]

    model_config = {
        "json_schema_extra": {
            "examples": [
                {
                    "model": "emoji-128",
                    "adapters": [
                        {
                            "name": "gold", "alias": "gold", "bytes": 3000000, "modified": 1795756861.0,
                            "family": "emoji-128", "fits": True, "why": None, "trigger_words": ["gold style"],
                            "weight": 1.0, "picture": None,
                        }
                    ],
                }
            ]
        }
    }  # fmt: skip
