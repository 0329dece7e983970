"""What ``fewstep info`` says of an image: its prompt and settings, also as other tools wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.errors import DataError


def facts(path: Path) -> dict[str, Any]:
    """Format, size, prompt and settings of an image file.

    Raises:
        DataError: it is too large, damaged, or no image.
    """
    from PIL import Image

    from fewstep.cli.installed import pip_line
    from fewstep.data import images
    from fewstep.prompt import foreign
    from fewstep.prompt.printable import plain

    # Refuses what is too large or no image, before anything is decoded.
    width, height = images.image_size(path)
    try:
        with Image.open(path, formats=images.FORMATS) as image:
            image_format = image.format
            found = foreign.read(image, install=pip_line("metadata"))
    except Exception as error:  # decoders raise almost anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: damaged or cut off ({reason}); save the image again") from error
    del found["texts"]
    about = {"kind": "image", "path": plain(str(path)), "format": image_format}
    return {**about, "width": width, "height": height, **found}
