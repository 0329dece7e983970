"""Pictures that requests bring and answers carry. The only module of the server that decodes them.

PNG, JPEG and WebP are taken, by their content and not by what a request calls them. The size is checked in
the header; of an animation the first frame is taken; pixels are turned upright and brought to 8 bits.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fewstep.data import images
from fewstep.errors import DataError, OutputError, TooLarge, UsageError
from fewstep.prompt import containers
from fewstep.server.settings import Limits

Pixels = npt.NDArray[np.uint8]
Mask = Literal["auto", "alpha", "luminance"]
Kind = Literal["png", "jpeg", "webp"]

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES: Final[Mapping[Kind, str]] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_MAX_SCANS: Final = 100
"""Of a JPEG: encoders make about ten, and each is a pass over all pixels, however short it is."""
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}:(?://|\\)")
_DATA_URI: Final = re.compile(
    r"data:image/[a-z0-9.+-]{1,40}(?:;[a-z0-9=.-]{1,40}){0,4};base64,", re.IGNORECASE
)


def decode_image(data: bytes, *, what: str, limits: Limits, mask: bool | Mask = False) -> Pixels:
    """Decode a picture that came from outside.

    Args:
        data: content of the file.
        what: what the request calls it; errors begin with it.
        limits: most pixels, fewest pixels of a side, most bytes.
        mask: read a mask instead. ``"luminance"``: grey values, transparent parts black; ``"alpha"``: the
            transparency, which must be there; True or ``"auto"``: the transparency if any pixel has
            some, else grey values, as the WebUI does.

    Returns:
        uint8 (H, W, 3), transparent parts over white; of a mask (H, W).

    Raises:
        DataError: not one of the three formats, damaged, too small, or without the transparency asked for.
        TooLarge: too many bytes or pixels.
    """
    if len(data) > limits.max_body:
        raise TooLarge(
            f"{what}: {len(data):,} bytes; at most {limits.max_body:,} are taken, give a smaller file"
        )
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise DataError(f"{what}: a JPEG of more than {_MAX_SCANS} scans; save the image again")
    try:
        pixels = images.open_pixels(data, name=what, max_pixels=limits.max_pixels, formats=FORMATS)
    except images.TooManyPixels as error:
        raise TooLarge(str(error)) from None
    height, width = pixels.shape[:2]
    if min(height, width) < limits.min_side:
        raise DataError(
            f"{what}: {width}x{height} pixels; give a picture of at least {limits.min_side} pixels a side"
        )
    if mask is False:
        return images.flattened(pixels) if pixels.shape[2] == 4 else pixels
    return _mask(pixels, what, "auto" if mask is True else mask)


def decode_text(
    text: str,
    *,
    what: str,
    limits: Limits,
    mask: bool | Mask = False,
    allow_urls: bool = False,
    fetch: Callable[[str, str, Limits], bytes] | None = None,
) -> Pixels:
    """Decode a picture given as text: base64, a data URI with base64, or a URL where that is allowed.

    Never a file's name: nothing here opens files. Blocks while a URL is fetched.

    Args:
        text: as the request has it; white space is left out.
        what: as `decode_image`.
        limits: as `decode_image`.
        mask: as `decode_image`.
        allow_urls: `fewstep.server.settings.ServerSettings.allow_urls`.
        fetch: what gets a URL, called with the URL, ``what`` and ``limits``; `fewstep.server.urls.fetch`.

    Raises:
        UsageError: a URL, and those are disabled.
        DataError: neither base64 nor a URL, and as `decode_image`.
        TooLarge: as `decode_image`.
    """
    return decode_image(
        text_bytes(text, what=what, limits=limits, allow_urls=allow_urls, fetch=fetch),
        what=what,
        limits=limits,
        mask=mask,
    )


def text_bytes(
    text: str,
    *,
    what: str,
    limits: Limits,
    allow_urls: bool = False,
    fetch: Callable[[str, str, Limits], bytes] | None = None,
) -> bytes:
    """Return the file that a text holds or names, not decoded, as `decode_text` reads it.

    Raises:
        UsageError, DataError, TooLarge: as `decode_text`.
    """
    text = text.strip()
    if _URL.match(text):
        if not allow_urls:
            raise UsageError(
                f"{what}: URLs are disabled on this server; send the picture itself in base64, "
                "or start the server with --allow-urls"
            )
        if fetch is None:
            from fewstep.server import urls

            return urls.fetch(text, what, limits)
        return fetch(text, what, limits)
    header = _DATA_URI.match(text)
    body = "".join((text[header.end() :] if header else text).split())
    if len(body) // 4 * 3 > limits.max_body + 2:
        raise TooLarge(f"{what}: more than {limits.max_body:,} bytes; give a smaller file")
    if not body:
        raise DataError(f"{what}: empty; give a picture in base64")
    with contextlib.suppress(binascii.Error, ValueError):  # ValueError: other characters than ASCII
        # Some clients leave the padding out.
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    raise DataError(f"{what}: not base64; give a PNG, JPEG or WebP file in base64, or as a data:image URI")


def encode(
    image: Pixels,
    *,
    kind: Kind,
    infotext: str | None = None,
    record: Mapping[str, Any] | None = None,
    quality: int | None = None,
) -> bytes:
    """Return a picture as a file with its metadata.

    Where JPEG or WebP have no room for both, the record is left out: the infotext says nearly the same. Takes
    a tenth of a second for a megapixel, so call it in a thread.

    Args:
        image: uint8 (H, W, 3), or (H, W, 4) with alpha but for JPEG; (H, W) is grey.
        kind: format of the file.
        infotext: as the WebUI writes it.
        record: JSON-ready; everything that decided the pixels.
        quality: 1 to 100 of JPEG and WebP; None is 95.

    Raises:
        OutputError: the format cannot hold the size or the infotext.
    """
    image_format: containers.Format = "jpg" if kind == "jpeg" else kind
    options: dict[str, Any] = {} if quality is None else {"quality": min(max(quality, 1), 100)}
    text = infotext or ""
    try:
        return containers.encode(image, image_format, parameters=text, record=record, **options)
    except OutputError:
        if record is None or kind == "png":
            raise
        return containers.encode(image, image_format, parameters=text, **options)


def _mask(pixels: Pixels, what: str, source: Mask) -> Pixels:
    has_alpha = pixels.shape[2] == 4
    if source == "alpha" and not has_alpha:
        raise DataError(
            f"{what}: has no transparency; give a PNG or WebP that is transparent where it counts"
        )
    if has_alpha and (source == "alpha" or (source == "auto" and pixels[..., 3].min() < 255)):
        return np.ascontiguousarray(pixels[..., 3])
    from PIL import Image

    shown = images.flattened(pixels, (0, 0, 0)) if has_alpha else pixels
    return np.asarray(Image.fromarray(shown).convert("L"))
