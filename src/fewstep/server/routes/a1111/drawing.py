"""``txt2img`` and ``img2img``."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from fewstep.errors import Cancelled
from fewstep.server.a1111 import results
from fewstep.server.a1111.desk import Desk, Prepared, prepared, set_options
from fewstep.server.caller import owner
from fewstep.server.orders import Drawn
from fewstep.server.routes.a1111.given import DECLARED, ERRORS, PREFIX, AtDesk, Given
from fewstep.server.schemas.a1111 import Generation, Img2Img, Txt2Img
from fewstep.server.schemas.a1111_answers import Pictures
from fewstep.server.services import Services

router = APIRouter(prefix=PREFIX, responses=ERRORS)


@router.post("/txt2img", summary="Draw from text", response_model=Pictures, responses=DECLARED)
async def txt2img(body: Txt2Img, request: Request, services: Given, desk: AtDesk) -> Response:
    """Answers when the pictures are drawn; interrupted, with those that were finished."""
    return await _draw(body, request, services, desk, "txt2img")


@router.post("/img2img", summary="Draw from pictures", response_model=Pictures)
async def img2img(body: Img2Img, request: Request, services: Given, desk: AtDesk) -> Response:
    """As txt2img; where a mask is white, or of the whole picture."""
    return await _draw(body, request, services, desk, "img2img")


async def _draw(body: Generation, request: Request, services: Services, desk: Desk, job: str) -> Response:
    who = owner(request)
    task = desk.tracker.begin(who, job, name=body.force_task_id)
    drawn: list[Drawn] = []
    try:
        found = await asyncio.to_thread(prepared, body, services, desk, who)
        task.orders = len(found.wish.orders)
        interrupted = False
        for order in found.wish.orders:
            if task.interrupted:
                interrupted = True
                break
            try:
                drawn.append(await services.generator.draw(order, request, task.tell))
            except Cancelled:
                interrupted = True
                if not task.skipped:
                    break
                task.skipped = False
            task.done += 1
            task.step = 0
        if found.keep:
            await asyncio.to_thread(set_options, services, desk, who, found.keep)
        return await asyncio.to_thread(_answer, found, drawn, interrupted)
    finally:
        desk.tracker.end(task)


def _answer(found: Prepared, drawn: list[Drawn], interrupted: bool) -> Response:
    made = results.answer(found.wish, drawn, found.info, found.options, interrupted=interrupted)
    return results.as_json(made)
