"""A pasted infotext in a request: what it says fills in what the other fields do not.

Only the keys below are read. A model is never switched by a text that came from somewhere: that another one
made it is said in a comment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from fewstep.errors import UsageError
from fewstep.prompt import infotext
from fewstep.server.schemas.a1111 import Generation, Img2Img


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def _scalar(name: str, kind: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: kind(text)}


def _pair(first: str, second: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: dict(zip((first, second), _size(text), strict=True))


_BOTH: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _scalar("steps", int),
    "Sampler": _scalar("sampler_name", str),
    "Schedule type": _scalar("scheduler", str),
    "CFG scale": _scalar("cfg_scale", float),
    "Seed": _scalar("seed", int),
    "Size": _pair("width", "height"),
    "Variation seed": _scalar("subseed", int),
    "Variation seed strength": _scalar("subseed_strength", float),
    "Seed resize from": _pair("seed_resize_from_w", "seed_resize_from_h"),
    "Denoising strength": _scalar("denoising_strength", float),
    "Eta": _scalar("eta", float),
    # What is drawn smaller and enlarged afterwards is asked for in its final size.
    "Postprocess upscale to": _pair("width", "height"),
}
_TEXT: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "Hires upscale": lambda text: {"hr_scale": float(text), "enable_hr": True},
    "Hires resize": lambda text: {**_pair("hr_resize_x", "hr_resize_y")(text), "enable_hr": True},
    "Hires steps": _scalar("hr_second_pass_steps", int),
    "Hires upscaler": _scalar("hr_upscaler", str),
}
_CONTENT = {"fill": 0, "original": 1, "latent noise": 2, "latent nothing": 3}
_MASK: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "Mask blur": _scalar("mask_blur", int),
    "Mask mode": lambda text: {"inpainting_mask_invert": int(text == "Inpaint not masked")},
    "Inpaint area": lambda text: {"inpaint_full_res": text == "Only masked"},
    "Masked area padding": _scalar("inpaint_full_res_padding", int),
    "Masked content": lambda text: {"inpainting_fill": _CONTENT[text]},
}


def filled(body: Generation) -> tuple[Generation, str | None]:
    """A request with what its infotext adds, and the name of the model that the text is of.

    Raises:
        UsageError: a value of the text that cannot be read, or is out of range.
        DataError: the text is too long.
    """
    if body.infotext is None:
        return body, None
    text = infotext.read(body.infotext)
    found: dict[str, Any] = {}
    if text.prompt:
        found["prompt"] = text.prompt
    if text.negative_prompt:
        found["negative_prompt"] = text.negative_prompt
    readers = {**_BOTH, **(_MASK if isinstance(body, Img2Img) else _TEXT)}
    options: dict[str, Any] = {}
    for key, value in text.fields.items():
        try:
            if key in readers:
                found |= readers[key](value)
            elif key == "Clip skip":
                options["CLIP_stop_at_last_layers"] = int(value)
            elif key == "Emphasis":
                options["emphasis"] = value
        except (ValueError, KeyError):
            raise UsageError(
                f"infotext: {key} is {value[:60]!r}, which cannot be read; leave it out"
            ) from None
    given = body.model_dump(include=body.model_fields_set, by_alias=True)
    overrides = {**options, **(body.override_settings or {})}
    values = {**found, **given, "override_settings": overrides or None, "infotext": None}
    try:
        return type(body).model_validate(values), text.fields.get("Model")
    except ValidationError as error:
        detail = error.errors()[0]
        raise UsageError(f"infotext: {detail['loc'][-1]}: {detail['msg']}") from None
