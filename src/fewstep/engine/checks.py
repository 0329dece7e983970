"""What a request may contain: what is out of range or contradicts itself is refused, in one line each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.request import Image, Mask

MAX_PROMPT = 20_000
"""Characters: far more than any encoder reads, and little enough to tokenise at once."""
MAX_GUIDANCE = 100.0

IMAGE_GUIDANCE = 1.5
"""Guidance by the picture of instruct models when none is given (Brooks 2022, 2211.09800)."""


def check_text(name: str, value: str) -> None:
    """Refuse a text that is too long."""
    if len(value) > MAX_PROMPT:
        raise UsageError(f"{name} has {len(value)} characters: at most {MAX_PROMPT} are taken, shorten it")


def check_whole(name: str, value: int, low: int, high: int, flag: str) -> None:
    """Refuse what is no whole number from low to high; ``flag`` is the option that the message names."""
    field = "num_inference_steps" if name == "steps" else name
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r}: give {flag} a whole number", field=field)
    if value < low:
        need = "at least one step is needed, " if name == "steps" else ""
        raise UsageError(f"{name} is {value}: {need}give {flag} {low} or more", field=field)
    if value > high:
        raise UsageError(f"{name} is {value}: give {flag} at most {high}", field=field)


def guidance(contract: SamplingContract, scale: float | None, rescale: float | None) -> tuple[float, float]:
    """Guidance scale and rescale, each checked or the contract's."""
    value = contract.guidance_scale if scale is None else float(scale)
    if not math.isfinite(value):
        text = f"guidance is {value}: give --guidance a finite number, 1 for no guidance"
        raise UsageError(text, field="guidance_scale")
    if contract.guidance == "off" and value != 1.0:
        text = f"guidance is {value:g}: this model draws without, leave --guidance out"
        raise UsageError(text, field="guidance_scale")
    low, high = contract.guidance_range or (1.0, MAX_GUIDANCE)
    # Without guidance at all is always possible: it is one evaluation instead of two.
    if value != 1.0 and not low <= value <= high:
        text = f"guidance is {value:g}: give --guidance from {low:g} to {high:g}"
        raise UsageError(text, field="guidance_scale")
    again = contract.guidance_rescale if rescale is None else float(rescale)
    if not 0.0 <= again <= 1.0:
        text = f"guidance rescale is {again}: give --guidance-rescale a number from 0 to 1"
        raise UsageError(text, field="guidance_rescale")
    return value, again


def size(info: ModelInfo, width: int | None, height: int | None, image: Image | None) -> tuple[int, int]:
    """(width, height) to draw: as given, or of the shape of a picture, or native."""
    step = info.size_multiple
    if width is None and height is None:
        if image is None:
            return info.native_size
        return like(info.native_size, info.size_multiple, info.max_size, image.shape[1], image.shape[0])
    chosen = (
        info.native_size[0] if width is None else width,
        info.native_size[1] if height is None else height,
    )
    low = 4 * step
    for name, value in zip(("width", "height"), chosen, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value % step:
            raise UsageError(f"{name} is {value}: give --size in multiples of {step} pixels", field=name)
        if not low <= value <= info.max_size:
            text = f"{name} is {value}: give --size from {low} to {info.max_size} pixels"
            raise UsageError(text, field=name)
    return int(chosen[0]), int(chosen[1])


def like(native: tuple[int, int], step: int, most: int, width: int, height: int) -> tuple[int, int]:
    """About as many pixels as the native size, in the shape of a picture.

    Args:
        native: width and height that a model draws best.
        step: its sizes are multiples of this.
        most: pixels of a side.
        width: of the picture.
        height: as width.
    """
    factor = math.sqrt(native[0] * native[1] / (width * height))

    def rounded(side: int) -> int:
        return min(max(round(side * factor / step) * step, 4 * step), most // step * step)

    return rounded(width), rounded(height)


def check_image(image: Image | None, mask: Mask | None) -> None:
    """Refuse pictures and masks of another form, and masks that fit no picture."""
    if image is not None and (image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8):
        raise UsageError(f"image has shape {image.shape}, {image.dtype}: give 8-bit RGB pixels (H, W, 3)")
    if mask is None:
        return
    if image is None:
        raise UsageError("mask is given without an image: give --image, or leave --mask out", field="image")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise UsageError(f"mask has shape {mask.shape}, {mask.dtype}: give 8-bit grey pixels (H, W)")
    if mask.shape != image.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
        text = f"mask is {sizes[0]} and image is {sizes[1]}: give both in the same size"
        raise UsageError(text, field="mask")
    if not mask.any():
        text = "mask is black everywhere, so nothing would be drawn: paint white what may change"
        raise UsageError(text, field="mask")


def check_inputs(info: ModelInfo, image: Image | None, mask: Mask | None, strength: float | None) -> None:
    """What an instruct model must have, and what it has no use for."""
    if info.inputs != "instruct":
        return
    if image is None:
        text = f"model {info.name} changes a picture by an instruction: give --image"
        raise UsageError(text, field="image")
    if mask is not None:
        raise UsageError(f"model {info.name} changes the whole picture: leave --mask out", field="mask")
    if strength is not None and strength != 1.0:
        raise UsageError(
            f"strength is {strength}: model {info.name} is shown the picture beside the noise; leave "
            "--strength out, and say with --image-guidance how much of it should stay",
            field="strength",
        )


def image_guidance(info: ModelInfo, scale: float | None) -> float:
    """Guidance by the picture: checked, or the default of models that take instructions."""
    if info.inputs != "instruct":
        if scale is not None and scale != 1.0:
            raise UsageError(
                f"image guidance is {scale}: model {info.name} takes no instructions, leave "
                "--image-guidance out",
                field="image_guidance_scale",
            )
        return 1.0
    value = IMAGE_GUIDANCE if scale is None else float(scale)
    if not 1.0 <= value <= MAX_GUIDANCE:  # also refuses NaN
        text = f"image guidance is {value}: give --image-guidance from 1 to {MAX_GUIDANCE:g}"
        raise UsageError(text, field="image_guidance_scale")
    return value


def check_classes(info: ModelInfo, texts: Iterable[tuple[str, bool]]) -> None:
    """Refuse prompts that are no class of a model that draws classes.

    Args:
        info: the model.
        texts: without grammar, and whether there was none.
    """
    if not info.classes:
        return
    count = max(info.classes.values()) + 1
    for text, plain in texts:
        name = text.strip().lower()
        if not plain or (name and name not in info.classes):
            named = [own for own in info.classes if not own.isdigit()]
            some = f" or one of {len(named)} names, such as {', '.join(named[:3])}" if named else ""
            what = "no class" if plain else "more than a class: weights and BREAK have no meaning"
            raise UsageError(
                f"prompt is {text!r:.100}: {what}; model {info.name} draws classes and reads no text, give a "
                f"number from 0 to {count - 1}{some}",
                field="prompt",
            )


def check_clip_skip(info: ModelInfo, value: int) -> None:
    """Refuse to skip more layers of the text encoder than can be left out."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and 0 <= value <= info.max_clip_skip:
        return
    if info.max_clip_skip == 0:
        raise UsageError(
            f"clip skip is {value}: model {info.name} has no layers to skip, leave --clip-skip out",
            field="clip_skip",
        )
    text = f"clip skip is {value}: give --clip-skip from 0 to {info.max_clip_skip}"
    raise UsageError(text, field="clip_skip")
