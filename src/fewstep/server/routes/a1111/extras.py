"""``extra-single-image``, ``extra-batch-images``, ``png-info`` and ``interrogate``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from fewstep.errors import UsageError
from fewstep.server.a1111 import enlarging, reading
from fewstep.server.a1111.desk import Desk
from fewstep.server.a1111.results import as_json, encoded
from fewstep.server.caller import owner
from fewstep.server.routes.a1111.given import ERRORS, PREFIX, AtDesk, Given
from fewstep.server.schemas.a1111 import Extras, ExtrasBatch, ExtrasSingle, Interrogate, PngInfo
from fewstep.server.schemas.a1111_answers import ExtrasMany, ExtrasOne, PngInfoAnswer
from fewstep.server.services import Services

router = APIRouter(prefix=PREFIX, responses=ERRORS)


@router.post("/extra-single-image", summary="Enlarge a picture", response_model=ExtrasOne)
async def single(body: ExtrasSingle, request: Request, services: Given, desk: AtDesk) -> Response:
    """By one upscaler, or two of which the second is laid over the first."""
    made = await _made([body.image], body, request, services, desk)
    answer = ExtrasOne(html_info=made.html_info, image=encoded(made.files[0]))
    return await asyncio.to_thread(as_json, answer)


@router.post("/extra-batch-images", summary="Enlarge pictures", response_model=ExtrasMany)
async def batch(body: ExtrasBatch, request: Request, services: Given, desk: AtDesk) -> Response:
    """One after the other."""
    if not body.imageList:
        raise UsageError("imageList: no picture is given; send one in base64")
    made = await _made([one.data for one in body.imageList], body, request, services, desk)
    answer = ExtrasMany(html_info=made.html_info, images=[encoded(file) for file in made.files])
    return await asyncio.to_thread(as_json, answer)


@router.post("/png-info", summary="Read what a picture says of its making")
async def png_info(body: PngInfo, services: Given) -> PngInfoAnswer:
    """Of PNG, JPEG and WebP."""
    return await asyncio.to_thread(reading.read, body.image, services.settings)


@router.post("/interrogate", summary="Describe a picture: not done here")
async def interrogate(body: Interrogate) -> JSONResponse:
    """Always 422: no model that describes pictures comes with fewstep."""
    text = f"no_model: there is no model that describes pictures ({body.model[:60]} was asked for)"
    return JSONResponse({"error": "no_model", "detail": text, "body": "", "errors": text}, 422)


async def _made(
    texts: list[str], body: Extras, request: Request, services: Services, desk: Desk
) -> enlarging.Made:
    task = desk.tracker.begin(owner(request), "extras", orders=len(texts))
    try:
        return await enlarging.run(texts, body, services, desk, task, request)
    finally:
        desk.tracker.end(task)
