"""`/api/v1/jobs`: order, watch, cancel, do again."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from fewstep.errors import ConflictError
from fewstep.server import media, native
from fewstep.server.childjob import ChildJob
from fewstep.server.jobstore import UNFINISHED, fingerprint
from fewstep.server.orders import Order, Progress
from fewstep.server.pending import KnownJob, Pending
from fewstep.server.schemas.native import (
    ErrorBody,
    GenerateBody,
    JobList,
    JobState,
    JobView,
)
from fewstep.server.schemas.work import BODIES, JobBody, WorkBody
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

_TEXTS = {
    400: "not JSON", 401: "no key, or a wrong one", 403: "refused", 404: "no such thing here",
    408: "the body came too slowly", 409: "not in this state, or the idempotency key is another request's",
    413: "too large", 415: "another content type", 421: "another host's name", 422: "a value that cannot be",
    429: "the queue is full", 500: "the model failed, or a bug", 501: "not installed", 503: "not ready",
    504: "too late", 507: "the disk is full",
}  # fmt: skip
# All but one by reference: a model for each status of each route would take long to build at every start.
_CONTENT = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _CONTENT} for status, text in _TEXTS.items()
}
ERRORS[422] = {"model": ErrorBody, "description": _TEXTS[422]}
"""What every route of our own API may answer instead."""

ELSEWHERE = 0.5
"""Seconds between looks at a job of another server."""

router = APIRouter(prefix="/api/v1", responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]


@router.post("/jobs", status_code=202, tags=["jobs"], summary="Order pictures, or long work")
async def create(body: JobBody, request: Request, response: Response, services: Given) -> JobView:
    """Answers at once; the job is on the disk by then. With an `Idempotency-Key` it may be sent again.

    Without a `kind` it orders pictures.
    """
    if not isinstance(body, GenerateBody):
        return await asyncio.to_thread(_work, body, request, response, services)
    order = await asyncio.to_thread(_order, body, services, owner(request))
    if key := request.headers.get("Idempotency-Key"):
        order = _named(order, key, fingerprint(body.model_dump(mode="json")))
    try:
        pending = await asyncio.to_thread(services.generator.submit, order)
        job_id = pending.id
    except KnownJob as known:
        job_id = known.job_id
    response.headers["Location"] = f"/api/v1/jobs/{job_id}"
    return await asyncio.to_thread(_view, services, job_id, services.sees(order.owner))


@router.get("/jobs", tags=["jobs"], summary="Jobs, the newest first")
def jobs(
    request: Request,
    services: Given,
    kind: Annotated[str | None, Query(max_length=32)] = None,
    state: Annotated[list[JobState] | None, Query(max_length=7, description="May be repeated")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[str | None, Query(max_length=32, description="Last job of the page before")] = None,
) -> JobList:
    """Those of the key that asks."""
    rows = services.jobs.list(
        services.sees(owner(request)), kind=kind, states=state, limit=limit, before=before
    )
    return JobList(jobs=[_row(services, row) for row in rows])


@router.get("/jobs/{job_id}", tags=["jobs"], summary="One job")
def job(job_id: str, request: Request, services: Given) -> JobView:
    """Its state, progress and result."""
    return _view(services, job_id, services.sees(owner(request)))


@router.post("/jobs/{job_id}/cancel", tags=["jobs"], summary="Stop a job")
def cancel(job_id: str, request: Request, services: Given) -> JobView:
    """Leaves the queue, or stops at the next step; a job that has ended stays as it is."""
    job = services.jobs.get(job_id, services.sees(owner(request)))
    if (pending := _pending(services, job_id)) is not None:
        pending.cancel()
    elif job.state in UNFINISHED:
        # Another server's: its keeper looks for this.
        services.jobs.set_state(job_id, "cancelled", error="stopped by request")
    return _view(services, job_id, services.sees(owner(request)))


@router.post("/jobs/{job_id}/requeue", status_code=202, tags=["jobs"], summary="Do a job again")
def requeue(job_id: str, request: Request, services: Given) -> JobView:
    """For a job that was cut off, cancelled, too late, or failed."""
    job = services.jobs.get(job_id, services.sees(owner(request)))
    if _pending(services, job_id) is not None:
        raise ConflictError("the job has not ended: cancel it first")
    if job.kind in BODIES:
        services.children.again(job)
        return _view(services, job_id, services.sees(owner(request)))
    values = dict(job.order)
    services.jobs.requeue(job_id, services.sees(owner(request)))
    services.generator.again(job_id, values, job.owner)
    return _view(services, job_id, services.sees(owner(request)))


@router.get("/jobs/{job_id}/events", tags=["jobs"], summary="Watch a job", response_class=EventSourceResponse)
async def events(
    job_id: str,
    request: Request,
    services: Given,
    preview: Annotated[bool, Query(description="A picture of what there is, after every step")] = False,
) -> EventSourceResponse:
    """Server-sent events: `progress` after every step, `end` with the job as it ended, then nothing more."""
    mine = services.sees(owner(request))
    await asyncio.to_thread(services.jobs.get, job_id, mine)
    return EventSourceResponse(_events(services, job_id, mine, preview=preview), ping=15)


def _order(body: GenerateBody, services: Services, mine: str) -> Order:
    """What a body asks for; whether pictures are kept, where it does not say, is the caller's setting."""
    order = native.order(body, services.settings, owner=mine)
    if "save" in body.model_fields_set:
        return order
    return dataclasses.replace(order, save=services.preferences.get(mine).save)


