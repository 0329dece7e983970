"""``progress``, ``interrupt``, ``skip``, and tasks by their names."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from fewstep.server import media
from fewstep.server.a1111.results import encoded
from fewstep.server.caller import owner
from fewstep.server.orders import Image
from fewstep.server.pending import Pending
from fewstep.server.routes.a1111.given import ERRORS, INTERNAL, PREFIX, AtDesk, Given
from fewstep.server.schemas.a1111 import ProgressOf
from fewstep.server.schemas.a1111_answers import PendingTasks, ProgressAnswer, State, TaskProgress
from fewstep.server.services import Services

router = APIRouter()
_sdapi = APIRouter(prefix=PREFIX, responses=ERRORS)
_internal = APIRouter(prefix="/internal", responses=INTERNAL)


@_sdapi.get("/progress", summary="How far the caller's pictures are")
async def progress(
    request: Request, services: Given, desk: AtDesk, skip_current_image: bool = False
) -> ProgressAnswer:
    """Of the task that runs, or else waits. The preview comes with the step after the first question."""
    who = owner(request)
    active = desk.tracker.active(who)
    if not active:
        return _elsewhere(services, who)
    task, state = active[0], State()
    state.job, state.job_count, state.job_no = task.job, task.orders, task.done
    state.job_timestamp = task.timestamp
    state.sampling_step, state.sampling_steps = task.step, task.total
    state.interrupted, state.skipped = task.interrupted, task.skipped
    picture = None
    if not skip_current_image and desk.options.get(who)["live_previews_enable"]:
        desk.tracker.look(who)
        picture = await _png(task.preview)
    return ProgressAnswer(
        progress=task.share, eta_relative=task.eta, state=state, current_image=picture,
        textinfo=None if task.running else "waiting for its turn",
    )  # fmt: skip


@_sdapi.post("/interrupt", summary="Stop what is being drawn for the caller")
async def interrupt(request: Request, services: Given, desk: AtDesk) -> dict[str, Any]:
    """At the next step. Where nothing is being drawn yet, what waits the longest."""
    who = owner(request)
    for task in desk.tracker.active(who)[:1]:
        task.interrupted = True
    await asyncio.to_thread(_stop, services, who)
    return {}


@_sdapi.post("/skip", summary="Stop the order that is being drawn, and go on with the next of its request")
async def skip(request: Request, services: Given, desk: AtDesk) -> None:
    """As interrupt, where a request is a single order."""
    who = owner(request)
    for task in desk.tracker.active(who)[:1]:
        task.skipped = True
    await asyncio.to_thread(_stop, services, who)


@_internal.get("/pending-tasks", summary="Names of the caller's tasks that have not ended")
async def pending_tasks(request: Request, desk: AtDesk) -> PendingTasks:
    """Those that run first."""
    names = [task.name for task in desk.tracker.active(owner(request))]
    return PendingTasks(size=len(names), tasks=names)


@_internal.post("/progress", summary="How far a named task is")
async def progress_of(body: ProgressOf, request: Request, desk: AtDesk) -> TaskProgress:
    """A task that is not known has neither begun nor ended."""
    who = owner(request)
    task = None if body.id_task is None else desk.tracker.find(who, body.id_task)
    if task is None or task.ended:
        return TaskProgress(active=False, queued=False, completed=task is not None)
    answer = TaskProgress(
        active=task.running, queued=not task.running, completed=False, progress=task.share, eta=task.eta,
        id_live_preview=body.id_live_preview,
        textinfo=None if task.running else "In queue...",
    )  # fmt: skip
    if body.live_preview and desk.options.get(who)["live_previews_enable"]:
        desk.tracker.look(who)
        number = task.preview_id
        picture = await _png(task.preview) if number != body.id_live_preview else None
        if picture is not None:
            answer.live_preview, answer.id_live_preview = f"data:image/png;base64,{picture}", number
    return answer


router.include_router(_sdapi)
router.include_router(_internal)


def _elsewhere(services: Services, who: str) -> ProgressAnswer:
    """What the caller draws by another API: clients wait until nothing is drawn."""
    waiting: list[Pending] = services.generator.waiting(who)
    if not waiting:
        return ProgressAnswer(progress=0.0, eta_relative=0.0, state=State())
    current = services.generator.current(who)
    told = None if current is None else current.progress
    share = 0.0 if told is None else max(0.01, told.step / told.total if told.total else 0.0)
    eta = told.seconds * (1.0 - share) / share if told is not None and told.step else 0.0
    state = State(job=waiting[0].order.client, job_count=len(waiting))
    if told is not None:
        state.sampling_step, state.sampling_steps = told.step, told.total
    return ProgressAnswer(progress=share, eta_relative=eta, state=state)


def _stop(services: Services, who: str) -> None:
    generator = services.generator
    if generator.interrupt(who) or generator.current(who) is not None:
        return
    for pending in generator.waiting(who):
        if pending.order.client == "a1111":
            pending.cancel()
            return


async def _png(image: Image | None) -> str | None:
    if image is None:
        return None
    return encoded(await asyncio.to_thread(media.encode, image, kind="png"))
