"""What the routes share: a wish is checked, drawn once however often it is sent, and told of while it is."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fewstep.errors import NotFoundError, NotReady, OutputError, UsageError
from fewstep.prompt import infotext
from fewstep.server import drawing, media
from fewstep.server.openai import results
from fewstep.server.openai.flights import Flights, Ticket
from fewstep.server.openai.results import Pictures
from fewstep.server.openai.wishes import Source, Wish, order
from fewstep.server.pending import KnownJob, OnProgress, finish
from fewstep.server.schemas.openai import UnknownModel

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

    from fewstep.server.services import Services

IDEMPOTENCY = "idempotency-key"
RETRIES = "x-stainless-retry-count"
"""Headers, see `fewstep.server.openai.flights`."""


def flights_of(app: FastAPI) -> Flights[Pictures]:
    """Requests of this process that may be sent again."""
    if not hasattr(app.state, "openai_flights"):
        app.state.openai_flights = Flights[Pictures]()
    found: Flights[Pictures] = app.state.openai_flights
    return found


def ticket(request: Request, owner: str, fields: Mapping[str, Any], digests: Mapping[str, Any]) -> Ticket:
    """By what a request is told from others.

    Raises:
        UsageError: an idempotency key that is empty or too long.
    """
    from fewstep.server.jobstore import fingerprint  # it brings the database, which a start does not wait for

    print_ = fingerprint({"path": request.url.path, "fields": dict(fields), "files": dict(digests)})
    key = request.headers.get(IDEMPOTENCY)
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        raise UsageError("idempotency-key: give 1 to 255 characters that print")
    count = request.headers.get(RETRIES, "")
    attempt = int(count) if count.isascii() and count.isdigit() and len(count) < 4 else None
    return Ticket(owner=owner, fingerprint=print_, key=key, attempt=attempt)


class Work:
    """One request that is being answered.

    Args:
        services: of the server.
        wish: what is wanted.
        ticket: by what it is known.
        source: the picture to be changed.
    """

    def __init__(
        self, services: Services, wish: Wish, ticket: Ticket, *, source: Source | None = None
    ) -> None:
        self._services, self._wish, self._ticket, self._source = services, wish, ticket, source
        self.taken = asyncio.Event()
        """Set when the order is in the queue."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the finished picture, where it is known before."""
        return self._wish.size or (None if self._source is None else self._source.size)

    async def pictures(self, on_progress: OnProgress | None = None) -> Pictures:
        """Draw; cancelled, the order is taken back.

        Raises:
            UnknownModel: no such model.
            FewstepError: as `Generator.submit`, and by the drawing.
        """
        services, wish = self._services, self._wish
        owner, source = self._ticket.owner, self._source
        try:
            info = await services.generator.ainfo(wish.model)
        except NotFoundError as error:
            raise UnknownModel(str(error)) from None
        made = order(wish, info, owner=owner, save=services.settings.save, source=source)
        if self._ticket.key is not None:
            made = dataclasses.replace(
                made, idempotency_key=self._ticket.key, fingerprint=self._ticket.fingerprint
            )
        tokens = await asyncio.to_thread(results.count_tokens, info, made.settings["prompt"])
        counts = {"tokens": tokens, "sent": 0 if source is None else 1}
        try:
            pending = await drawing.submit(services.generator, made, on_progress)
        except KnownJob as known:
            return await self._known(known.job_id, counts)
        self.taken.set()
        drawn = await finish(pending)
        if wish.as_url and not drawn.ids:
            raise OutputError("the pictures could not be kept, so they have no URL: ask for b64_json")
        return await asyncio.to_thread(results.finish, wish, drawn, **counts)

    async def _known(self, job_id: str, counts: Mapping[str, int]) -> Pictures:
        """A job that has ended: its pictures from the history, or once more where it came to nothing."""
        from fewstep.server.jobstore import AGAIN, UNFINISHED

        services, owner = self._services, self._ticket.owner
        row = await asyncio.to_thread(services.jobs.get, job_id, owner)
        if row.state in AGAIN:
            row = await asyncio.to_thread(services.jobs.requeue, job_id, owner)
            pending = await asyncio.to_thread(services.generator.again, job_id, row.order, owner)
            self.taken.set()
            drawn = await finish(pending)
            return await asyncio.to_thread(results.finish, self._wish, drawn, **counts)
        if row.state in UNFINISHED:
            raise NotReady("the request with this idempotency key is being drawn elsewhere: ask again later")
        result = row.result or {}
        ids: list[str] = list(result.get("images") or [])
        if not ids:
            raise UsageError(
                "the idempotency key is of a request that was answered, and its pictures were not kept: give "
                "a new key"
            )
        files = [] if self._wish.as_url else await asyncio.to_thread(self._kept, ids)
        return Pictures(
            files=files, ids=ids, width=int(result["width"]), height=int(result["height"]),
            created=int(row.finished or row.created), **counts,
        )  # fmt: skip

    def _kept(self, ids: list[str]) -> list[bytes]:
        history, owner, limits = self._services.history, self._ticket.owner, self._services.settings.limits
        files = []
        for one in ids:
            data = history.open(one, owner)
            if self._wish.kind != "png":
                row = history.get(one, owner)
                image = media.decode_image(data, what="picture", limits=limits)
                data = results.encode(
                    self._wish, image, infotext=infotext.from_record(row.record), record=row.record
                )
            files.append(data)
        return files