def _named(order: Order, key: str, body: str) -> Order:
    return dataclasses.replace(order, idempotency_key=key, fingerprint=body)


def _work(body: WorkBody, request: Request, response: Response, services: Services) -> JobView:
    mine, key = owner(request), request.headers.get("Idempotency-Key")
    job_id = services.children.submit(
        body, owner=mine, idempotency_key=key or None,
        fingerprint=fingerprint(body.model_dump(mode="json")) if key else None,
    )  # fmt: skip
    response.headers["Location"] = f"/api/v1/jobs/{job_id}"
    return _view(services, job_id, mine)


def _pending(services: Services, job_id: str) -> Pending | ChildJob | None:
    return services.generator.pending(job_id) or services.children.pending(job_id)


def _view(services: Services, job_id: str, mine: str | None) -> JobView:
    return _row(services, services.jobs.get(job_id, mine))


def _row(services: Services, row: Any) -> JobView:
    pending = _pending(services, row.id)
    position = None
    if isinstance(pending, Pending) and row.state == "queued" and pending.task.state == "running":
        row.state = "running"  # which is recorded a little later
    if pending is not None and row.state == "queued":
        if isinstance(pending, ChildJob):
            position = services.children.position(pending) or None
        else:
            position = services.generator.queue.position(pending.task) or None
    return native.job_view(row, pending, position)


async def _events(
    services: Services, job_id: str, mine: str | None, *, preview: bool
) -> AsyncIterator[ServerSentEvent]:
    pending = _pending(services, job_id)
    if pending is not None:
        async for progress in _steps(pending, preview=preview):
            yield ServerSentEvent(event="progress", data=json.dumps(progress))
    row = await asyncio.to_thread(services.jobs.get, job_id, mine)
    while row.state in UNFINISHED and row.server != services.jobs.id:
        await asyncio.sleep(ELSEWHERE)
        row = await asyncio.to_thread(services.jobs.get, job_id, mine)
    view = await asyncio.to_thread(_row, services, row)
    yield ServerSentEvent(event="end", data=view.model_dump_json())


async def _steps(pending: Pending | ChildJob, *, preview: bool) -> AsyncIterator[dict[str, Any]]:
    """The newest progress, whenever there is a newer one; a slow reader misses some, and slows nobody."""
    loop = asyncio.get_running_loop()
    newest: dict[str, Any] = {}
    changed = asyncio.Event()

    def store(values: dict[str, Any] | None) -> None:
        newest.update(values or {})
        changed.set()

    def on_progress(progress: Progress) -> None:
        values = native.progress_view(progress).model_dump()
        if preview and progress.preview is not None:
            values["preview"] = base64.b64encode(media.encode(progress.preview(), kind="jpeg")).decode()
        loop.call_soon_threadsafe(store, values)

    pending.listen(on_progress)
    pending.future.add_done_callback(lambda future: loop.call_soon_threadsafe(store, None))
    try:
        if pending.progress is not None:
            store(native.progress_view(pending.progress).model_dump())
        while not pending.future.done():
            await changed.wait()
            changed.clear()
            if newest:
                yield dict(newest)
    finally:
        pending.unlisten(on_progress)
