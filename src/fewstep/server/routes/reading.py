"""`/api/v1/info`, `/api/v1/replay`: what a picture says, and whether it is so; `/api/v1/upscalers`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Request

from fewstep.engine.upscaling import catalogue
from fewstep.errors import DataError
from fewstep.server import reading, replaying
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.reading import (
    PictureFacts,
    ReadBody,
    ReplayView,
    UpscalerList,
    UpscalerView,
)
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1", tags=["pictures"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]


@router.post("/info", summary="What a picture says of its making")
def info(body: ReadBody, services: Given) -> PictureFacts:
    """Of fewstep, AUTOMATIC1111, ComfyUI, InvokeAI, NovelAI, Fooocus; PNG, JPEG or WebP."""
    return reading.read(body.image, services.settings).facts


@router.post("/replay", summary="Draw a picture of fewstep again from its record")
async def replay(body: ReadBody, request: Request, services: Given) -> ReplayView:
    """Waits for its turn as any order; the new picture is not kept. Says how far the two differ, and why."""
    before = await asyncio.to_thread(reading.read, body.image, services.settings)
    if before.facts.record is None:
        raise DataError("image: it has no record of fewstep, so it cannot be drawn again; send its settings")
    order = await asyncio.to_thread(
        replaying.order, before.facts.record, services.settings, owner=owner(request)
    )
    drawn = await services.generator.draw(order, request)
    return await asyncio.to_thread(replaying.compared, before, drawn)


@router.get("/upscalers", summary="What can enlarge pictures")
def upscalers() -> UpscalerList:
    """Names for `upscale` jobs and orders; those that are not installed, too."""
    plain = [UpscalerView(name=name, scales=[], noise=[], installed=True) for name in catalogue.PLAIN]
    networks = [
        UpscalerView(
            name=name, scales=sorted(one.networks), installed=catalogue.installed(one),
            noise=[level for level in range(4) if f"{name}-noise{level}" in catalogue.UPSCALERS],
        )
        for name, one in catalogue.UPSCALERS.items()
        if "-noise" not in name
    ]  # fmt: skip
    return UpscalerList(default=catalogue.resolve("auto"), upscalers=[*plain, *networks])
