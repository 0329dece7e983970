"""Messages of the live mode; docs/reference/live.md has the protocol."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fewstep.errors import UsageError
from fewstep.prompt.attention import EmphasisMode
from fewstep.server.schemas.native import AdapterBody, HiresBody, OutpaintBody, UpscaleBody
from fewstep.server.security.json_guard import check_characters

Format = Literal["jpeg", "webp", "png"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[str, Field(max_length=64)] | Annotated[int, Field(ge=-(2**53), le=2**53)]
"""A client's own name of a message, given back with everything that comes of it."""

IDLE_MS = 400

_AS_IT_IS = (
    "prompt", "seed", "student", "num_inference_steps", "width", "height", "negative_prompt",
    "guidance_scale", "guidance_rescale", "solver", "eta", "clip_skip", "emphasis", "strength",
    "image_guidance_scale", "masked_content", "mask_blur", "padding", "variation_seed", "variation_strength",
    "only_masked", "invert_mask", "insist",
)  # fmt: skip
"""Fields whose name and meaning are those of `fewstep.engine.request.resolve`."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Draw(_Message):
    """What is wanted now; in place of everything before. Fields are as of the native API."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": 7, "prompt": "a red apple", "seed": 3, "steps": 4}]}
    )

    type: Literal["draw"] = "draw"
    id: Id | None = None
    prompt: str
    negative_prompt: str = ""
    model: str | None = Field(None, max_length=255)
    student: str | None = Field(None, max_length=64)
    num_inference_steps: int | None = Field(
        None,
        ge=1,
        le=1000,
        validation_alias=AliasChoices("num_inference_steps", "steps"),
        description="Of the final picture; also called steps. Without, the model's default.",
    )
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    guidance_rescale: Finite | None = Field(None, ge=0, le=1)
    solver: str | None = Field(None, max_length=64)
    eta: Finite | None = Field(None, ge=0, le=10)
    clip_skip: int | None = Field(None, ge=0, le=12)
    emphasis: EmphasisMode = "original"
    seed: int = Field(0, ge=0, lt=2**63)
    width: int | None = Field(None, ge=16, le=16384)
    height: int | None = Field(None, ge=16, le=16384)
    image: str | None = Field(None, description="Base64 or a data URI: start from this picture.")
    strength: Finite | None = Field(None, gt=0, le=1)
    image_guidance_scale: Finite | None = Field(None, ge=1, le=100)
    mask: str | None = Field(None, description="White is redrawn.")
    masked_content: str | None = Field(None, max_length=32)
    mask_blur: int | None = Field(None, ge=0, le=256)
    only_masked: bool = False
    padding: int | None = Field(None, ge=0, le=1024)
    invert_mask: bool = False
    outpaint: OutpaintBody | None = None
    variation_seed: int | None = Field(None, ge=0, lt=2**63)
    variation_strength: Finite | None = Field(None, ge=0, le=1)
    adapters: tuple[AdapterBody, ...] = Field((), max_length=32)
    hires: HiresBody | None = Field(None, description="Of the final picture.")
    upscale: UpscaleBody = Field(UpscaleBody(name="none"), description="Of the final picture.")
    insist: bool = False
    format: Format = "jpeg"
    quality: int = Field(85, ge=1, le=100, description="Of jpeg and webp.")
    idle_ms: int = Field(
        IDLE_MS, ge=0, le=10_000, description="Without a newer one, until the final picture."
    )
    final: bool = Field(True, description="Whether the final picture is wanted at all.")
    save: bool = Field(False, description="Keep the final picture in the history.")

    def settings(self) -> dict[str, Any]:
        """Of `fewstep.server.orders.Order`: those that need no translation."""
        fields = type(self).model_fields
        given = {name: getattr(self, name) for name in _AS_IT_IS}
        always = ("prompt", "seed")
        return {
            name: value for name, value in given.items() if name in always or value != fields[name].default
        }

    def same(self, other: Draw) -> bool:
        """Whether both want the same pictures, whatever they are called."""
        return self.model_copy(update={"id": None}) == other.model_copy(update={"id": None})


class Stop(_Message):
    """Draw nothing more."""

    type: Literal["stop"]
    id: Id | None = None


class Ping(_Message):
    """Stay connected."""

    type: Literal["ping"]
    id: Id | None = None


class Resume(_Message):
    """Go on with a connection that broke off."""

    type: Literal["resume"]
    id: Id | None = None
    token: str = Field(max_length=64)


Message = Draw | Stop | Ping | Resume
_KINDS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(kind)
    for name, kind in (("draw", Draw), ("stop", Stop), ("ping", Ping), ("resume", Resume))
}


class Unclear(UsageError):
    """A message that is none; what can be told of it."""

    code = "unclear"

    def __init__(self, message: str, *, id: str | int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.id = id
        self.field = field


def parse(text: str) -> Message:
    """A message from its JSON.

    Raises:
        Unclear: it is none; it names the field.
    """
    try:
        check_characters(text.encode("utf-8"))
        values = json.loads(text)
    except UsageError as error:
        raise Unclear(f"message is refused: {error}") from None
    except (ValueError, RecursionError):
        raise Unclear("message is no JSON: send one object per message") from None
    if not isinstance(values, dict):
        raise Unclear("message is no JSON object: send one object per message")
    kind = values.get("type", "draw")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise Unclear(f"type is {kind!r:.40}: give one of {', '.join(_KINDS)}", id=_id(values), field="type")
    try:
        found: Message = _KINDS[kind].validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        where = f"{field}: " if field else ""
        raise Unclear(f"{where}{first['msg'][:200]}", id=_id(values), field=field) from None
    return found


def _id(values: dict[str, Any]) -> str | int | None:
    own = values.get("id")
    if isinstance(own, bool) or not isinstance(own, str | int):
        return None
    return own[:64] if isinstance(own, str) else own
