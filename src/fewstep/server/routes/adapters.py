"""`/api/v1/adapters`: which adapters there are, whether a model takes them, and their pictures."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as PathParameter

from fewstep.errors import NotFoundError
from fewstep.server import adapterlist
from fewstep.server.routes.jobs import ERRORS
from fewstep.server.schemas.adapters import AdapterList, AdapterView
from fewstep.server.services import Services, services_of

router = APIRouter(prefix="/api/v1/adapters", tags=["adapters"], responses=ERRORS)
Given = Annotated[Services, Depends(services_of)]
Name = Annotated[str, PathParameter(min_length=1, max_length=255)]

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}, "description": "The picture"}
}


@router.get("", summary="Adapters that can be asked for")
def adapters(
    services: Given,
    model: Annotated[
        str | None, Query(max_length=255, description="Compared with this one; without, the server's model")
    ] = None,
) -> AdapterList:
    """By name, with what their files say of themselves. Names are keys, never paths."""
    pool = services.generator.pool
    name = pool.default if model is None else model
    info = pool.info(name)
    found = []
    for entry in pool.adapters.entries():
        try:
            state = entry.path.stat()
        except OSError:
            continue  # deleted meanwhile
        facts = adapterlist.facts(entry.path)
        why = adapterlist.unfit(pool, name, info, facts)
        beside = adapterlist.picture_beside(entry.path)
        found.append(
            AdapterView(
                name=entry.name, alias=facts.alias, bytes=state.st_size, modified=state.st_mtime,
                family=facts.family, fits=why is None, why=why, trigger_words=list(facts.trigger_words),
                weight=adapterlist.usual_weight(entry, info) if why is None else 1.0,
                picture=None if beside is None else f"/api/v1/adapters/{quote(entry.name, safe='')}/picture",
            )
        )  # fmt: skip
    return AdapterList(model=name, adapters=found)


@router.get("/{name}/picture", summary="An adapter's picture", response_class=Response, responses=_FILES)
def picture(name: Name, services: Given) -> Response:
    """The picture that lies beside its file, as web UIs put it there."""
    path = adapterlist.picture(services.generator.pool.adapters, name)
    try:
        data = path.read_bytes()
    except OSError:
        raise NotFoundError("the picture is no longer there") from None
    return Response(
        data, media_type=_TYPES[path.suffix.lower()], headers={"Cache-Control": "private, max-age=60"}
    )
