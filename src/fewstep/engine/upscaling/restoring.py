"""Drawing an old picture anew at low strength, before it is enlarged or, in tiles, after.

A model draws at its own size. A picture of up to twice that is brought to it, drawn whole, then enlarged. A
larger one is cleaned and enlarged first, then drawn in tiles of the model's size that fade into one another;
each tile is drawn from the same prompt and a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.engine import pictures, tiling
from fewstep.engine.backends.base import FloatArray, f32
from fewstep.engine.upscaling import catalogue, enlarge
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.engine import Engine
    from fewstep.engine.request import GenerateRequest
    from fewstep.engine.upscaling.tiles import Runner

Image = npt.NDArray[np.uint8]

WHOLE = 2
"""A tile of a larger picture shows a part of what the prompt says, which small models do not know how to
draw; shrinking to a half costs less than that."""
MAX_PIXELS = 2**24
"""Most pixels that are drawn anew: about 1300 tiles of 128 pixels, and 0.4 GB of floating-point numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restoration:
    """How a picture is drawn anew."""

    drawing: Engine
    strength: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `fewstep.engine.request.resolve`: prompt, steps, student …, but no picture and no size."""
    where: str = "auto"
    """``whole``, ``tiles``, or ``auto``: whole up to `WHOLE` times the model's own sides."""

    def request(self, image: Image, seed: int, size: tuple[int, int] | None = None) -> GenerateRequest:
        """The order for a picture or a part of it.

        Raises:
            UsageError: a setting out of range.
        """
        from fewstep.engine.request import resolve

        width, height = size or (None, None)
        settings = {**self.settings, "seed": seed}
        return resolve(
            self.drawing.info,
            init_image=image,
            strength=self.strength,
            width=width,
            height=height,
            **settings,
        )

    def whole(self, width: int, height: int) -> bool:
        """Whether a picture of this size is drawn whole."""
        if self.where != "auto":
            return self.where == "whole"
        return max(width, height) <= WHOLE * max(self.drawing.info.native_size)


def restored(
    image: Image,
    options: enlarge.Extras,
    restoration: Restoration,
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    others: Mapping[str, Runner] | None = None,
) -> enlarge.Enlarged:
    """`enlarge.extras` with a drawing before or after; the arguments are the same.

    Raises:
        UsageError: as `enlarge.extras`, or more than `MAX_PIXELS` to draw.
        EngineError, DependencyError, Cancelled: as the networks and the engine.
    """
    how: dict[str, Any] = {"threads": threads, "cancelled": cancelled, "others": others}
    enlarge.check(options, others)
    if restoration.whole(image.shape[1], image.shape[0]):
        name = options.upscaler
        if name != "none" and name not in (others or {}):
            name = catalogue.resolve(name)
        if name in catalogue.UPSCALERS and catalogue.UPSCALERS[name].cleans:
            first = enlarge.Extras(upscaler=name, scale=1.0)
            image = enlarge.extras(image, first, **how).image
            options = replace(options, upscaler=catalogue.with_noise(name, -1))
        drawn, record = _whole(image, restoration, cancelled)
        made = enlarge.extras(drawn, options, on_progress=on_progress, **how)
        if name != options.upscaler and made.record:
            record["cleaned_by"] = name
    else:
        made = enlarge.extras(image, options, **how)
        drawn, record = _in_tiles(made.image, restoration, on_progress, cancelled)
        made = replace(made, image=drawn)
    items = [made.infotext] if made.infotext else []
    items += [f"Restore strength: {restoration.strength:g}, Restore model: {record['model']}"]
    return replace(made, record={**made.record, "restore": record}, infotext=", ".join(items))


def _whole(
    image: Image, restoration: Restoration, cancelled: Callable[[], bool] | None
) -> tuple[Image, dict[str, Any]]:
    height, width = image.shape[:2]
    colours = np.ascontiguousarray(image[..., :3])
    request = restoration.request(colours, restoration.settings.get("seed", 0))
    result = restoration.drawing.generate(request, cancelled=cancelled)
    drawn = pictures.resized(result.images[0], width, height)
    return np.concatenate([drawn, image[..., 3:]], axis=2), _record(result.record, "whole", 1)


def _in_tiles(
    image: Image,
    restoration: Restoration,
    on_progress: Callable[[int, int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[Image, dict[str, Any]]:
    height, width = image.shape[:2]
    if height * width > MAX_PIXELS:
        raise UsageError(
            f"{width}x{height} is more than {MAX_PIXELS:,} pixels to draw anew: give a smaller factor or size"
        )
    wide, tall = restoration.drawing.info.native_size
    edges = [(0, max(tall - height, 0)), (0, max(wide - width, 0)), (0, 0)]
    padded = np.pad(image[..., :3], edges, mode="edge")
    total = count(padded.shape[0], padded.shape[1], tall, wide)
    seed = restoration.settings.get("seed", 0)
    records: list[dict[str, Any]] = []

    def draw(pixels: FloatArray) -> FloatArray:
        part = pictures.to_image(pixels[0])
        request = restoration.request(part, seed + len(records), (wide, tall))
        result = restoration.drawing.generate(request, cancelled=cancelled)
        records.append(result.record)
        if on_progress is not None:
            on_progress(len(records), total)
        return f32(pictures.to_pixels(result.images[0])[None])

    made = tiling.in_tiles(draw, f32(pictures.to_pixels(padded)[None]), (tall, wide), 3)
    drawn = pictures.to_image(made[0])[:height, :width]
    return np.concatenate([drawn, image[..., 3:]], axis=2), _record(records[0], "tiles", total)


def count(height: int, width: int, tall: int, wide: int) -> int:
    """How many tiles of that size a picture is drawn in."""
    counted: list[None] = []

    def note(tile: FloatArray) -> FloatArray:
        counted.append(None)
        return tile

    tiling.in_tiles(note, np.zeros((1, 1, height, width), dtype=np.float32), (tall, wide), 1)
    return len(counted)


def _record(drawn: Mapping[str, Any], where: str, tiles: int) -> dict[str, Any]:
    kept = (
        "model", "model_hash", "student", "prompt", "negative_prompt", "num_inference_steps",
        "guidance_scale", "solver", "seed", "strength", "width", "height",
    )  # fmt: skip
    return {"where": where, "tiles": tiles, **{key: drawn[key] for key in kept if key in drawn}}
