"""Requests of the OpenAI Images API, as client 3.57 sends them, and what each field is here.

Every field of that client is taken or refused by name; further names are refused, but for a few of ours
(``extra_body`` of the client): ``seed``, ``steps``, ``guidance_scale``, ``negative_prompt``, ``strength``.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fewstep.errors import NotFoundError, UsageError
from fewstep.server import sizes
from fewstep.server.openai.wishes import Kind, Refused, Wish
from fewstep.server.settings import Limits

Quality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]

_LEVELS = {"low": 0, "medium": 1, "high": 2, "xhigh": 3, "max": 4, "standard": 1, "hd": 2}
"""Of `fewstep.server.steps.of_level`."""
_REPORTED = {"standard": "medium", "hd": "high"}
_KEPT = {"low": None, "high": 0.5}
"""Input fidelity -> strength; None is the usual one."""
VARIATION_STRENGTH = 0.6
"""Of a variation: the composition stays, what it shows changes."""
MAX_N = 10

EDIT_FILES = ("image", "mask")
VARIATION_FILES = ("image",)
"""Names of a form's files: the picture, and where it is redrawn."""

_NO_GIF = "animations are not drawn here; leave it out"
_NO_SVG = "drawings of lines are not made here; leave it out"
_REFUSED = {
    "frame_count": _NO_GIF,
    "frame_duration_ms": _NO_GIF,
    "svg": _NO_SVG,
    "markup": "a picture with notes is not understood here; say it in the prompt, or give a mask",
}


def _none(value: Any) -> Any:
    # Forms have no null: an empty text is what a client sends for it.
    return None if value == "" else value


Maybe = BeforeValidator(_none)


class _Shared(BaseModel):
    """Fields of all three."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str | None, Maybe] = Field(
        None, max_length=200, description="A name of /v1/models; without, the server's model."
    )
    n: Annotated[int | None, Maybe] = Field(1, ge=1, le=MAX_N, description="Pictures.")
    size: Annotated[str | None, Maybe] = Field(
        "auto",
        max_length=20,
        description="WIDTHxHEIGHT. A size that the model does not draw is reached by the upscaler. `auto` is "
        "the model's own after upscaling; for edits and variations that of the picture that is sent.",
    )
    response_format: Annotated[Literal["url", "b64_json"] | None, Maybe] = Field(
        "b64_json", description="`url` is good for an hour, and only where the server keeps pictures."
    )
    user: Annotated[str | None, Maybe] = Field(
        None,
        max_length=1000,
        description="Given back as safety_identifier; nothing is done with it.",
    )
    seed: Annotated[int | None, Maybe] = Field(
        None, ge=0, lt=2**63, description="Not OpenAI's: of the first picture; without, one is drawn by lot."
    )


class _Painted(_Shared):
    """Fields of generations and edits."""

    prompt: str = Field(max_length=32_000, description="What to draw.")
    quality: Annotated[Quality | None, Maybe] = Field(
        "auto",
        description="Decides the steps: low, medium, high, xhigh are at least 1, 2, 4, 8 of those that the "
        "model was made for, max the most, auto the model's own default. standard is medium, hd is high.",
    )
    background: Annotated[Literal["transparent", "opaque", "auto"] | None, Maybe] = Field(
        "auto", description="`transparent` is refused: pictures are opaque."
    )
    output_format: Annotated[Literal["png", "webp", "jpeg", "gif", "svg"] | None, Maybe] = Field(
        "png", description="`gif` and `svg` are refused."
    )
    output_compression: Annotated[int | None, Maybe] = Field(
        100, ge=0, le=100, description="Quality of jpeg and webp."
    )
    stream: Annotated[bool | None, Maybe] = Field(False, description="Server-sent events, one picture.")
    partial_images: Annotated[int | None, Maybe] = Field(
        0, ge=0, le=3, description="With stream: pictures before the last one, at most one per step."
    )
    safety_identifier: Annotated[str | None, Maybe] = Field(
        None, max_length=1000, description="Given back; nothing is done with it."
    )
    complexity: Annotated[Literal["low", "medium", "high"] | None, Maybe] = Field(
        None, description="Without effect: nothing is planned before it is drawn."
    )
    frame_count: Annotated[int | None, Maybe] = Field(None, description="Refused.")
    frame_duration_ms: Annotated[int | None, Maybe] = Field(None, description="Refused.")
    svg: Annotated[dict[str, Any] | None, Maybe] = Field(None, description="Refused.")
    steps: Annotated[int | None, Maybe] = Field(
        None, ge=1, le=1000, description="Not OpenAI's: instead of quality."
    )
    guidance_scale: Annotated[float | None, Maybe] = Field(
        None, ge=0, le=100, description="Not OpenAI's: without, the model's own."
    )
    negative_prompt: Annotated[str | None, Maybe] = Field(
        None, max_length=20_000, description="Not OpenAI's: what to stay away from."
    )

    def wish(self) -> Wish:
        """What is asked for, in the server's words.

        Raises:
            Refused: a field's value that is not taken here.
        """
        for name, why in _REFUSED.items():
            if getattr(self, name, None) is not None:
                raise Refused(name, f"{name}: {why}", "unsupported_parameter")
        kind = _kind(self.output_format)
        if self.background == "transparent":
            raise Refused(
                "background", "background is 'transparent': pictures are opaque here, give opaque or auto"
            )
        compression = 100 if self.output_compression is None else self.output_compression
        if kind == "png" and compression != 100:
            raise Refused(
                "output_compression",
                f"output_compression is {compression} and output_format is png, which loses nothing: give "
                "jpeg or webp, or leave it out",
            )
        partial = self.partial_images or 0
        if partial and not self.stream:
            raise Refused("partial_images", f"partial_images is {partial} without stream: give stream true")
        if self.stream and (self.n or 1) > 1:
            raise Refused(
                "n", f"n is {self.n} with stream, whose events do not say which picture they are of: give n 1"
            )
        quality = self.quality or "auto"
        given = {
            "prompt": self.prompt,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt,
        }
        settings = {name: value for name, value in given.items() if value is not None}
        return _wish(
            self, settings, kind=kind, compression=compression, stream=bool(self.stream), partial=partial,
            level=None if self.steps is not None else _LEVELS.get(quality),
            quality=_REPORTED.get(quality, quality), identifier=self.safety_identifier or self.user,
        )  # fmt: skip


class GenerationBody(_Painted):
    """POST /v1/images/generations."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple", "size": "512x512", "quality": "low"},
                {"prompt": "a blue dog", "n": 2, "output_format": "jpeg", "output_compression": 85},
                {"prompt": "a green apple", "stream": True, "partial_images": 2},
            ]
        }
    )

    moderation: Annotated[Literal["low", "auto"] | None, Maybe] = Field(
        None, description="Without effect: prompts are not moderated here."
    )
    style: Annotated[Literal["vivid", "natural"] | None, Maybe] = Field(
        None, description="Without effect: say it in the prompt."
    )


