"""Orders as JSON, so that one which was cut off can be done again; their pictures are files beside it.

Pictures are named by their SHA-256, so that the same one is kept once, and are deleted when no unfinished job
needs them and they have not been used for some time: a job that came to nothing can be done again until then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from fewstep.checkpoint import atomic
from fewstep.engine.adapters import AdapterUse
from fewstep.engine.hires import Hires
from fewstep.engine.outpaint import Outpaint
from fewstep.errors import DataError, UsageError
from fewstep.server.orders import Order, Upscale

_KINDS: dict[str, type] = {"adapter": AdapterUse, "hires": Hires, "outpaint": Outpaint}
_PICTURE = "picture"
_NOT_KEPT = {
    "settings", "upscale", "job_id", "owner", "idempotency_key", "fingerprint", "recorded",
}  # fmt: skip


def to_json(order: Order, folder: Path) -> dict[str, Any]:
    """An order as JSON; its pictures are written into ``folder``.

    Raises:
        OutputError: they cannot be written.
        UsageError: a setting that cannot be recorded.
    """
    values = {
        field.name: getattr(order, field.name)
        for field in dataclasses.fields(order)
        if field.name not in _NOT_KEPT
    }
    values["extra"] = dict(order.extra)
    values["upscale"] = None if order.upscale is None else dataclasses.asdict(order.upscale)
    values["settings"] = {name: _out(value, folder) for name, value in order.settings.items()}
    return values


def from_json(values: Mapping[str, Any], folder: Path, *, owner: str, job_id: str | None = None) -> Order:
    """The order of `to_json`.

    Raises:
        DataError: a picture is missing or was changed, or the record is of another version.
    """
    given = dict(values)
    try:
        settings = {name: _in(value, folder) for name, value in given.pop("settings").items()}
        upscale = given.pop("upscale")
        return Order(
            settings=settings, upscale=None if upscale is None else Upscale(**upscale), owner=owner,
            job_id=job_id, **given,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"job {job_id}: its record cannot be read ({error}); send the order again") from error


def sweep(folder: Path, needed: Iterable[Mapping[str, Any]], *, older_than: float = 0.0) -> int:
    """Delete pictures that none of these orders has; return how many.

    Args:
        folder: of the pictures.
        needed: orders as `to_json` made them.
        older_than: seconds since a picture was last part of a new order.
    """
    if not folder.is_dir():
        return 0
    before = time.time() - older_than
    keep = {name for order in needed for name in _names(order.get("settings"))}
    gone = 0
    for path in folder.glob("*.png"):
        with contextlib.suppress(FileNotFoundError):  # another server was faster
            if path.stem not in keep and path.stat().st_mtime <= before:
                path.unlink()
                gone += 1
    return gone


def _out(value: Any, folder: Path) -> Any:
    if isinstance(value, np.ndarray):
        return {_PICTURE: _save(value, folder)}
    for kind, of in _KINDS.items():
        if isinstance(value, of):
            return {kind: {field.name: _out(getattr(value, field.name), folder) for field in _fields(value)}}
    if isinstance(value, (list, tuple)):
        return [_out(one, folder) for one in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UsageError(f"{type(value).__name__}: cannot be part of an order that is recorded")


def _in(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return tuple(_in(one, folder) for one in value)
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == _PICTURE:
        return _load(inner, folder)
    return _KINDS[kind](**{name: _in(one, folder) for name, one in inner.items()})


def _names(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        own = value.get(_PICTURE)
        return {own} if isinstance(own, str) else {name for one in value.values() for name in _names(one)}
    return {name for one in value for name in _names(one)} if isinstance(value, list) else set()


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def _save(pixels: np.ndarray[Any, Any], folder: Path) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    name = hashlib.sha256(data).hexdigest()
    path = folder / f"{name}.png"
    try:
        os.utime(path)  # it is in use anew, see `sweep`
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, data)
    return name


def _load(name: str, folder: Path) -> Any:
    path = folder / f"{name}.png"
    try:
        data = path.read_bytes()
    except OSError:
        raise DataError(f"picture {name[:10]} of a job is gone; send the order again") from None
    if hashlib.sha256(data).hexdigest() != name:
        raise DataError(f"picture {name[:10]} of a job was changed; send the order again")
    with PILImage.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image).copy()
