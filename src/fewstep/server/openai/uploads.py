"""Forms with pictures, read within limits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from starlette.datastructures import UploadFile

from fewstep.errors import DataError, TooLarge, UsageError
from fewstep.server import media
from fewstep.server.openai.wishes import Refused, Source

if TYPE_CHECKING:
    from starlette.requests import Request

    from fewstep.server.settings import Limits

MAX_FILES = 20
MAX_FIELDS = 50
MAX_FIELD = 256 << 10
"""Bytes of a field that is no file."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form's fields and files, by name; ``image[]`` is ``image``."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def digests(self) -> dict[str, list[str]]:
        """SHA-256 of every file."""
        return {
            name: [hashlib.sha256(data).hexdigest() for data in some] for name, some in self.files.items()
        }


async def read(request: Request) -> Form:
    """Read a multipart form.

    Raises:
        UsageError: it is none, is broken, or has a field twice.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise UsageError(f"content type is {kind[:60]!r}: send multipart/form-data")
    form = Form()
    async with request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD) as parts:
        for key, value in parts.multi_items():
            name = key.partition("[")[0]
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif name in form.fields and key == name:
                raise Refused(name, f"{name} is given twice: give it once")
            else:
                form.fields[name] = value
    return form


def source(form: Form, limits: Limits, *, names: Sequence[str]) -> Source:
    """The picture of a form and its mask. Decodes: not for the event loop.

    A mask is where it is transparent; without one, where the picture itself is.

    Args:
        form: with the files ``names[0]`` and, where there is a second name, ``names[1]``.
        limits: of pictures.
        names: of the picture and of the mask.

    Raises:
        Refused: no picture, several, one that cannot be read, or a mask that does not fit it.
        TooLarge: too many bytes or pixels.
    """
    own = names[0]
    for name in form.files:
        if name not in names:
            raise Refused(
                name, f"{name}: no such file is taken; give {' and '.join(names)}", "unknown_parameter"
            )
    given = form.files.get(own, [])
    if not given:
        raise Refused(own, f"{own} is missing: send a PNG, JPEG or WebP file", "missing_required_parameter")
    if len(given) > 1:
        raise Refused(own, f"{own}: {len(given)} pictures; one is changed at a time, send one")
    image = _decoded(given[0], own, limits)
    if len(names) < 2:
        return Source(image=image)
    name = names[1]
    masks = form.files.get(name, [])
    if len(masks) > 1:
        raise Refused(name, f"{name}: {len(masks)} files; send one")
    if masks:
        alpha = _decoded(masks[0], name, limits, mask=True)
        if alpha.shape != image.shape[:2]:
            raise Refused(
                name, f"{name} is {alpha.shape[1]}x{alpha.shape[0]} and {own} is "
                f"{image.shape[1]}x{image.shape[0]}: give both in the same size",
            )  # fmt: skip
        if alpha.min() == 255:
            raise Refused(
                name, f"{name} is opaque everywhere, so nothing would change: make some transparent"
            )
        return Source(image=image, mask=np.asarray(255 - alpha, dtype=np.uint8))
    try:
        alpha = media.decode_image(given[0], what=own, limits=limits, mask="alpha")
    except DataError:  # it has no transparency
        return Source(image=image)
    if alpha.min() == 255:
        return Source(image=image)
    return Source(image=image, mask=np.asarray(255 - alpha, dtype=np.uint8))


def _decoded(data: bytes, name: str, limits: Limits, *, mask: bool = False) -> media.Pixels:
    try:
        return media.decode_image(data, what=name, limits=limits, mask="alpha" if mask else False)
    except TooLarge:
        raise
    except DataError as error:
        raise Refused(name, str(error)) from None
