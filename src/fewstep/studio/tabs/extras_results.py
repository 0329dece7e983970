"""Pictures that were enlarged, made ready to be looked at side by side and to be taken away."""

from __future__ import annotations

import io
import os
import secrets
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from fewstep.checkpoint import atomic
from fewstep.data import images

SHOWN: Final = 2048
"""Pixels of the longer side of a comparison."""
_MAX_PIXELS: Final = 1 << 26


def pair(before: str, after: str) -> tuple[Image.Image, Image.Image]:
    """Both in one size, which the slider needs; what was cut off of the first stays cut off.

    Raises:
        DataError: one cannot be read.
    """
    made = Image.fromarray(images.open_image(after, name="result", max_pixels=_MAX_PIXELS))
    made.thumbnail((SHOWN, SHOWN))
    was = Image.fromarray(images.open_image(before, name="picture", max_pixels=_MAX_PIXELS))
    return ImageOps.fit(was, made.size, Image.Resampling.BICUBIC), made


def packed(paths: Sequence[str]) -> str:
    """A ZIP file of pictures, in their order. Its name is final when it is complete."""
    folder = Path(os.environ.get("GRADIO_TEMP_DIR", tempfile.gettempdir())) / "extras"
    folder.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(paths, 1):
            archive.write(path, f"{number:02}-{Path(path).name}")
    file = folder / f"fewstep-{secrets.token_hex(8)}.zip"
    atomic.write_bytes(file, made.getvalue())
    return str(file)
