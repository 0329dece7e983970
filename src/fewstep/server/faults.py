"""From an exception to a status and a body, in the shape of the API that was asked.

=====================  ===================================================================
path                   body
=====================  ===================================================================
``/sdapi/``            ``{"error": class, "detail": text, "body": "", "errors": text}``
``/v1/``               ``{"error": {"message", "type", "param", "code"}}``
all others             ``{"error": {"code", "message", "request_id"}}``, with ``field`` where one is to blame
=====================  ===================================================================

Every answer also carries its request's id as a header. Bodies say what the message of an error on purpose
says, but for paths and secrets; of all other exceptions nothing but that there was one. Those go to the log
with their trace.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketState

from fewstep import errors
from fewstep.server import caller

if TYPE_CHECKING:
    # Imported where it is needed: `fewstep.server.early` answers before FastAPI is there.
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError

_log = logging.getLogger("fewstep.server")

CODES: Final[Mapping[type[BaseException], str]] = {
    errors.UsageError: "invalid_value",
    errors.NotFoundError: "not_found",
    errors.DataError: "invalid_data",
    errors.CheckpointError: "refused_weights",
    errors.DependencyError: "missing_dependency",
    errors.OutputError: "not_saved",
    errors.RunError: "run_failed",
    errors.EngineError: "engine_failed",
    errors.QueueFull: "queue_full",
    errors.NotReady: "not_ready",
    errors.Expired: "deadline",
    errors.Unauthorized: "unauthorized",
    errors.Forbidden: "forbidden",
    errors.WrongHost: "wrong_host",
    errors.TooLarge: "too_large",
    errors.Cancelled: "cancelled",
    errors.ConflictError: "conflict",
}
"""Exceptions and their codes; an error with an attribute ``code`` says its own."""

_STATUS_CODES: Final = {
    400: "malformed", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    408: "timeout", 409: "conflict", 413: "too_large", 415: "wrong_content_type", 421: "wrong_host",
    422: "invalid_value", 429: "queue_full", 500: "internal", 503: "not_ready", 504: "deadline",
}  # fmt: skip
_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MEMORY_SECONDS: Final = 5
_MAX_REASON: Final = 120
"""Bytes of the reason that a WebSocket is closed with; the protocol has room for 123."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is told of an exception."""

    status: int
    code: str
    name: str
    """Class of the exception, for the WebUI's clients."""
    message: str
    param: str | None = None
    """The field of the request that is to blame, as the OpenAI API calls it."""
    field: str | None = None
    """The field that is to blame, by our own names."""
    details: list[dict[str, Any]] | None = None
    """Of a request that does not follow the schema: where, why and of what kind, but not the value."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def install(app: FastAPI) -> None:
    """Answer all exceptions of an application's routes."""
    from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError

    async def handle(connection: Any, error: Exception) -> Any:
        if isinstance(connection, WebSocket):
            await _close(connection, error)
            return None
        return answer(connection.scope, error)

    for kind in (
        errors.FewstepError,
        RequestValidationError,
        WebSocketRequestValidationError,
        HTTPException,
        MemoryError,
        Exception,
    ):
        app.add_exception_handler(kind, handle)


def answer(scope: Scope, error: BaseException) -> Response:
    """Return the response that tells a client of an exception; logs it where it is a fault of the server."""
    error = unwrapped(error)
    who = caller.of(scope)
    fault = fault_of(error)
    if fault.status == 500:
        log_trace(scope, error)
    message = who.redact(fault.message)
    path = caller.path_of(scope) + "/"
    headers = dict(fault.headers)
    body: dict[str, Any]
    if path.startswith("/sdapi/"):
        detail = message if fault.details is None else fault.details
        body = {"error": fault.name, "detail": detail, "body": "", "errors": message}
    elif path.startswith("/v1/"):
        default = "server_error" if fault.status >= 500 else "invalid_request_error"
        kind = _OPENAI_TYPES.get(fault.status, default)
        body = {"error": {"message": message, "type": kind, "param": fault.param, "code": fault.code}}
        # Without it, the official client would send an order that failed two more times.
        headers["X-Should-Retry"] = "true" if "Retry-After" in headers else "false"
    else:
        body = {"error": {"code": fault.code, "message": message, "request_id": who.request_id}}
        if fault.field is not None:
            body["error"]["field"] = fault.field
    if fault.status in (204, 304):
        return Response(status_code=fault.status, headers=headers)
    # ASCII: a value out of a request may hold half a character, which UTF-8 has no bytes for.
    content = json.dumps(body, ensure_ascii=True, allow_nan=False).encode("ascii")
    return Response(content, fault.status, headers, "application/json")


