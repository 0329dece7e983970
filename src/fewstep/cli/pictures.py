"""From a finished picture to a numbered file, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic
from fewstep.prompt import containers, infotext

if TYPE_CHECKING:
    from fewstep.engine.finished import Picture
    from fewstep.engine.request import GenerateResult


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
