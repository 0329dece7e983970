"""Waiting for an order so that it can be given up at any moment, also while it is being recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fewstep.server.pending import OnProgress, Pending

if TYPE_CHECKING:
    from starlette.requests import Request

    from fewstep.server.generation import Generator
    from fewstep.server.orders import Order


async def submit(generator: Generator, order: Order, on_progress: OnProgress | None = None) -> Pending:
    """As `Generator.submit`, in a thread. Cancelled, it takes the order back as soon as it is taken.

    Raises:
        As `Generator.submit`.
    """
    submitting = asyncio.ensure_future(asyncio.to_thread(generator.submit, order, on_progress))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        # The thread cannot be stopped: what it will have put into the queue is nobody's.
        submitting.add_done_callback(_take_back)
        raise


async def gone(request: Request) -> None:
    """Wait until a request's client is gone. Its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _take_back(submitting: asyncio.Future[Pending]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
