"""Opening a picture to be given back: with its transparency, and with what it says about its making."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps

from fewstep.data import images
from fewstep.errors import DataError
from fewstep.prompt import containers

_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_GREY = ("1", "L", "I;16")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layers:
    """A picture as `fewstep.data.images.open_image` opens it, but for transparency."""

    pixels: NDArray[np.uint8]
    """(H, W, 3), or (H, W, 4) where the file has transparency."""
    grey: bool
    """It was saved without colours."""
    metadata: containers.Metadata
    kind: str
    """Pillow's name of the format, such as ``PNG``."""
    lost: tuple[str, ...] = ()
    """What of the file is not in ``pixels``."""


def open_layers(source: images.Source, *, name: str | None = None) -> Layers:
    """Open a picture, upright by its EXIF orientation, as 8-bit RGB or RGBA.

    Raises:
        DataError: as `fewstep.data.images.open_image`.
    """
    image, what = images.open_header(source, name=name)
    kind, mode = image.format or "", image.mode
    lost = ["all frames but the first"] if getattr(image, "n_frames", 1) > 1 else []
    lost += ["the lower 8 of 16 bits"] if mode.startswith("I;16") else []
    lost += ["the colour profile"] if image.info.get("icc_profile") else []
    clear = mode in _ALPHA or "transparency" in image.info
    try:
        metadata = containers.decode(image)
        if clear:
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGBA"))
    except Exception as error:  # cut-off data, broken streams, metadata bombs
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what}: damaged or cut off ({reason}); save the image again") from error
    if not clear:
        pixels = images.open_image(source, name=name)
    return Layers(
        pixels=pixels, grey=mode.startswith(_GREY) or mode in ("LA", "La"), metadata=metadata, kind=kind,
        lost=tuple(lost),
    )  # fmt: skip