def fault_of(error: BaseException) -> Fault:
    """What is told of an exception; paths and secrets are still in it."""
    from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError

    name = type(error).__name__
    if isinstance(error, RequestValidationError | WebSocketRequestValidationError):
        return _invalid(error)
    if isinstance(error, errors.FewstepError):
        headers: dict[str, str] = {}
        if isinstance(error, errors.QueueFull):
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        elif isinstance(error, errors.NotReady):
            headers["Retry-After"] = "1"
        elif isinstance(error, errors.Unauthorized):
            headers["WWW-Authenticate"] = 'Basic realm="fewstep", Bearer realm="fewstep"'
        return Fault(
            status=error.http_status, code=_code(error), name=name, message=str(error), headers=headers,
            param=getattr(error, "param", None), field=error.field,
        )  # fmt: skip
    if isinstance(error, HTTPException):
        message = error.detail if isinstance(error.detail, str) else json.dumps(error.detail, default=str)
        code = _STATUS_CODES.get(error.status_code, "refused" if error.status_code < 500 else "internal")
        return Fault(
            status=error.status_code, code=code, name=name, message=message, headers=error.headers or {}
        )
    if isinstance(error, MemoryError):
        return Fault(
            status=503, code="out_of_memory", name=name, headers={"Retry-After": str(_MEMORY_SECONDS)},
            message="the server is short of memory; ask for fewer or smaller pictures, or try again later",
        )  # fmt: skip
    if isinstance(error, ClientDisconnect):
        return Fault(status=499, code="cancelled", name=name, message="the client went away")
    return Fault(
        status=500, code="internal", name="InternalServerError",
        message="the server failed; its log says why under this request's id",
    )  # fmt: skip


def unwrapped(error: BaseException) -> BaseException:
    """The only exception of a group, as task groups raise it; any other exception unchanged."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def log_trace(scope: Scope, error: BaseException) -> None:
    """Log an exception with its trace and the request's id, without secrets."""
    who = caller.of(scope)
    trace = who.redact.secrets("".join(traceback.format_exception(error)))
    method = scope.get("method", scope.get("type", ""))
    _log.error(
        "%s %s failed (request %s)\n%s",
        method, caller.path_of(scope)[:200], who.request_id or "without id", trace,
        extra={"request_id": who.request_id},
    )  # fmt: skip


async def _close(websocket: WebSocket, error: Exception) -> None:
    fault = fault_of(unwrapped(error))
    if fault.status == 500:
        log_trace(websocket.scope, error)
    if WebSocketState.DISCONNECTED in (websocket.application_state, websocket.client_state):
        return
    code = 1008 if fault.status < 500 else 1013 if fault.status == 503 else 1011
    reason = caller.of(websocket).redact(fault.message).encode("utf-8", "replace")
    await websocket.close(code, reason[:_MAX_REASON].decode("utf-8", "ignore"))


def _code(error: errors.FewstepError) -> str:
    own = getattr(error, "code", None)
    if isinstance(own, str):
        return own
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), _snake(type(error).__name__))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _invalid(error: RequestValidationError | WebSocketRequestValidationError) -> Fault:
    found = list(error.errors())
    details = [
        {"loc": [*one.get("loc", ())], "msg": str(one.get("msg", ""))[:500], "type": str(one.get("type", ""))}
        for one in found[:20]
    ]
    if any(one["type"] == "json_invalid" for one in details):
        reason = next((one.get("ctx", {}).get("error") for one in found), "")
        return Fault(
            status=400, code="malformed", name="RequestValidationError",
            message=f"the body is not JSON ({reason}); send a JSON object", details=details,
        )  # fmt: skip
    where = [_place(one["loc"], getattr(error, "body", None)) for one in details]
    parts = [
        f"{name}: {one['msg']}" if name else str(one["msg"]) for name, one in zip(where, details, strict=True)
    ]
    more = f"; and {len(found) - len(details)} more" if len(found) > len(details) else ""
    first = (where or [""])[0] or None
    return Fault(
        status=422, code="invalid_value", name="RequestValidationError", param=first, field=first,
        message="; ".join(parts) + more, details=details,
    )  # fmt: skip


_PLACES: Final = ("body", "query", "path", "header", "cookie")


def _place(loc: Sequence[Any], body: Any) -> str:
    """The field that a place names, without the kind of body that pydantic chose by its ``kind``."""
    parts = [*loc[1:]] if loc and loc[0] in _PLACES else [*loc]
    given = body if isinstance(body, Mapping) else {}
    if len(parts) > 1 and parts[0] == given.get("kind", "generate") and parts[0] not in given:
        del parts[0]
    return ".".join(map(str, parts))