class EditBody(_Painted):
    """POST /v1/images/edits, without its files."""

    input_fidelity: Annotated[Literal["high", "low"] | None, Maybe] = Field(
        None, description="Without a mask: high keeps more of the picture (strength 0.5), low is 0.75."
    )
    strength: Annotated[float | None, Maybe] = Field(
        None, gt=0, le=1, description="Not OpenAI's: how much may change; instead of input_fidelity."
    )

    def wish(self) -> Wish:
        """As of `_Painted`; pictures are added by the route."""
        found = super().wish()
        more = {} if self.strength is None else {"strength": self.strength}
        kept = _KEPT[self.input_fidelity or "low"]
        return dataclasses.replace(found, settings={**found.settings, **more}, strength=kept)


class VariationBody(_Shared):
    """POST /v1/images/variations, without its file."""

    strength: Annotated[float | None, Maybe] = Field(
        None, gt=0, le=1, description="Not OpenAI's: how much may change; 0.6 without."
    )

    def wish(self) -> Wish:
        """Image-to-image without words."""
        strength = VARIATION_STRENGTH if self.strength is None else self.strength
        found = _wish(self, {"prompt": ""}, kind="png", compression=100, identifier=self.user)
        return dataclasses.replace(found, strength=strength)


class UnknownModel(NotFoundError):
    """No model of that name."""

    param = "model"
    code = "model_not_found"


def check(wish: Wish, limits: Limits, *, keeps: bool) -> None:
    """Refuse what a server does not do.

    Args:
        wish: what is wanted.
        limits: of the server.
        keeps: whether it keeps pictures.

    Raises:
        Refused: it names the field.
    """
    for name in ("prompt", "negative_prompt"):
        if len(wish.settings.get(name) or "") > limits.max_prompt:
            raise Refused(name, f"{name} is longer than {limits.max_prompt} characters: shorten it")
    if wish.n > limits.max_images:
        raise Refused("n", f"n is {wish.n}: this server draws at most {limits.max_images} at once")
    count = wish.settings.get("num_inference_steps")
    if count is not None and count > limits.max_steps:
        raise Refused("steps", f"steps is {count}: this server takes at most {limits.max_steps}")
    if wish.size is not None and min(wish.size) < limits.min_side:
        raise Refused(
            "size", f"size is {wish.size[0]}x{wish.size[1]}: at least {limits.min_side} pixels a side"
        )
    if wish.size is not None and wish.size[0] * wish.size[1] > limits.max_output:
        raise Refused("size", f"size is {wish.size[0]}x{wish.size[1]}: at most {limits.max_output} pixels")
    if wish.as_url and not keeps:
        raise Refused(
            "response_format", "response_format is 'url', and this server keeps no pictures: give b64_json"
        )


def _kind(name: str | None) -> Kind:
    if name == "jpeg":
        return "jpeg"
    if name == "webp":
        return "webp"
    if name in (None, "png"):
        return "png"
    raise Refused("output_format", f"output_format is {name!r}: give png, jpeg or webp")


def _wish(
    body: _Shared,
    settings: dict[str, Any],
    *,
    kind: Kind,
    compression: int,
    stream: bool = False,
    partial: int = 0,
    level: int | None = None,
    quality: str = "auto",
    identifier: str | None = None,
) -> Wish:
    size = None
    if body.size not in (None, "auto"):
        try:
            size = sizes.parse(str(body.size))
        except UsageError as error:
            raise Refused("size", str(error)) from None
    as_url = body.response_format == "url"
    if as_url and stream:
        raise Refused("response_format", "response_format is 'url' with stream, whose events carry pictures")
    if as_url and kind != "png":
        raise Refused(
            "output_format",
            f"output_format is {kind!r} and response_format is url, which is PNG: give png, or b64_json",
        )
    if body.seed is not None:
        settings["seed"] = body.seed
    return Wish(
        settings=settings, model=body.model, n=body.n or 1, size=size, level=level, quality=quality,
        kind=kind, compression=compression, as_url=as_url, stream=stream, partial=partial,
        identifier=identifier,
    )  # fmt: skip
