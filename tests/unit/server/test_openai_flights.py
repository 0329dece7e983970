"""A request that is sent again is done once; without any server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from fewstep.errors import Cancelled, ConflictError, EngineError, QueueFull
from fewstep.server.openai import flights
from fewstep.server.openai.flights import Flights, Ticket


@dataclass(frozen=True)
class Answer:
    number: int
    size: int = 10


class Maker:
    """Counts what it began; each answer waits until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.size = 10

    async def __call__(self) -> Answer:
        self.begun += 1
        number = self.begun
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return Answer(number, self.size)


def of_body(attempt: int | None, print_: str = "a", owner: str = "") -> Ticket:
    return Ticket(owner, print_, attempt=attempt)


def of_key(key: str, print_: str = "a", owner: str = "") -> Ticket:
    return Ticket(owner, print_, key=key)


def hung_up() -> tuple[Callable[[], Awaitable[object]], asyncio.Event]:
    event = asyncio.Event()
    return event.wait, event


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_repetition_joins_the_job_whose_client_is_gone() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](linger=5.0), Maker()
        gone, hang_up = hung_up()
        first = asyncio.ensure_future(fleet.answer(of_body(0), make, gone))
        await settle()
        hang_up.set()
        with pytest.raises(Cancelled):
            await first
        second = asyncio.ensure_future(fleet.answer(of_body(1), make))
        await settle()
        make.go.set()
        assert (await second).number == 1
        assert (make.begun, make.cancelled) == (1, 0)

    asyncio.run(run())


def test_a_job_that_nobody_comes_back_for_is_stopped() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](linger=0.02), Maker()
        gone, hang_up = hung_up()
        hang_up.set()
        with pytest.raises(Cancelled):
            await fleet.answer(of_body(0), make, gone)
        assert make.cancelled == 0
        await asyncio.sleep(0.1)
        assert make.cancelled == 1
        # A late repetition is a new job, not a stopped one.
        make.go.set()
        assert (await fleet.answer(of_body(1), make)).number == 2

    asyncio.run(run())


def test_without_a_sign_of_repetition_the_job_ends_with_its_client() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](linger=60.0), Maker()
        gone, hang_up = hung_up()
        hang_up.set()
        with pytest.raises(Cancelled):
            await fleet.answer(Ticket("", "a"), make, gone)
        await settle()
        assert make.cancelled == 1

    asyncio.run(run())


def test_equal_first_attempts_are_two_jobs() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        make.go.set()
        one, two = await asyncio.gather(fleet.answer(of_body(0), make), fleet.answer(of_body(0), make))
        assert {one.number, two.number} == {1, 2}

    asyncio.run(run())


def test_a_repetition_of_an_answered_request_gets_that_answer() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        make.go.set()
        first = await fleet.answer(of_body(0), make)
        assert await fleet.answer(of_body(1), make) is first
        assert make.begun == 1
        # ... and no other's: of another owner, or another body.
        assert (await fleet.answer(of_body(1, owner="other"), make)).number == 2
        assert (await fleet.answer(of_body(1, "b"), make)).number == 3

    asyncio.run(run())


def test_what_was_turned_away_is_begun_when_it_comes_again() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        make.go.set()
        other = await fleet.answer(of_body(0), make)  # somebody's equal request, answered
        make.error = QueueFull("full")
        with pytest.raises(QueueFull):
            await fleet.answer(of_body(0), make)
        make.error = None
        again = await fleet.answer(of_body(1), make)
        assert again.number != other.number
        # The next repetition has nothing that was turned away, and gets the latest.
        assert await fleet.answer(of_body(2), make) is again

    asyncio.run(run())


def test_a_failure_of_the_model_is_told_again_and_not_drawn_again() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        make.go.set()
        make.error = EngineError("not finite")
        for attempt in (0, 1, 2):
            with pytest.raises(EngineError):
                await fleet.answer(of_body(attempt), make)
        assert make.begun == 1

    asyncio.run(run())


def test_a_key_joins_equal_requests_at_once_and_refuses_others() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        both = [asyncio.ensure_future(fleet.answer(of_key("k"), make)) for _ in range(2)]
        await settle()
        assert fleet.known(of_key("k"))
        assert not fleet.known(of_key("other"))
        with pytest.raises(ConflictError):
            await fleet.answer(of_key("k", "b"), make)
        make.go.set()
        assert [one.number for one in await asyncio.gather(*both)] == [1, 1]
        assert (await fleet.answer(of_key("k", owner="other"), make)).number == 2

    asyncio.run(run())


def test_one_of_two_who_wait_may_leave() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](linger=0.0), Maker()
        gone, hang_up = hung_up()
        leaves = asyncio.ensure_future(fleet.answer(of_key("k"), make, gone))
        stays = asyncio.ensure_future(fleet.answer(of_key("k"), make))
        await settle()
        hang_up.set()
        with pytest.raises(Cancelled):
            await leaves
        await asyncio.sleep(0.01)
        make.go.set()
        assert (await stays).number == 1

    asyncio.run(run())


def test_answers_are_kept_for_a_while_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        now = [0.0]
        fleet, make = Flights[Answer](keep=10.0, clock=lambda: now[0]), Maker()
        make.go.set()
        await fleet.answer(of_key("old"), make)
        now[0] = 9.0
        await fleet.answer(of_key("young"), make)
        assert fleet.known(of_key("old"))
        now[0] = 10.5
        assert not fleet.known(of_key("old"))
        assert fleet.known(of_key("young"))
        monkeypatch.setattr(flights, "KEPT_BYTES", 100)
        make.size = 60
        await fleet.answer(of_key("large"), make)
        await fleet.answer(of_key("larger"), make)
        assert [fleet.known(of_key(key)) for key in ("young", "large", "larger")] == [False, False, True]

    asyncio.run(run())


def test_closing_stops_what_is_on_its_way() -> None:
    async def run() -> None:
        fleet, make = Flights[Answer](), Maker()
        waiting = asyncio.ensure_future(fleet.answer(of_key("k"), make))
        await settle()
        await fleet.close()
        with pytest.raises(Cancelled):
            await waiting
        assert make.cancelled == 1

    asyncio.run(run())
