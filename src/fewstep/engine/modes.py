"""The picture of a request as it will be drawn on: mask turned round, canvas extended, strength chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine import checks, control, masks, outpaint
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.masks import Masking
    from fewstep.engine.outpaint import Outpaint
    from fewstep.engine.request import GenerateRequest, Image, Mask

IMAGE_STRENGTH = 0.75
"""Strength of image-to-image when none is given."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Taken:
    """A picture and its mask, ready to be drawn on."""

    image: Image | None = None
    mask: Mask | None = None
    masking: Masking = masks.PLAIN
    outpaint: Outpaint | None = None
    """By how much the picture was extended."""
    chosen: bool = False
    """Whether it was said what stands under the mask."""
    warnings: tuple[str, ...] = ()

    @property
    def shape_from(self) -> Image | None:
        """The picture that the size to draw follows; None where only a part of it is drawn."""
        return None if self.masking.only_masked else self.image


def take_in(
    info: ModelInfo,
    image: Image | None,
    mask: Mask | None,
    *,
    content: str | None = None,
    blur: int | None = None,
    only_masked: bool = False,
    padding: int | None = None,
    inverted: bool = False,
    extended: Outpaint | None = None,
) -> Taken:
    """Check a picture and its mask, turn the mask round, and extend the canvas.

    Args:
        info: the model.
        image: (H, W, 3) uint8, or None.
        mask: (H, W) uint8, or None.
        content: one of `masks.CONTENTS`; None is ``original``, of an extended canvas ``fill``.
        blur: of the mask, in pixels.
        only_masked: draw the part around the mask alone.
        padding: pixels around that part.
        inverted: redraw what is black.
        extended: by how many pixels; the new part is masked.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
    """
    checks.check_image(image, mask)
    masking = masks.resolve(
        mask is not None or extended is not None, content=content, blur=blur, only_masked=only_masked,
        padding=padding, inverted=inverted,
    )  # fmt: skip
    if inverted:
        if mask is None:
            raise UsageError("an inverted mask is asked for without a mask: give --mask", field="mask")
        mask = np.asarray(255 - mask, dtype=np.uint8)
        if not mask.any():
            text = "mask is white everywhere, so inverted nothing would be drawn: paint some black"
            raise UsageError(text, field="mask")
    if extended is None:
        return Taken(image=image, mask=mask, masking=masking, chosen=content is not None)
    if image is None:
        text = "outpaint is asked for without an image: give --image, or leave --outpaint out"
        raise UsageError(text, field="image")
    if info.inputs == "instruct":
        text = f"model {info.name} changes a picture as it is: leave --outpaint out"
        raise UsageError(text, field="outpaint")
    if blur:
        raise UsageError(
            f"mask blur is {blur} with outpaint, whose edges blend as they are: leave --mask-blur out"
        )
    canvas = outpaint.extend(image, mask, extended, info.size_multiple)
    if content is None:
        masking = masks.resolve(
            True, content="fill", blur=blur, only_masked=only_masked, padding=padding, inverted=inverted
        )
    return Taken(
        image=canvas.image, mask=canvas.mask, masking=masking, outpaint=canvas.done, chosen=True,
        warnings=canvas.warnings,
    )  # fmt: skip


def task(request: GenerateRequest) -> str:
    """What a record calls it."""
    if request.outpaint is not None:
        return "outpaint"
    if request.mask is not None:
        return "inpaint"
    return "txt2img" if request.init_image is None else "img2img"


def record(request: GenerateRequest) -> dict[str, Any]:
    """What a record says of the modes; nothing of those that were not asked for."""
    found: dict[str, Any] = {}
    if masking := request.masking.record():
        found["masking"] = masking
    for name, part in (
        ("outpaint", request.outpaint), ("hires", request.hires), ("variation", request.variation)
    ):  # fmt: skip
        if part is not None:
            found[name] = part.record()
    if request.vae_tiling:
        found["vae_tiling"] = True
    if request.control:
        found["control"] = control.record(request.control)
    return found


def size(info: ModelInfo, width: int | None, height: int | None, taken: Taken) -> tuple[int, int]:
    """(width, height) to draw.

    Raises:
        UsageError: as `checks.size`; or a size beside an extended canvas, or a canvas that is too large.
    """
    whole = taken.shape_from
    if taken.outpaint is None or whole is None:
        return checks.size(info, width, height, whole)
    if width is not None or height is not None:
        raise UsageError("size is given with outpaint: the canvas has its own, leave --size out")
    tall, wide = whole.shape[:2]
    if max(tall, wide) > info.max_size:
        raise UsageError(
            f"the canvas is {wide}x{tall} and this model draws at most {info.max_size} pixels a side: "
            "extend by less, shrink --image, or give --only-masked",
            field="outpaint",
        )
    return checks.size(info, wide, tall, None)


def strength(info: ModelInfo, taken: Taken, asked: float | None) -> tuple[float, tuple[str, ...]]:
    """The share of steps to run, and what is odd about it.

    Without a word on what stands under the mask a hole is drawn from nothing: strength 1.

    Args:
        info: the model.
        taken: picture and mask.
        asked: None where it was left open.
    """
    chosen = taken.chosen and taken.mask is not None
    if asked is None:
        whole = taken.image is None or info.inputs == "instruct" or (taken.mask is not None and not chosen)
        return (1.0 if whole else IMAGE_STRENGTH), ()
    if chosen and asked >= 1.0 and taken.masking.content != "original":
        text = f"masked content {taken.masking.content} has no effect at strength 1: all begins as noise"
        return float(asked), (text,)
    return float(asked), ()
