"""``options``, ``cmd-flags``, and what loads and forgets models."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from fewstep.server.a1111 import models, options
from fewstep.server.a1111.desk import model_of, set_options
from fewstep.server.caller import owner
from fewstep.server.routes.a1111.given import ERRORS, PREFIX, AtDesk, Given
from fewstep.server.settings import is_loopback

router = APIRouter(prefix=PREFIX, responses=ERRORS)


@router.get("/options", summary="The caller's options")
def get_options(request: Request, services: Given, desk: AtDesk) -> dict[str, Any]:
    """All there are; most are fixed."""
    who = owner(request)
    generator = services.generator
    name = model_of(services, desk, who)
    there = models.listed(generator)
    sha256 = next((one.sha256 for one in there if one.name == name), None)
    found = desk.options.get(who)
    found |= {options.CHECKPOINT: models.title(name, there), options.HASH: sha256}
    return found | {"api_enable_requests": services.settings.allow_urls}


@router.post("/options", summary="Set the caller's options")
def post_options(values: dict[str, Any], request: Request, services: Given, desk: AtDesk) -> None:
    """For this caller's requests alone, on disk; what is fixed is ignored."""
    set_options(services, desk, owner(request), options.checked(values, strict=True))


@router.get("/cmd-flags", summary="How the server was started")
def cmd_flags(services: Given) -> dict[str, Any]:
    """In the WebUI's words; no path, no key."""
    settings = services.settings
    return {
        "api": True,
        "nowebui": False,
        "listen": not is_loopback(settings.host),
        "port": settings.port,
        "share": False,
        "use_cpu": [],
        "no_half": False,
    }


@router.post("/unload-checkpoint", summary="Let go of the model in memory")
async def unload(services: Given) -> dict[str, Any]:
    """What is being drawn is drawn to its end first; the next order loads the model again."""
    await asyncio.to_thread(services.generator.pool.unload)
    return {}


@router.post("/reload-checkpoint", summary="Open the caller's model")
async def reload(request: Request, services: Given, desk: AtDesk) -> dict[str, Any]:
    """Its networks are loaded with the next order."""
    name = await asyncio.to_thread(model_of, services, desk, owner(request))
    await asyncio.to_thread(services.generator.info, name)
    return {}
