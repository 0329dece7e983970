"""`/sdapi/v1` and `/internal`: the API of the Stable Diffusion WebUI, version 1.10."""

from __future__ import annotations

from fastapi import APIRouter

from fewstep.server.routes.a1111 import drawing, elsewhere, extras, lists, settings, watching

router = APIRouter(tags=["a1111"])
for part in (drawing, watching, extras, settings, lists, elsewhere):
    router.include_router(part.router)
