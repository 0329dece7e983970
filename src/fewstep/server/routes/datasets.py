"""`/api/v1/datasets`: pictures with captions, for training."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile

from fewstep.errors import ConflictError, DataError, UsageError
from fewstep.server.datasets import MAX_CAPTION, MAX_PICTURES, slug
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.work import (
    CaptionsBody,
    DatasetList,
    DatasetPicture,
    DatasetSummary,
    DatasetView,
)
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(
    prefix="/api/v1/datasets", tags=["datasets"],
    responses=ERRORS,
)  # fmt: skip
Given = Annotated[Services, Depends(services_of)]
_MAX_FIELD = 1 << 20

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "pictures": {
                            "type": "array", "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG or WebP, and a .txt file with the caption of each",
                        },
                        "captions": {
                            "type": "string", "description": "JSON object: name of a picture to its caption"
                        },
                    },
                    "required": ["pictures"],
                }
            }
        },
    }
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("image/png", "image/jpeg", "image/webp")
        },
    }
}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "the picture"}}
_WEBP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/webp": {}}, "description": "a small picture"}
}


@router.get("", summary="Datasets of the key that asks")
def datasets(request: Request, services: Given) -> DatasetList:
    """By name."""
    found = services.datasets.listed(owner(request))
    return DatasetList(
        datasets=[
            DatasetSummary(name=one.name, pictures=one.pictures, bytes=one.bytes, changed=one.changed)
            for one in found
        ]
    )


@router.post("/{name}", status_code=201, summary="Add pictures with captions", openapi_extra=_FORM)
async def add(name: str, request: Request, services: Given) -> DatasetView:
    """Makes the dataset if it is new. Pictures are written anew as PNG, named as the files."""
    files, captions = await _read(request)
    return await asyncio.to_thread(_add, services, owner(request), name, files, captions)


@router.get("/{name}", summary="A dataset with its pictures")
def dataset(name: str, request: Request, services: Given) -> DatasetView:
    """By name."""
    return _view(services, owner(request), name)


@router.patch("/{name}", summary="Change captions")
def caption(name: str, body: CaptionsBody, request: Request, services: Given) -> DatasetView:
    """Of pictures that are there; all or none."""
    mine = owner(request)
    _check_unused(services, mine, name)
    services.datasets.caption(mine, name, body.captions)
    return _view(services, mine, name)


@router.delete("/{name}", status_code=204, summary="Delete a dataset")
def remove(name: str, request: Request, services: Given) -> None:
    """With all its pictures."""
    mine = owner(request)
    _check_unused(services, mine, name)
    services.datasets.remove(mine, name)


@router.put("/{name}/pictures/{picture}", status_code=201, summary="Add one picture", openapi_extra=_IMAGE)
async def put(
    name: str,
    picture: str,
    request: Request,
    services: Given,
    caption: Annotated[str, Query(max_length=MAX_CAPTION)] = "",
) -> DatasetView:
    """In place of one of the same name."""
    data = await request.body()
    return await asyncio.to_thread(_add, services, owner(request), name, {picture: data}, {picture: caption})


@router.get("/{name}/pictures/{picture}", summary="A picture", response_class=Response, responses=_PNG)
def read(name: str, picture: str, request: Request, services: Given) -> Response:
    """As PNG."""
    return Response(services.datasets.picture(owner(request), name, picture), media_type="image/png")


@router.get("/{name}/pictures/{picture}/thumbnail", summary="A small picture", response_class=Response,
            responses=_WEBP)  # fmt: skip
def thumbnail(name: str, picture: str, request: Request, services: Given) -> Response:
    """As WebP, at most 256 pixels on its longer side."""
    data = services.datasets.picture(owner(request), name, picture, small=True)
    return Response(data, media_type="image/webp")


@router.delete("/{name}/pictures/{picture}", status_code=204, summary="Delete a picture")
def remove_picture(name: str, picture: str, request: Request, services: Given) -> None:
    """With its caption."""
    mine = owner(request)
    _check_unused(services, mine, name)
    services.datasets.remove(mine, name, picture)


async def _read(request: Request) -> tuple[dict[str, bytes], dict[str, str]]:
    """Pictures and captions of a form, by the names of the pictures."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise UsageError(f"content type is {kind[:60]!r}: send multipart/form-data")
    files: dict[str, bytes] = {}
    texts: dict[str, str] = {}
    given: dict[str, str] = {}
    form = request.form(max_files=2 * MAX_PICTURES, max_fields=4, max_part_size=_MAX_FIELD)
    async with form as parts:
        for key, value in parts.multi_items():
            if not isinstance(value, UploadFile):
                if key != "captions":
                    raise UsageError(f"{key[:40]!r}: no such field is taken; give pictures and captions")
                given |= _captions(value)
                continue
            name, data = slug(value.filename or ""), await value.read()
            text = (value.filename or "").lower().endswith(".txt")
            if name in (texts if text else files):
                raise UsageError(f"two files would be called {name!r}: give each a name of its own")
            if text:
                texts[name] = _text(name, data)
            else:
                files[name] = data
    if not files:
        raise UsageError("pictures: none; send PNG, JPEG or WebP files")
    captions = {**texts, **given}
    if unknown := sorted(captions.keys() - files.keys()):
        raise UsageError(f"captions: there is no picture {unknown[0]!r:.80} in this form; send it along")
    return files, captions


def _captions(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise UsageError("captions: give a JSON object of texts, by the names of the pictures")
    return value


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError(f"caption {name}.txt: not UTF-8; save it as UTF-8") from None


def _add(
    services: Services, mine: str, name: str, files: dict[str, bytes], captions: dict[str, str]
) -> DatasetView:
    _check_unused(services, mine, name)
    services.datasets.add(mine, name, files, captions)
    return _view(services, mine, name)


def _check_unused(services: Services, mine: str, name: str) -> None:
    if services.children.uses(mine, name):
        raise ConflictError(f"dataset {name}: a job that has not ended uses it; cancel it, or wait")


def _view(services: Services, mine: str, name: str) -> DatasetView:
    summary = services.datasets.summary(mine, name)
    base = f"/api/v1/datasets/{summary.name}/pictures"
    return DatasetView(
        name=summary.name, bytes=summary.bytes,
        pictures=[
            DatasetPicture(
                name=one.name, caption=one.caption, width=one.width, height=one.height,
                url=f"{base}/{one.name}", thumbnail=f"{base}/{one.name}/thumbnail",
            )
            for one in services.datasets.pictures(mine, name)
        ],
    )  # fmt: skip
