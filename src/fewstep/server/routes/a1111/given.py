"""What all routes of this API share."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends

from fewstep.server.a1111.desk import Desk, desk_of
from fewstep.server.schemas.a1111_answers import WebuiProblem
from fewstep.server.services import Services, services_of

PREFIX = "/sdapi/v1"

Given = Annotated[Services, Depends(services_of)]
AtDesk = Annotated[Desk, Depends(desk_of)]

_TEXTS = {
    400: "not JSON", 401: "no key, or a wrong one", 403: "refused", 404: "no such thing here",
    408: "the body came too slowly", 413: "too large", 415: "another content type",
    421: "another host's name", 422: "a value that cannot be",
    429: "the queue is full", 499: "interrupted", 500: "the model failed, or a bug",
    501: "not installed, or not here", 503: "not ready", 504: "too late", 507: "the disk is full",
}  # fmt: skip


def _refers(name: str) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {status: {"description": text, "content": content} for status, text in _TEXTS.items()}


# By reference: a model for each status of each route would take a third of a second to build at every start.
ERRORS = _refers("WebuiProblem")
"""Of all routes but one, which is `DECLARED`."""
DECLARED: dict[int | str, dict[str, Any]] = {422: {"model": WebuiProblem, "description": _TEXTS[422]}}
INTERNAL = _refers("ErrorBody")
"""Of ``/internal``, whose errors have the form of our own API."""
