"""`/api/v1/styles`: named pieces of prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from fewstep.prompt.styles import Style
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.styles import StyleBody, StyleList, StyleView
from fewstep.server.security import owner
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1/styles", tags=["styles"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]


@router.get("", summary="Styles of prompts")
def styles(request: Request, services: Given) -> StyleList:
    """Of styles.csv in the server's folder, and of the key that asks."""
    return _view(services, owner(request))


@router.put("", summary="Write a style")
def keep(body: StyleBody, request: Request, services: Given) -> StyleList:
    """In place of one of the same name. With keys it is of the key that asks."""
    services.styles.keep(owner(request), Style(body.name, body.prompt, body.negative_prompt))
    return _view(services, owner(request))


@router.delete("", summary="Delete a style")
def remove(
    request: Request, services: Given, name: Annotated[str, Query(min_length=1, max_length=1000)]
) -> StyleList:
    """Of one's own."""
    services.styles.remove(owner(request), name)
    return _view(services, owner(request))


def _view(services: Services, who: str) -> StyleList:
    own = {one.name for one in services.styles.own(who)}
    return StyleList(
        styles=[
            StyleView(
                name=one.name, prompt=one.prompt, negative_prompt=one.negative_prompt, own=one.name in own
            )
            for one in services.styles.known(who)
        ]
    )  # fmt: skip
