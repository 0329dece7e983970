"""What pydantic does not describe of the OpenAI Images API in the OpenAPI document: files and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

_DESCRIPTIONS = {
    "image": "PNG, JPEG or WebP. Where it is transparent and there is no mask, it is drawn anew.",
    "mask": "PNG or WebP of the picture's size, transparent where it is drawn anew.",
}

EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One event; its data is JSON of the type that it is named by, and at last [DONE].",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def document(body: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """The ``requestBody`` of a route, from the fields of a form and the names of its files."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in files:
        schema["properties"][name] = {
            "type": "string", "format": "binary", "description": _DESCRIPTIONS[name]
        }  # fmt: skip
    schema["required"] = [*schema.get("required", []), files[0]]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
