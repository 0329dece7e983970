"""``img2img`` as orders: pictures that are changed, whole or where a mask is white."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.engine import masks
from fewstep.errors import NotFoundError, UsageError
from fewstep.server import sizes
from fewstep.server.a1111 import dimensions, names, pictures
from fewstep.server.a1111.pictures import Pixels
from fewstep.server.a1111.wishes import Setting, Wish, common, seed_size
from fewstep.server.orders import Order, Upscale
from fewstep.server.schemas.a1111 import Img2Img

_LEAST = 0.01
"""Strength in place of 0, at which one step is run, as in the WebUI."""


def wish(body: Img2Img, at: Setting, *, model: str, save: bool) -> Wish:
    """The orders of a request: one, or with several pictures one for each that is drawn.

    Args:
        body: the request.
        at: where it is drawn.
        model: by name.
        save: keep the pictures in the history.

    Raises:
        NotFoundError: no picture is given; or as `wishes.common`.
        UsageError, DataError, TooLarge, DependencyError: as `fewstep.server.a1111.txt2img.wish`.
    """
    if not body.init_images:
        raise NotFoundError("init_images: no picture is given; send one in base64")
    if len(body.init_images) > max(body.batch_size, 1):
        raise UsageError(
            f"init_images has {len(body.init_images)} pictures and batch_size is {body.batch_size}: give as "
            "many as are drawn in a batch, or one"
        )
    base = common(body, at)
    chosen = str(at.options["fewstep_upscaler"])
    upscaler = chosen.lower() if chosen.lower() in ("auto", "none") else names.upscaler(chosen)
    plan = dimensions.plan(at.info, body.width, body.height, at.limits, upscaler)
    asked, comments = dict(base.asked), list(base.comments)
    if plan.upscale is not None:
        asked["Size"] = f"{body.width}x{body.height}"
    if body.resize_mode == pictures.LATENT:
        comments.append("resize_mode 3 is done in pixels, as 0")
    shared = {**base.settings, **_strength(body, at), **seed_size(body, (plan.width, plan.height), at.info)}
    text = body.mask or body.latent_mask
    mask = None if text is None else at.decode(text, "mask", mask=True)
    started = []
    for index, picture in enumerate(body.init_images):
        image = at.decode(picture, f"init_images {index}" if len(body.init_images) > 1 else "init_images")
        started.append(_started(body, at, plan, image, mask, comments))
    orders = []
    alone = len(started) == 1
    for index in range(1 if alone else base.images):
        settings, upscale = started[index % len(started)]
        given = {**shared, **settings}
        if not alone:
            given |= {"seed": base.seed + index, "n": 1}
            if "variation_seed" in given:
                given |= {"seed": base.seed, "variation_seed": base.subseed + index}
        order = Order(
            settings=given, model=model, owner=at.owner, client="a1111", upscale=upscale, save=save,
            extra={"asked": asked} if asked else {},
        )  # fmt: skip
        orders.append(order)
    return Wish(
        orders=orders, body=body, images=base.images, seed=base.seed, subseed=base.subseed, asked=asked,
        comments=list(dict.fromkeys(comments)),
    )  # fmt: skip


def _strength(body: Img2Img, at: Setting) -> dict[str, Any]:
    if at.info.inputs == "instruct":  # it is shown the picture beside the noise
        return {} if body.image_cfg_scale is None else {"image_guidance_scale": body.image_cfg_scale}
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    return {"strength": strength or _LEAST}


def _started(
    body: Img2Img,
    at: Setting,
    plan: sizes.SizePlan,
    image: Pixels,
    mask: Pixels | None,
    comments: list[str],
) -> tuple[dict[str, Any], Upscale | None]:
    """Settings of what is drawn from one picture, and what brings it to its size."""
    drawn = {"width": plan.width, "height": plan.height}
    if mask is not None and body.inpaint_full_res:
        mask = pictures.mask_like(mask, image)
        if _blank(mask, body.inpainting_mask_invert):
            comments.append("the mask is blank, so the whole picture is drawn")
            mask = None
    if mask is None:
        shaped = pictures.shaped(image, body.resize_mode, plan.width, plan.height)
        return {**drawn, "init_image": shaped}, plan.upscale
    settings: dict[str, Any] = {
        **drawn, "masked_content": masks.CONTENTS[body.inpainting_fill], "mask_blur": _blur(body, comments),
        "invert_mask": bool(body.inpainting_mask_invert),
    }  # fmt: skip
    if body.inpaint_full_res:
        # As in the WebUI the picture keeps its own size: only the part around the mask is drawn.
        padding = body.inpaint_full_res_padding
        return {**settings, "init_image": image, "mask": mask, "only_masked": True, "padding": padding}, None
    mask = pictures.mask_like(mask, image)
    for name, pixels in (("init_image", image), ("mask", mask)):
        settings[name] = pictures.shaped(pixels, body.resize_mode, body.width, body.height)
    if plan.upscale is not None:
        # Drawn smaller and laid back into the picture, so that what is not masked stays as it is.
        settings |= {"only_masked": True, "padding": masks.MAX_PADDING}
    return settings, None


def _blank(mask: Pixels, inverted: int) -> bool:
    return bool(np.all(mask == 255)) if inverted else not mask.any()


def _blur(body: Img2Img, comments: list[str]) -> int:
    if body.mask_blur is not None:
        return body.mask_blur
    if body.mask_blur_x != body.mask_blur_y:
        comments.append(
            f"masks are blurred alike in both directions: by {max(body.mask_blur_x, body.mask_blur_y)}"
        )
    return max(body.mask_blur_x, body.mask_blur_y)
