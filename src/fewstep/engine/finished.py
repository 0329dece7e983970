"""From what the engine drew to a finished picture with its record, for the command line and the server."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep import __version__
from fewstep.engine import upscale as upscaling
from fewstep.engine.upscaling import enlarge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fewstep.engine.request import GenerateRequest, GenerateResult


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """One image as it will be saved: pixels (H, W, 3), and a record without times and paths."""

    pixels: NDArray[np.uint8]
    seed: int
    record: dict[str, Any]
    warning: str | None
    seconds: float
    """What upscaling took."""


def finish(
    request: GenerateRequest,
    result: GenerateResult,
    index: int,
    upscaler: str,
    *,
    size: tuple[int, int] | None = None,
    cancelled: Callable[[], bool] | None = None,
    further: Mapping[str, Any] | None = None,
) -> Picture:
    """Upscale one image of a result and complete its record.

    The record is that of the image, not of the batch it was drawn in: a file says the same however many were
    drawn together.

    Args:
        request: what was asked.
        result: what was drawn.
        index: which of its images, from 0.
        upscaler: ``auto``, ``none``, or a key of `fewstep.engine.upscale.FILES`; with a ``size`` any name of
            `fewstep.engine.upscaling.catalogue`.
        size: (width, height) in pixels that the picture is brought to and cut to; None is 4 times its own.
        cancelled: asked between tiles.
        further: entries of the record.

    Raises:
        UsageError, DependencyError, EngineError, Cancelled: as `fewstep.engine.upscale.upscale`.
    """
    start = time.perf_counter()
    enlarged, entry, warning = _enlarged(result.images[index], upscaler, size, cancelled)
    seconds = time.perf_counter() - start
    record = {"fewstep": __version__, **result.record, "seed": result.seeds[index], **(further or {})}
    del record["n"]
    if "variation" in record:
        record["variation"] = {**record["variation"], "seed": record["variation"]["seed"] + index}
    for name, pixels in (("init_image_hash", request.init_image), ("mask_hash", request.mask)):
        if pixels is not None:
            record[name] = hashlib.sha256(pixels.tobytes()).hexdigest()
    if entry is not None:
        record["upscale"] = entry
    return Picture(pixels=enlarged, seed=result.seeds[index], record=record, warning=warning, seconds=seconds)


def _enlarged(
    image: NDArray[np.uint8],
    upscaler: str,
    size: tuple[int, int] | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[NDArray[np.uint8], dict[str, Any] | None, str | None]:
    """The picture, what the record says of it, and a warning."""
    if size is None:
        made = upscaling.upscale(image, upscaler, cancelled=cancelled)
        entry = None if made.name is None else {"name": upscaling.FILES[made.name], "scale": upscaling.SCALE}
        return made.image, entry, made.warning
    if size == (image.shape[1], image.shape[0]):
        return image, None, None
    options = enlarge.Extras(upscaler=upscaler, size=size)
    fitted = enlarge.extras(image, options, cancelled=cancelled)
    return fitted.image, {"name": fitted.record["upscaler"], "to": f"{size[0]}x{size[1]}"}, None
