"""From what the engine drew to a file with its record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep import __version__
from fewstep.checkpoint import atomic
from fewstep.engine import upscale as upscaling
from fewstep.prompt import containers, infotext

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
    cancelled: Callable[[], bool] | None = None,
    further: Mapping[str, Any] | None = None,
) -> Picture:
    """Upscale one image of a result and complete its record.

    The record is that of the image, not of the batch it was drawn in: a file says the same however many were
    drawn together. ``further`` is added to it.

    Raises:
        DependencyError, EngineError, Cancelled: as `fewstep.engine.upscale.upscale`.
    """
    start = time.perf_counter()
    made = upscaling.upscale(result.images[index], upscaler, cancelled=cancelled)
    seconds = time.perf_counter() - start
    record = {"fewstep": __version__, **result.record, "seed": result.seeds[index], **(further or {})}
    del record["n"]
    if "variation" in record:
        record["variation"] = {**record["variation"], "seed": record["variation"]["seed"] + index}
    for name, pixels in (("init_image_hash", request.init_image), ("mask_hash", request.mask)):
        if pixels is not None:
            record[name] = hashlib.sha256(pixels.tobytes()).hexdigest()
    if made.name is not None:
        record["upscale"] = {"name": upscaling.FILES[made.name], "scale": upscaling.SCALE}
    return Picture(
        pixels=made.image, seed=result.seeds[index], record=record, warning=made.warning, seconds=seconds
    )


def save(picture: Picture, folder: Path, number: int, image_format: containers.Format) -> Path:
    """Write a picture under its number and seed, complete or not at all, and return the path.

    Raises:
        OutputError: it cannot be written, or the format cannot hold it.
    """
    parameters = infotext.from_record(picture.record)
    data = containers.encode(picture.pixels, image_format, parameters=parameters, record=picture.record)
    path = folder / f"{number:05d}-{picture.seed}.{image_format}"
    atomic.write_bytes(path, data)
    return path


def report(picture: Picture, path: Path, n: int, result: GenerateResult) -> dict[str, Any]:
    """Return the record that ``--json`` prints: that of the file, and what is true of this run only."""
    warnings = [*result.warnings, *([picture.warning] if picture.warning else [])]
    timings = {
        name: round(value, 4) for name, value in {**result.timings, "upscale": picture.seconds}.items()
    }
    height, width = picture.pixels.shape[:2]
    return {
        **picture.record,
        "n": n,
        "path": str(path),
        "file_width": width,
        "file_height": height,
        "warnings": warnings,
        "timings": timings,
    }
