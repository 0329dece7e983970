"""Answers of the OpenAI Images API, as client 3.57 reads them."""

from __future__ import annotations

import base64
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.server.openai.results import Pictures
from fewstep.server.openai.wishes import Wish

Task = Literal["image_generation", "image_edit"]
"""Beginning of the types of events."""


class InputDetails(BaseModel):
    """What went in."""

    text_tokens: int = Field(description="Of the prompt, as the model's first text encoder counts them.")
    image_tokens: int = Field(description="Pictures that were sent, each counted as 1.")


class OutputDetails(BaseModel):
    """What came out."""

    text_tokens: int = Field(description="Always 0.")
    image_tokens: int = Field(description="Pictures that were drawn, each counted as 1.")


class Usage(BaseModel):
    """Counts, not prices: a picture has no tokens here, so each is 1."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Picture(BaseModel):
    """One of the pictures."""

    b64_json: str | None = Field(None, description="The file in base64.")
    url: str | None = Field(None, description="Where the file is.")


class ImagesAnswer(BaseModel):
    """Pictures that were made."""

    created: int = Field(description="Seconds since 1970.")
    data: list[Picture]
    background: Literal["opaque"]
    output_format: Literal["png", "webp", "jpeg"]
    quality: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="Absent where the model's default drew."
    )
    size: str = Field(description="WIDTHxHEIGHT of the pictures, as they are.")
    usage: Usage
    safety_identifier: str | None = None


class ModelAnswer(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970, or 0 where it is not known.")
    owned_by: str


class ModelsAnswer(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Body of every answer that is no success."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "output_format is 'gif': give png, jpeg or webp",
                        "type": "invalid_request_error",
                        "param": "output_format",
                        "code": "invalid_value",
                    }
                }
            ]
        }
    )
    error: Problem


def usage(pictures: Pictures) -> dict[str, Any]:
    """What was used."""
    text, sent, made = pictures.tokens, pictures.sent, len(pictures.files)
    return {
        "input_tokens": text + sent,
        "input_tokens_details": {"text_tokens": text, "image_tokens": sent},
        "output_tokens": made,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": made},
        "total_tokens": text + sent + made,
    }


def images(wish: Wish, pictures: Pictures, urls: list[str] | None = None) -> dict[str, Any]:
    """An answer of `ImagesAnswer`; ``urls`` in place of the files."""
    if urls is None:
        data = [{"b64_json": _text(file)} for file in pictures.files]
    else:
        data = [{"url": url} for url in urls]
    answer: dict[str, Any] = {
        "created": pictures.created,
        "data": data,
        "background": "opaque",
        "output_format": wish.kind,
        "size": f"{pictures.width}x{pictures.height}",
        "usage": usage(pictures),
    }
    if wish.quality != "auto":
        answer["quality"] = wish.quality
    return _identified(wish, answer)


def completed(wish: Wish, pictures: Pictures, task: Task) -> dict[str, Any]:
    """The event of the picture that a stream was for."""
    used = usage(pictures)
    del used["output_tokens_details"]
    return _identified(wish, {
        "type": f"{task}.completed",
        **_event(wish, pictures.files[0], (pictures.width, pictures.height), pictures.created),
        "usage": used,
    })  # fmt: skip


def partial(
    wish: Wish, file: bytes, size: tuple[int, int], *, index: int, created: int, task: Task
) -> dict[str, Any]:
    """The event of a picture on the way."""
    return {
        "type": f"{task}.partial_image",
        **_event(wish, file, size, created),
        "partial_image_index": index,
    }


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """A body of `ErrorAnswer`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model(name: str, created: int, owner: str) -> dict[str, Any]:
    """An answer of `ModelAnswer`."""
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _event(wish: Wish, file: bytes, size: tuple[int, int], created: int) -> dict[str, Any]:
    return {
        "b64_json": _text(file),
        "background": "opaque",
        "created_at": created,
        "output_format": wish.kind,
        "quality": wish.quality,
        "size": f"{size[0]}x{size[1]}",
    }


def _identified(wish: Wish, answer: dict[str, Any]) -> dict[str, Any]:
    if wish.identifier:
        answer["safety_identifier"] = wish.identifier
    return answer


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")
