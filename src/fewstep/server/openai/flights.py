"""A request that comes twice is done once.

Clients send a request again when the answer fails or is late. The `openai` client (3.57) repeats it twice,
and sends no idempotency key: what tells a repetition is ``x-stainless-retry-count`` above 0 and the same
body. A client that sends ``Idempotency-Key`` says itself which requests are the same. Requests with neither
are never joined, and end as soon as their client is gone.

A first attempt always begins anew, since the same words twice are two pictures. A repetition takes over what
its forerunner left: first a job whose client is gone, then nothing where the forerunner was turned away
before it began, then the latest of the same body.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from fewstep.errors import Cancelled, ConflictError, Expired, NotReady, QueueFull

LINGER = 2.0
"""Seconds that a job goes on after its client is gone, for a repetition to take it over; the client waits at
most 1 s before its first two repetitions."""
KEEP = 120.0
"""Seconds that an answer is kept."""
KEPT_BYTES = 64 << 20
KEPT_ANSWERS = 256

_UNBEGUN = (QueueFull, NotReady)
"""Errors of orders that were not begun: repetitions are new orders."""
_FORGOTTEN = (*_UNBEGUN, Cancelled, Expired)
"""Errors that are no answer to a repetition."""


class Sized(Protocol):
    """An answer that knows how large it is."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...


T = TypeVar("T", bound=Sized)


@dataclass(frozen=True, slots=True)
class Ticket:
    """By what a request is told from others."""

    owner: str
    fingerprint: str
    """Of the whole request, its files too."""
    key: str | None = None
    """The client's own name for it."""
    attempt: int | None = None
    """From 0, where the client counts them."""

    @property
    def joins(self) -> bool:
        """Whether a repetition can be told at all."""
        return self.key is not None or self.attempt is not None

    @property
    def name(self) -> tuple[str, str, str]:
        """What equal requests share."""
        if self.key is not None:
            return self.owner, "key", self.key
        return self.owner, "body", self.fingerprint


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    ticket: Ticket
    task: asyncio.Task[T]
    waiting: int = 0
    delivered: bool = False
    """Whether a client stayed until the answer was there."""
    landed: float = math.inf
    """When the answer was there, in seconds."""


@dataclass(slots=True)
class _Shelf(Generic[T]):
    """All of one name."""

    flights: list[_Flight[T]] = field(default_factory=list)
    turned_away: int = 0
    """Attempts that were not begun and not yet repeated."""


class Flights(Generic[T]):
    """Jobs of one process that may be asked for again. To be used in one event loop.

    Args:
        linger: see `LINGER`.
        keep: see `KEEP`.
        clock: seconds, monotonic.
    """

    def __init__(
        self, *, linger: float = LINGER, keep: float = KEEP, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._linger, self._keep, self._clock = linger, keep, clock
        self._shelves: dict[tuple[str, str, str], _Shelf[T]] = {}

    async def answer(
        self,
        ticket: Ticket,
        make: Callable[[], Coroutine[Any, Any, T]],
        gone: Callable[[], Awaitable[object]] | None = None,
    ) -> T:
        """The answer to a request, made or taken over.

        Args:
            ticket: of the request.
            make: draws it; called only where there is nothing to take over, and cancelled when nobody waits.
            gone: waits until the client is gone.

        Raises:
            ConflictError: the client's key was used for another request.
            Cancelled: the client is gone.
            FewstepError: whatever ``make`` raises.
        """
        self._sweep()
        flight = self._found(ticket)
        if flight is None:
            flight = _Flight(ticket, asyncio.ensure_future(make()))
            if ticket.joins:
                self._shelves.setdefault(ticket.name, _Shelf()).flights.append(flight)
            flight.task.add_done_callback(lambda _: self._land(flight))
        return await self._wait(flight, gone)

    def known(self, ticket: Ticket) -> bool:
        """Whether the answer would be taken over.

        Raises:
            ConflictError: as `answer`.
        """
        self._sweep()
        return self._found(ticket, take=False) is not None

    async def close(self) -> None:
        """Cancel whatever is on its way, and forget everything."""
        tasks = [one.task for shelf in self._shelves.values() for one in shelf.flights]
        self._shelves.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, flight: _Flight[T], gone: Callable[[], Awaitable[object]] | None) -> T:
        flight.waiting += 1
        watch = None if gone is None else asyncio.ensure_future(gone())
        try:
            await asyncio.wait(
                {flight.task} if watch is None else {flight.task, watch},
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not flight.task.done():
                raise Cancelled("the client is gone")
            flight.delivered = True
            return _result(flight.task)
        finally:
            flight.waiting -= 1
            if watch is not None:
                watch.cancel()
            if not flight.waiting and not flight.task.done():
                self._leave(flight)

    def _leave(self, flight: _Flight[T]) -> None:
        """Nobody waits any more: stop it, at once or when nobody has come in a while."""
        if not flight.ticket.joins:
            flight.task.cancel()
            return

        def stop() -> None:
            if not flight.waiting and not flight.task.done():
                self._remove(flight)  # nobody may join it now
                flight.task.cancel()

        asyncio.get_running_loop().call_later(self._linger, stop)

    def _found(self, ticket: Ticket, *, take: bool = True) -> _Flight[T] | None:
        shelf = self._shelves.get(ticket.name) if ticket.joins else None
        if shelf is None:
            return None
        if ticket.key is not None:
            for flight in shelf.flights:
                if flight.ticket.fingerprint != ticket.fingerprint:
                    raise ConflictError(
                        "the idempotency key was used for another request: send that one again, or give a "
                        "new key"
                    )
                return flight
            return None
        if not ticket.attempt:
            return None
        left = [one for one in shelf.flights if not one.waiting and not one.delivered]
        if left:
            return left[-1]
        if shelf.turned_away:
            if take:
                shelf.turned_away -= 1
            return None
        return shelf.flights[-1] if shelf.flights else None

    def _land(self, flight: _Flight[T]) -> None:
        flight.landed = self._clock()
        error = None if flight.task.cancelled() else flight.task.exception()
        if flight.task.cancelled() or isinstance(error, _FORGOTTEN):
            self._remove(flight)
        if isinstance(error, _UNBEGUN) and (shelf := self._shelves.get(flight.ticket.name)) is not None:
            shelf.turned_away += 1

    def _remove(self, flight: _Flight[T]) -> None:
        shelf = self._shelves.get(flight.ticket.name)
        if shelf is not None and flight in shelf.flights:
            shelf.flights.remove(flight)

    def _sweep(self) -> None:
        """Let go of what is old, and of the oldest where there is too much."""
        now = self._clock()
        landed = [one for shelf in self._shelves.values() for one in shelf.flights if one.task.done()]
        landed.sort(key=lambda flight: flight.landed)
        size, count = sum(map(_size, landed)), len(landed)
        for flight in landed:
            if now - flight.landed < self._keep and size <= KEPT_BYTES and count <= KEPT_ANSWERS:
                break
            self._shelves[flight.ticket.name].flights.remove(flight)
            size, count = size - _size(flight), count - 1
        for name in [name for name, shelf in self._shelves.items() if not shelf.flights]:
            shelf = self._shelves[name]
            if not shelf.turned_away or len(self._shelves) > KEPT_ANSWERS:
                del self._shelves[name]


def _result(task: asyncio.Task[T]) -> T:
    if task.cancelled():
        raise Cancelled("the order was stopped")
    return task.result()


def _size(flight: _Flight[Any]) -> int:
    task = flight.task
    return 0 if task.cancelled() or task.exception() is not None else int(task.result().size)
