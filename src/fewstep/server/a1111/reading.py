"""What a client's picture says of its making (``png-info``)."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from fewstep.errors import DataError
from fewstep.prompt import containers, infotext
from fewstep.server import media
from fewstep.server.schemas.a1111_answers import PngInfoAnswer

if TYPE_CHECKING:
    from fewstep.server.settings import ServerSettings

_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_MOST = 262_144
"""Characters of one text."""


def read(text: str, settings: ServerSettings) -> PngInfoAnswer:
    """Read the texts of a picture that is given as base64. The pixels are decoded under the limits first.

    Raises:
        UsageError, DataError, TooLarge: it cannot be read.
    """
    from PIL import Image

    limits = settings.limits
    data = media.text_bytes(text, what="image", limits=limits, allow_urls=settings.allow_urls)
    media.decode_image(data, what="image", limits=limits)
    try:
        with Image.open(io.BytesIO(data), formats=media.FORMATS) as image:
            metadata = containers.decode(image)
            texts = dict(getattr(image, "text", None) or image.info)
    except Exception as error:  # decoders raise almost anything on damaged files
        raise DataError(f"image: its texts cannot be read ({type(error).__name__}); save it again") from None
    info = metadata.parameters or ""
    items = {
        key: value[:_MOST]
        for key, value in texts.items()
        if isinstance(key, str) and isinstance(value, str) and key != "parameters"
    }
    return PngInfoAnswer(info=info, items=items, parameters=parsed(info))


def parsed(text: str) -> dict[str, Any]:
    """The items of an infotext; sizes as two numbers, as the WebUI gives them."""
    found = infotext.read(text)
    items: dict[str, Any] = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt}
    for key, value in found.fields.items():
        if (size := _SIZE.fullmatch(value)) is not None:
            items |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        else:
            items[key] = value
    return items
