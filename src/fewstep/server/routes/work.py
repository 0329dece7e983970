"""What long work shows of itself: pictures that a training draws meanwhile, and the end of its log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from fewstep.errors import NotFoundError
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.work import LogView, SampleList
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]

_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "a picture"}}


@router.get("/{job_id}/samples", summary="Pictures of a training")
def samples(job_id: str, request: Request, services: Given) -> SampleList:
    """Names of the pictures that it has drawn so far; none of other kinds of jobs."""
    services.jobs.get(job_id, services.sees(owner(request)))
    return SampleList(samples=list(services.children.samples(job_id)))


@router.get("/{job_id}/samples/{name}", summary="A picture of a training", response_class=Response,
            responses=_PNG)  # fmt: skip
def sample(job_id: str, name: str, request: Request, services: Given) -> Response:
    """One of the list; any other name is unknown."""
    services.jobs.get(job_id, services.sees(owner(request)))
    path = services.children.samples(job_id).get(name)
    if path is None:
        raise NotFoundError("there is no such picture; list the samples of the job to see which there are")
    return Response(path.read_bytes(), media_type="image/png")


@router.get("/{job_id}/log", summary="What long work has said")
def log(
    job_id: str,
    request: Request,
    services: Given,
    lines: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LogView:
    """The last lines, without paths."""
    services.jobs.get(job_id, services.sees(owner(request)))
    return LogView(lines=services.children.log(job_id, lines))
