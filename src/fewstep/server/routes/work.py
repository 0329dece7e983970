"""What long work shows of itself: its order, pictures that it draws meanwhile, curves, the end of its log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from fewstep.errors import NotFoundError
from fewstep.server import curves
from fewstep.server.childjob import order_of
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.work import BODIES, Curve, CurveList, LogView, OrderView, SampleList
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


@router.get("/{job_id}/order", summary="What long work was asked to do")
def order(job_id: str, request: Request, services: Given) -> OrderView:
    """Of training, distillation and the like; an order of pictures has its settings in their records."""
    job = services.jobs.get(job_id, services.sees(owner(request)))
    if job.kind not in BODIES:
        raise NotFoundError("this job ordered pictures: their records have all settings")
    return OrderView(order=order_of(job).model_dump(mode="json", exclude={"image"}))


@router.get("/{job_id}/curves", summary="What long work has measured")
def measured(job_id: str, request: Request, services: Given) -> CurveList:
    """Losses and other values over images, a training's or of each stage of a distillation."""
    services.jobs.get(job_id, services.sees(owner(request)))
    found = curves.read(services.children.run(job_id).work)
    return CurveList(stages=[Curve(stage=stage, values=values) for stage, values in found.items()])
