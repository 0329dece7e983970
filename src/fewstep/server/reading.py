"""What a picture that a request brings says of its making."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fewstep.errors import DataError
from fewstep.prompt import foreign
from fewstep.server import media
from fewstep.server.schemas.reading import PictureFacts

if TYPE_CHECKING:
    from fewstep.server.settings import ServerSettings

MAX_TEXT: Final = 100_000
"""Characters of one text of a file that are given out."""
MAX_TEXTS: Final = 64
_NAME: Final = 200
INSTALL: Final = 'pip install "fewstep[metadata]"'
_WEBUI: Final = re.compile(r"v?\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """A picture with what it says."""

    pixels: media.Pixels
    facts: PictureFacts


def read(text: str, settings: ServerSettings) -> Read:
    """Decode a picture under the limits, and read its texts.

    Args:
        text: base64, a data URI, or a URL where those are allowed.
        settings: of the server.

    Raises:
        UsageError, DataError, TooLarge: as `fewstep.server.media.decode_image`.
    """
    data = media.text_bytes(text, what="image", limits=settings.limits, allow_urls=settings.allow_urls)
    pixels = media.decode_image(data, what="image", limits=settings.limits)
    found = _found(data)
    image_format = found.pop("format")
    height, width = pixels.shape[:2]
    texts = {key[:_NAME]: _cut(value) for key, value in list(found["texts"].items())[:MAX_TEXTS]}
    tool = _tool(found)
    fields = found.get("fields") or _other(found)
    facts = PictureFacts(
        format=image_format, width=width, height=height, bytes=len(data), tool=tool,
        prompt=_cut(found.get("prompt") or _of_record(found, "prompt")),
        negative_prompt=_cut(found.get("negative_prompt") or _of_record(found, "negative_prompt")),
        settings={_cut(key, _NAME): value for key, value in fields.items()},
        models=[_cut(name, _NAME) for name in found.get("models", ())][:MAX_TEXTS],
        parameters=None if found["parameters"] is None else _cut(found["parameters"]),
        record=_bounded(found["record"]), texts=texts, note=found.get("note"),
    )  # fmt: skip
    return Read(pixels, facts)


def _found(data: bytes) -> dict[str, Any]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=media.FORMATS) as image:
            return {"format": image.format or "", **foreign.read(image, install=INSTALL)}
    except DataError as error:
        raise DataError(f"image: {error}") from None
    except Exception as error:  # decoders raise almost anything on damaged files
        raise DataError(f"image: its texts cannot be read ({type(error).__name__}); save it again") from None


def _tool(found: Mapping[str, Any]) -> str | None:
    if found["record"] is not None:
        return "fewstep"
    if found.get("tool"):
        return str(found["tool"])
    fields = found.get("fields") or {}
    version = str(fields.get("Version", ""))
    if version.startswith("fewstep"):
        return "fewstep"
    if version.startswith("f") and version[1:2].isdigit():
        return "Forge"
    if not fields:
        return None
    return "AUTOMATIC1111" if _WEBUI.match(version) else "AUTOMATIC1111, or one that writes as it does"


def _other(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the first sampler of another tool, then what else it said."""
    samplers = found.get("samplers") or [{}]
    rest = found.get("more")
    return {**_flat(samplers[0]), **(_flat(rest) if isinstance(rest, Mapping) else {})}


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for key, value in list(values.items())[:MAX_TEXTS]:
        if isinstance(value, str | int | float | bool):
            shown[str(key)] = _cut(value) if isinstance(value, str) else value
        elif value is not None:
            shown[str(key)] = _cut(json.dumps(value, ensure_ascii=False))
    return shown


def _of_record(found: Mapping[str, Any], name: str) -> str:
    value = (found["record"] or {}).get(name)
    return value if isinstance(value, str) else ""


def _bounded(record: dict[str, Any] | None) -> dict[str, Any] | None:
    if record is None or len(json.dumps(record)) > MAX_TEXT:
        return None
    return record


def _cut(text: str, most: int = MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
