"""Drawn pictures as the WebUI's answer: files in base64, the request's echo, and the text called ``info``."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from starlette.responses import Response

from fewstep import __version__
from fewstep.server import media
from fewstep.server.a1111 import names
from fewstep.server.a1111.options import FORMATS
from fewstep.server.a1111.wishes import Wish
from fewstep.server.orders import Drawn
from fewstep.server.schemas.a1111 import Img2Img
from fewstep.server.schemas.a1111_answers import Pictures

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo

INTERRUPTED = "interrupted: pictures that were not finished are left out"


def answer(
    wish: Wish, drawn: Sequence[Drawn], info: ModelInfo, options: dict[str, Any], *, interrupted: bool = False
) -> Pictures:
    """The answer to a request. Takes a while: not for the event loop.

    Args:
        wish: what was asked for.
        drawn: of every order that was finished.
        info: the model that drew.
        options: of the caller, with those of the request.
        interrupted: whether orders are missing.

    Raises:
        OutputError: the format cannot hold a picture.
    """
    images: list[str] = []
    if wish.body.send_images:
        kind: Any = FORMATS[options["samples_format"]]
        quality = None if kind == "png" else int(options["jpeg_quality"])
        images = [
            encoded(media.encode(image, kind=kind, infotext=infotext, record=record, quality=quality))
            for one in drawn
            for image, infotext, record in zip(one.images, one.infotexts, one.records, strict=True)
        ]
    said = _info(wish, drawn, info, options, interrupted=interrupted)
    return Pictures(images=images, parameters=_echo(wish, drawn, info), info=json.dumps(said))


def as_json(answer: BaseModel) -> Response:
    """An answer with pictures, made where it does not hold up the event loop."""
    return Response(answer.model_dump_json(), media_type="application/json")


def encoded(data: bytes) -> str:
    """A file as clients of this API read it: base64 without a prefix."""
    return base64.b64encode(data).decode("ascii")


def _echo(wish: Wish, drawn: Sequence[Drawn], info: ModelInfo) -> dict[str, Any]:
    body = wish.body
    echo = body.model_dump(mode="json", include=set(type(body).model_fields))
    echo |= {"seed": wish.seed, "subseed": wish.subseed, "firstpass_image": None}
    if isinstance(body, Img2Img) and not body.include_init_images:
        echo |= {"init_images": None, "mask": None, "latent_mask": None}
    record = drawn[0].records[0] if drawn and drawn[0].records else {}
    used: dict[str, Any] = {"model": info.name}
    if record:
        used |= {
            "student": (record.get("student") or {}).get("name"),
            "steps": record["num_inference_steps"],
            "cfg_scale": record["guidance_scale"],
            "sampler_name": names.shown_sampler(record["solver"]),
            "drawn_width": drawn[0].drawn_width,
            "drawn_height": drawn[0].drawn_height,
            "upscaler": (record.get("upscale") or {}).get("name"),
        }
    return {**echo, "fewstep": used}


def _info(
    wish: Wish, drawn: Sequence[Drawn], info: ModelInfo, options: dict[str, Any], *, interrupted: bool
) -> dict[str, Any]:
    body = wish.body
    records = [record for one in drawn for record in one.records]
    first: dict[str, Any] = records[0] if records else {}
    seeds = [seed for one in drawn for seed in one.seeds]
    varied = body.subseed_strength > 0.0
    subseeds = [wish.subseed + (index if varied else 0) for index in range(len(seeds))]
    warnings = [warning for one in drawn for warning in one.warnings]
    comments = [*wish.comments, *warnings, *([INTERRUPTED] if interrupted else [])]
    size = (drawn[0].width, drawn[0].height) if drawn else (body.width, body.height)
    prompt, negative = first.get("prompt", body.prompt), first.get("negative_prompt", body.negative_prompt)
    return {
        "prompt": prompt,
        "all_prompts": [record["prompt"] for record in records],
        "negative_prompt": negative,
        "all_negative_prompts": [record["negative_prompt"] for record in records],
        "seed": seeds[0] if seeds else wish.seed,
        "all_seeds": seeds,
        "subseed": wish.subseed,
        "all_subseeds": subseeds,
        "subseed_strength": body.subseed_strength,
        "width": size[0],
        "height": size[1],
        "sampler_name": names.shown_sampler(first["solver"]) if first else None,
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("num_inference_steps"),
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": info.name,
        "sd_model_hash": info.hash[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": body.seed_resize_from_w,
        "seed_resize_from_h": body.seed_resize_from_h,
        "denoising_strength": (first.get("hires") or first).get("strength"),
        "extra_generation_params": _further(wish, drawn, first),
        "index_of_first_image": 0,
        "infotexts": [text for one in drawn for text in one.infotexts],
        "styles": body.styles or [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": int(first.get("clip_skip", 0)) + 1,
        "is_using_inpainting_conditioning": info.inputs == "inpaint",
        "version": f"fewstep {__version__}",
        "comments": list(dict.fromkeys(comments)),
        "ids": [one for each in drawn for one in each.ids],
    }


def _further(wish: Wish, drawn: Sequence[Drawn], first: dict[str, Any]) -> dict[str, Any]:
    """Settings behind the usual ones, and what had been asked for in place of them."""
    found: dict[str, Any] = {f"Asked {key}": value for key, value in wish.asked.items()}
    if student := (first.get("student") or {}).get("name"):
        found["Student"] = student
    if shown := names.schedule_type(first.get("spacing")):
        found["Schedule type"] = shown
    upscale = first.get("upscale") or {}
    if drawn and (upscale or not first.get("hires")):
        own = (drawn[0].drawn_width, drawn[0].drawn_height)
        if own != (drawn[0].width, drawn[0].height):
            found["Drawn size"] = f"{own[0]}x{own[1]}"
    if upscale:
        found["Postprocess upscaler"] = upscale["name"]
    if second := first.get("hires"):
        found["Hires resize"] = f"{second['width']}x{second['height']}"
        found["Hires steps"] = second["runs"]
        found["Hires upscaler"] = second["upscaler"]
    return found
