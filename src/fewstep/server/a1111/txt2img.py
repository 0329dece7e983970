"""``txt2img`` as an order: one pass, or two."""

from __future__ import annotations

import math
from typing import Any

from fewstep.engine.hires import Hires
from fewstep.server.a1111 import dimensions, names, pictures
from fewstep.server.a1111.wishes import Common, Setting, Wish, common, seed_size
from fewstep.server.orders import Order, Upscale
from fewstep.server.schemas.a1111 import Txt2Img

_MAX_SCALE = 8.0
"""Of a second pass that is asked for by its factor."""


def wish(body: Txt2Img, at: Setting, *, model: str, save: bool) -> Wish:
    """The order of a request.

    Args:
        body: the request.
        at: where it is drawn.
        model: by name.
        save: keep the pictures in the history.

    Raises:
        UsageError, NotFoundError: as `wishes.common`, or a size that cannot be reached.
        DataError, TooLarge: a picture that cannot be read.
        DependencyError: an upscaler that is not installed.
    """
    base = common(body, at)
    upscaler = _upscaler(at)
    asked, comments = dict(base.asked), list(base.comments)
    if body.enable_hr:
        size, settings, upscale = _two_passes(body, at, base, upscaler)
    else:
        plan = dimensions.plan(at.info, body.width, body.height, at.limits, upscaler)
        size, settings, upscale = (plan.width, plan.height), {}, plan.upscale
    if upscale is not None and size != (body.width, body.height):
        asked["Size"] = f"{body.width}x{body.height}"
    settings = {
        **base.settings, "width": size[0], "height": size[1], **seed_size(body, size, at.info), **settings
    }  # fmt: skip
    order = Order(
        settings=settings, model=model, owner=at.owner, client="a1111", upscale=upscale, save=save,
        extra={"asked": asked} if asked else {},
    )  # fmt: skip
    return Wish(
        orders=[order], body=body, images=base.images, seed=base.seed, subseed=base.subseed, asked=asked,
        comments=comments,
    )  # fmt: skip


def _two_passes(
    body: Txt2Img, at: Setting, base: Common, upscaler: str
) -> tuple[tuple[int, int], dict[str, Any], Upscale | None]:
    """(width, height) of the first pass, settings of the second, and what follows it."""
    asked, resize = (body.width, body.height), (body.hr_resize_x, body.hr_resize_y)
    if body.firstphase_width or body.firstphase_height:  # the WebUI's old form of the same
        resize = asked
        asked = (body.firstphase_width or asked[0], body.firstphase_height or asked[1])
    final = dimensions.final_size(asked, body.hr_scale, resize)
    sizes = dimensions.passes(at.info, asked, final, at.limits, upscaler=upscaler)
    between = names.latent_upscaler(body.hr_upscaler)
    strength = 0.75 if body.denoising_strength is None else body.denoising_strength
    if body.firstpass_image is not None:
        image = at.decode(body.firstpass_image, "firstpass_image")
        drawn = sizes.second or sizes.first
        settings: dict[str, Any] = {
            "init_image": pictures.shaped(image, pictures.STRETCH, *drawn),
            "strength": max(strength, 0.01),
        }
        return drawn, settings, sizes.upscale
    if sizes.second is None or strength == 0.0:
        # Nothing is drawn in between: what was drawn is only enlarged, as the WebUI does at strength 0.
        network = "auto" if between == "latent" else between
        back = None if sizes.first == final else Upscale(name=network, width=final[0], height=final[1])
        return sizes.first, {}, back
    steps = None
    if at.info.sampling(base.settings.get("student")).allowed_steps is None:
        # The WebUI counts the steps that are run, fewstep those of the whole grid.
        runs = body.hr_second_pass_steps or base.settings.get("num_inference_steps")
        steps = None if runs is None else math.ceil(runs / max(strength, 0.01) - 1e-9)
    # By its factor where that is the same: infotexts say it then, as the WebUI's do.
    step, scale = at.info.size_multiple, body.hr_scale
    scaled = tuple(round(side * scale / step) * step for side in sizes.first)
    by_factor = resize == (0, 0) and scaled == sizes.second and scale <= _MAX_SCALE
    second = Hires(
        scale=scale if by_factor else None, size=None if by_factor else sizes.second, steps=steps,
        strength=strength, upscaler=between,
    )  # fmt: skip
    return sizes.first, {"hires": second}, sizes.upscale


def _upscaler(at: Setting) -> str:
    chosen = str(at.options["fewstep_upscaler"])
    return chosen.lower() if chosen.lower() in ("auto", "none") else names.upscaler(chosen)
