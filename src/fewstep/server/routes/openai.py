"""`/v1`: the OpenAI Images API. docs/reference/openai.md says what each field does here."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent

from fewstep.server import caller, drawing, faults, links
from fewstep.server.openai import uploads
from fewstep.server.openai.flights import Ticket
from fewstep.server.openai.results import Pictures
from fewstep.server.openai.streams import Partials
from fewstep.server.openai.wishes import Source, Wish
from fewstep.server.openai.work import Work, flights_of, ticket
from fewstep.server.schemas import openai_answers as answers
from fewstep.server.schemas import openai_forms as forms
from fewstep.server.schemas.openai import (
    EDIT_FILES,
    VARIATION_FILES,
    EditBody,
    GenerationBody,
    UnknownModel,
    VariationBody,
    check,
)
from fewstep.server.services import Services, services_of

PING = 15
"""Seconds between the comments that keep a stream open while an order waits."""

Given = Annotated[Services, Depends(services_of)]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": text}
    for status, text in {
        400: "not JSON, or a broken form", 401: "no key, or a wrong one", 403: "refused",
        404: "no such model", 408: "the body came too slowly",
        409: "the idempotency key was used for another request", 413: "too large",
        415: "another content type", 421: "another host's name", 422: "a value that cannot be",
        429: "the queue is full", 500: "the model failed, or a bug", 501: "not installed", 503: "not ready",
        504: "too late", 507: "the disk is full",
    }.items()
}  # fmt: skip
_IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": answers.ImagesAnswer,
        "description": "The pictures; with `stream` server-sent events",
        "content": {"text/event-stream": {"schema": forms.EVENT}},
    }
}

router = APIRouter(prefix="/v1", tags=["openai"], responses=ERRORS)


@router.get("/models", summary="Models", response_model=answers.ModelsAnswer)
def models(services: Given) -> dict[str, Any]:
    """What can be drawn with."""
    return {"object": "list", "data": [_model(entry) for entry in services.generator.models()]}


@router.get("/models/{name:path}", summary="One model", response_model=answers.ModelAnswer)
def model(name: str, services: Given) -> dict[str, Any]:
    """Whether it is there."""
    for entry in services.generator.models():
        if entry.name == name:
            return _model(entry)
    raise UnknownModel(f"model {name!r:.100} is not here; /v1/models lists what is")


@router.post("/images/generations", summary="Draw from text", response_class=JSONResponse, responses=_IMAGES)
async def generations(body: GenerationBody, request: Request, services: Given) -> Response:
    """Draw pictures from a text."""
    found = ticket(request, caller.owner(request), body.model_dump(exclude_defaults=True), {})
    return await _answer(request, services, body.wish(), found, "image_generation")


@router.post(
    "/images/edits", summary="Change a picture", response_class=JSONResponse, responses=_IMAGES,
    openapi_extra=forms.document(EditBody, EDIT_FILES),
)  # fmt: skip
async def edits(request: Request, services: Given) -> Response:
    """Draw a picture anew where its mask is transparent, or all of it on what it shows."""
    body, source, found = await _form(request, services, EditBody, EDIT_FILES)
    return await _answer(request, services, body.wish(), found, "image_edit", source)


@router.post(
    "/images/variations", summary="Pictures like another", response_class=JSONResponse, responses=_IMAGES,
    openapi_extra=forms.document(VariationBody, VARIATION_FILES),
)  # fmt: skip
async def variations(request: Request, services: Given) -> Response:
    """Draw on a picture without words."""
    body, source, found = await _form(request, services, VariationBody, VARIATION_FILES)
    return await _answer(request, services, body.wish(), found, "image_generation", source)


Body = TypeVar("Body", EditBody, VariationBody)


async def _form(
    request: Request, services: Services, kind: type[Body], names: tuple[str, ...]
) -> tuple[Body, Source, Ticket]:
    form = await uploads.read(request)
    try:
        body = kind.model_validate(form.fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    limits = services.settings.limits
    source = await asyncio.to_thread(uploads.source, form, limits, names=names)
    fields = body.model_dump(exclude_defaults=True)
    return body, source, ticket(request, caller.owner(request), fields, form.digests())


async def _answer(
    request: Request,
    services: Services,
    wish: Wish,
    found: Ticket,
    task: answers.Task,
    source: Source | None = None,
) -> Response:
    settings = services.settings
    check(wish, settings.limits, keeps=settings.save)
    work = Work(services, wish, found, source=source)
    flights = flights_of(request.app)
    if wish.stream:
        return await _stream(request, services, wish, found, task, work)
    pictures = await flights.answer(found, work.pictures, lambda: drawing.gone(request))

    def body() -> str:
        urls = [_url(request, services, found.owner, one) for one in pictures.ids] if wish.as_url else None
        return _json(answers.images(wish, pictures, urls))

    return Response(await asyncio.to_thread(body), media_type="application/json")


async def _stream(
    request: Request, services: Services, wish: Wish, found: Ticket, task: answers.Task, work: Work
) -> Response:
    """Events of one picture. What is wrong before the order is taken is an error with a status."""
    flights = flights_of(request.app)
    partials = Partials(wish, work.size)

    async def make() -> Pictures:
        return await work.pictures(partials.listen if wish.partial else None)

    # A stream that has begun is not sent again by itself, so without a key nobody would take it over.
    own = found if found.key is not None else Ticket(found.owner, found.fingerprint)
    waiting = asyncio.ensure_future(flights.answer(own, make))
    waiting.add_done_callback(lambda _: partials.end())
    taken = asyncio.ensure_future(work.taken.wait())
    try:
        await asyncio.wait({waiting, taken}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        waiting.cancel()
        raise
    finally:
        taken.cancel()
    if waiting.done():
        waiting.result()  # raises what was wrong

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            async for one in partials:
                told = answers.partial(
                    wish, one.file, (one.width, one.height), index=one.index, created=one.created, task=task
                )
                yield _event(told)
            try:
                yield _event(await asyncio.to_thread(answers.completed, wish, await waiting, task))
            except Exception as error:
                yield _event({"type": "error", **_problem(request, error)})
            yield ServerSentEvent("[DONE]", sep="\n")
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting

    return EventSourceResponse(
        events(), ping=PING, sep="\n", shutdown_event=anyio.Event(),
        shutdown_grace_period=services.settings.grace,
    )  # fmt: skip


def _problem(request: Request, error: Exception) -> dict[str, Any]:
    """What a stream says in place of a picture: the body that an answer would have."""
    fault = faults.fault_of(error)
    if fault.status == 500:
        faults.log_trace(request.scope, error)
    kind = "server_error" if fault.status >= 500 else "invalid_request_error"
    return answers.error(caller.of(request).redact(fault.message), kind, fault.param, fault.code)


def _event(told: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(_json(told), event=told["type"], sep="\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _model(entry: Any) -> dict[str, Any]:
    try:
        created = int(entry.folder.stat().st_mtime)
    except OSError:
        created = 0
    return answers.model(entry.name, created, entry.origin)


def _url(request: Request, services: Services, owner: str, image: str) -> str:
    path = f"{links.PREFIX}{image}/file"
    token = links.sign(services.settings, path, owner)
    return f"{str(request.base_url).rstrip('/')}{path}" + (f"?{links.PARAMETER}={token}" if token else "")
