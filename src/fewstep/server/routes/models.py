"""`/api/v1/models`: what can be drawn with; add, unload, take away; and keep or discard what was merged."""

from __future__ import annotations

from typing import Annotated, Any

import psutil
from fastapi import APIRouter, Depends, Query, Request, Response

from fewstep.errors import ConflictError
from fewstep.server import library
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.library import AddBody, KeepBody, Kept, Removed, Unloaded
from fewstep.server.schemas.native import ContractView, ModelDetail, ModelList, ModelView
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1", responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]


@router.get("/models", tags=["models"], summary="Models that can be asked for")
def models(services: Given) -> ModelList:
    """By name; names are keys, never paths."""
    pool = services.generator.pool
    loaded, default = pool.loaded(), pool.default
    settings = services.settings
    kinds = library.kinds(settings)
    return ModelList(
        models=[
            ModelView(
                name=entry.name, kind=entry.kind, origin=entry.origin, bytes=entry.size,
                loaded=entry.name == loaded, default=entry.name == default,
                kinds=kinds.get(entry.name, [entry.kind]), draft=library.is_draft(settings, entry),
                removable=library.removable(settings, entry),
            )
            for entry in pool.models()
        ],
        managed=settings.managed, paths=settings.private,
        process_bytes=psutil.Process().memory_info().rss, free_bytes=psutil.virtual_memory().available,
    )  # fmt: skip


@router.get("/models/{name}", tags=["models"], summary="One model")
def model(name: str, services: Given) -> ModelDetail:
    """All that is known of it without drawing."""
    pool = services.generator.pool
    info = pool.info(name)
    entry = next((one for one in pool.models() if one.name == name), None)
    contract = info.contract
    return ModelDetail(
        name=name, kind="bundle" if entry is None else entry.kind,
        origin="" if entry is None else entry.origin, bytes=0 if entry is None else entry.size,
        loaded=pool.loaded() == name, default=pool.default == name, hash=info.hash, family=info.family,
        licence=info.licence, native_width=info.native_size[0], native_height=info.native_size[1],
        size_multiple=info.size_multiple, max_size=info.max_size,
        num_inference_steps=contract.num_inference_steps, guidance_scale=contract.guidance_scale,
        solver=contract.solver, prediction_type=contract.prediction_type, classes=sorted(info.classes),
        draft=entry is not None and library.is_draft(services.settings, entry),
        removable=None if entry is None else library.removable(services.settings, entry),
        contract=_contract(contract), max_clip_skip=info.max_clip_skip,
        students=[
            {"name": one.name, "method": one.contract.method, "steps": list(one.steps), "hash": one.hash,
             "contract": _contract(one.contract).model_dump()}
            for one in info.students
        ],
    )  # fmt: skip


@router.post("/models/unload", tags=["models"], summary="Let go of the model in memory")
def unload(services: Given) -> Unloaded:
    """What is being drawn is drawn to its end first; the next order loads the model again."""
    pool = services.generator.pool
    before = pool.loaded()
    pool.unload()
    return Unloaded(model=before)


@router.post("/models/add", status_code=201, tags=["models"], summary="Name a file or folder of this machine")
def add(body: AddBody, services: Given) -> Kept:
    """As `fewstep models add`. Only on a server without keys that nobody else can reach."""
    entry = library.add(services.settings, services.generator.pool, body.name, body.path)
    return Kept(model=entry.name)


@router.delete("/models/{name}", tags=["models"], summary="Take a model away")
def remove(
    name: str,
    services: Given,
    files: Annotated[bool, Query(description="Delete its files, of those that fewstep wrote")] = False,
) -> Removed:
    """One that was made or downloaded here, or the name of one that was named."""
    waiting = [one.body for one in services.children.waiting()]
    pool = services.generator.pool
    deleted = library.remove(services.settings, pool, name, files=files, waiting=waiting)
    return Removed(model=name, files=deleted)


@router.post("/jobs/{job_id}/keep", tags=["jobs"], summary="Keep a merge")
def keep(job_id: str, body: KeepBody, request: Request, services: Given) -> Kept:
    """Of a merge that was ordered as a draft: it has this name from now on."""
    _draft(services, job_id, request)
    library.keep(services.settings, services.generator.pool, job_id, body.name)
    return Kept(model=body.name)


@router.post("/jobs/{job_id}/discard", status_code=204, tags=["jobs"], summary="Discard a merge")
def discard(job_id: str, request: Request, services: Given) -> Response:
    """Of a merge that was ordered as a draft."""
    _draft(services, job_id, request)
    library.discard(services.settings, services.generator.pool, job_id)
    return Response(status_code=204)


def _draft(services: Services, job_id: str, request: Request) -> None:
    job = services.jobs.get(job_id, services.sees(owner(request)))
    body = job.order.get("body")
    if job.kind != "merge" or not isinstance(body, dict) or not body.get("draft"):
        raise ConflictError("this job is no merge that was ordered as a draft: there is nothing to keep")
    if job.state != "done":
        raise ConflictError("the merge is not done: wait for it, or cancel the job")


def _contract(contract: Any) -> ContractView:
    return ContractView(
        method=contract.method, num_inference_steps=contract.num_inference_steps,
        allowed_steps=None if contract.allowed_steps is None else list(contract.allowed_steps),
        solver=contract.solver, spacing=contract.spacing, eta=contract.eta, guidance=contract.guidance,
        guidance_scale=contract.guidance_scale,
        guidance_range=None if contract.guidance_range is None else list(contract.guidance_range),
        guidance_rescale=contract.guidance_rescale,
        negative_prompt_effective=contract.negative_prompt_effective,
    )  # fmt: skip
