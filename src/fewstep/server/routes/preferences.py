"""`/api/v1/settings`: what a visitor of the studio prefers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.preferences import PreferencesBody, PreferencesView
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1/settings", tags=["settings"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]


@router.get("", summary="The caller's settings")
def get(request: Request, services: Given) -> PreferencesView:
    """Of the studio's forms, and of how pictures are kept."""
    return _view(services, owner(request))


@router.patch("", summary="Change settings")
def patch(body: PreferencesBody, request: Request, services: Given) -> PreferencesView:
    """At once, on disk, for the key that asks; a model must be one that there is."""
    if body.model is not None:
        services.generator.info(body.model)
    services.preferences.change(owner(request), body)
    return _view(services, owner(request))


def _view(services: Services, who: str) -> PreferencesView:
    keeps = services.preferences
    return PreferencesView(values=keeps.get(who), own=sorted(keeps.own(who)))
