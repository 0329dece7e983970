"""The studio's way to the server: its own HTTP API, with the key of the browser that asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from fewstep.studio.words import LANGUAGES, Words, texts

if TYPE_CHECKING:
    import gradio as gr

_PASSED_ON: Final = ("cookie", "authorization", "x-api-key")
_SECONDS: Final = 120.0
ENDED: Final = frozenset({"done", "failed", "cancelled", "expired", "cut_off"})
"""States of a job that does not change any more."""


class ApiError(Exception):
    """The server refused.

    Args:
        message: its sentence, which says the reason and what to do.
        code: its short name of the reason, such as ``queue_full``; empty where it did not answer.
        status: of HTTP.
        field: of the request, that is to blame; None where none is.
    """

    def __init__(self, message: str, code: str = "", status: int = 500, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.field = field


@dataclass(frozen=True, slots=True)
class Api:
    """Requests of one visitor. Made by `api_of` for every event of the page; nothing is kept between them."""

    base: str
    headers: dict[str, str]
    language: str = LANGUAGES[0]
    """Of the page: what kind of refusal it is is said in it, before the server's own sentence, in English."""

    async def get(self, path: str, **query: Any) -> Any:
        """JSON of a GET; ApiError when it is refused. Fields of the query that are None are left out."""
        return (await self._ask("GET", path, params=_given(query))).json()

    async def post(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        """JSON of a POST with a JSON body."""
        return _json(await self._ask("POST", path, json=body or {}, params=_given(query)))

    async def send(self, method: str, path: str, **how: Any) -> Any:
        """JSON of any other request; ``how`` is httpx's: json, files, data, params, content, headers."""
        return _json(await self._ask(method, path, **how))

    async def data(self, path: str) -> bytes:
        """The bytes of a file."""
        return (await self._ask("GET", path)).content

    async def watch(self, job_id: str, *, every: float = 0.15) -> AsyncIterator[dict[str, Any]]:
        """Yield what becomes of a job, whenever it has changed, until it has ended.

        Args:
            job_id: of ``/api/v1/jobs``.
            every: seconds between two looks.
        """
        before: dict[str, Any] | None = None
        while True:
            job = await self.get(f"/api/v1/jobs/{job_id}")
            if job != before:
                yield job
                before = job
            if job["state"] in ENDED:
                return
            await asyncio.sleep(every)

    async def _ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        given = how.pop("headers", {})
        try:
            # This very machine: proxies of the environment have no part in it, nor do certificates, which
            # would be read for every request (24 ms).
            async with httpx.AsyncClient(
                base_url=self.base,
                timeout=_SECONDS,
                trust_env=False,
                verify=False,  # noqa: S501
            ) as client:
                answer = await client.request(method, path, headers=self.headers | given, **how)
        except httpx.HTTPError as error:
            why = type(error).__name__
            raise ApiError(Words(self.language)("refusals.none", why=why)) from None
        if answer.is_success:
            return answer
        try:
            told = answer.json()["error"]
            kind = texts("refusals").get(told["code"], {}).get(self.language, "")
            raise ApiError(kind + told["message"], told["code"], answer.status_code, told.get("field"))
        except (ValueError, KeyError, TypeError):
            said = Words(self.language)("refusals.other", status=answer.status_code)
            raise ApiError(said, "", answer.status_code) from None


def api_of(request: gr.Request) -> Api:
    """The API as the visitor of an event may use it.

    Args:
        request: that Gradio gives a function with a parameter of this type.
    """
    assert request.request is not None  # only where Gradio makes one by hand
    scope = request.request.scope
    host, port = scope["server"][:2]
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - listens everywhere, so here as well
        host = "127.0.0.1"
    headers = {name: value for name in _PASSED_ON if (value := request.headers.get(name))}
    place = f"{scope.get('root_path', '')}{scope.get('path', '')}".split("/")
    language = next((one for one in LANGUAGES if one in place), LANGUAGES[0])
    return Api(f"http://{f'[{host}]' if ':' in host else host}:{port}", headers, language)


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _json(answer: httpx.Response) -> Any:
    return answer.json() if answer.content else None
