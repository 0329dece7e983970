"""Sessions of the live mode without a server: what is drawn for a wish, a full queue, who may resume what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fewstep.engine.adapters import AdapterUse
from fewstep.engine.backends.base import ModelInfo
from fewstep.engine.backends.fake import FakeBackend
from fewstep.errors import EngineError, NotFoundError, QueueFull, UsageError
from fewstep.server import live, native
from fewstep.server.live import Session, Sessions, Studio
from fewstep.server.orders import Drawn, Order, Upscale
from fewstep.server.schemas.live import Draw, Ping, Unclear, parse
from fewstep.server.schemas.native import GenerateBody
from fewstep.server.settings import ServerSettings

BASE = FakeBackend().info
STUDENTS = FakeBackend(students={"two": (2,), "four": (4,)}).info


def wish(**fields: Any) -> Draw:
    return Draw.model_validate({"prompt": "red", "idle_ms": 0, **fields})


def drawn(order: Order) -> Drawn:
    steps = order.settings.get("num_inference_steps", 5)
    return Drawn(
        images=[np.zeros((8, 8, 3), dtype=np.uint8)], seeds=[order.settings["seed"]],
        records=[{"num_inference_steps": steps}], infotexts=[""], ids=[], timings={"total": 0.0}, warnings=[],
        width=8, height=8, drawn_width=8, drawn_height=8,
    )  # fmt: skip


class Desk:
    """Draws at once, counts, and may be held or fail."""

    def __init__(self, info: ModelInfo = STUDENTS) -> None:
        self._info = info
        self.orders: list[Order] = []
        self.errors: list[Exception] = []
        self.go = asyncio.Event()
        self.go.set()
        self.begins = True
        """Whether an order is begun as soon as it is there."""
        self.holds: int | None = None
        """Which order, counted from one, waits until `go` is set."""
        self.sent: list[dict[str, Any]] = []

    def studio(self) -> Studio:
        async def info(_: str | None) -> ModelInfo:
            return self._info

        async def draw(order: Order, begun: Callable[[], None]) -> Drawn:
            self.orders.append(order)
            if self.begins:
                begun()
            if len(self.orders) == self.holds:
                self.go.clear()
            await self.go.wait()
            if self.errors:
                raise self.errors.pop(0)
            return drawn(order)

        return Studio(
            info=info, draw=draw, decode=lambda text, mask: np.zeros((8, 8, 3), dtype=np.uint8),
            encode=lambda *_: b"picture",
        )  # fmt: skip

    async def send(self, header: dict[str, Any], data: bytes | None) -> None:
        assert (data is not None) == (header["type"] == "frame")
        self.sent.append(header)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not true():
                await asyncio.sleep(0.001)


def settings(draw: Draw, info: ModelInfo) -> list[dict[str, Any]]:
    return [dict(order.settings) for order in live.orders(draw, info, {}, owner="ann")]


def test_first_few_steps_by_a_student_then_all_as_asked() -> None:
    asked = {"negative_prompt": "blue", "guidance_scale": 3.0, "solver": "euler", "seed": 9}
    quick, full = settings(wish(**asked), STUDENTS)
    assert quick == {"prompt": "red", "seed": 9, "num_inference_steps": 2, "student": "two"}
    assert full == {"prompt": "red", **asked}


def test_a_base_model_alone_draws_first_in_a_quarter_of_its_steps() -> None:
    quick, full = settings(wish(guidance_scale=3.0), BASE)
    assert quick == {"prompt": "red", "seed": 0, "num_inference_steps": 1, "guidance_scale": 3.0}
    assert "num_inference_steps" not in full


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"steps": 2}, [2]),
        ({"steps": 1}, [1]),
        ({"steps": 4}, [2, 4]),
        ({"final": False}, [2]),
        ({"student": "four"}, [4, None]),
        ({"student": "four", "steps": 4}, [4]),
        ({"student": "none"}, [1, None]),
    ],
)
def test_one_picture_where_both_are_the_same(fields: dict[str, Any], steps: list[int | None]) -> None:
    found = settings(wish(**fields), STUDENTS)
    assert [one.get("num_inference_steps") for one in found] == steps


def test_only_the_final_picture_is_kept() -> None:
    made = live.orders(wish(save=True), STUDENTS, {}, owner="ann")
    assert [order.save for order in made] == [False, True]
    assert {(order.owner, order.client) for order in made} == {("ann", "live")}
    assert not live.orders(wish(save=True, final=False), STUDENTS, {}, owner="")[0].save


ALL: dict[str, Any] = {
    "negative_prompt": "blue", "guidance_scale": 3.0, "guidance_rescale": 0.5, "solver": "euler", "eta": 0.5,
    "seed": 9, "student": "two", "num_inference_steps": 4, "width": 64, "height": 32, "clip_skip": 1,
    "emphasis": "no_norm", "strength": 0.5, "image_guidance_scale": 1.5, "masked_content": "noise",
    "mask_blur": 3, "only_masked": True, "padding": 8, "invert_mask": True, "variation_seed": 4,
    "variation_strength": 0.25, "insist": True, "outpaint": {"left": 8},
    "adapters": [{"name": "ink", "weight": 0.5}], "hires": {"scale": 2.0, "steps": 3},
}  # fmt: skip


def test_the_final_picture_is_that_of_the_same_order_by_the_native_api() -> None:
    """Whatever a form holds: what is seen while typing is what is drawn by the button."""
    body = {"prompt": "red", **ALL, "upscale": {"name": "auto", "width": 256, "height": 128}}
    ours = live.orders(Draw.model_validate(body), STUDENTS, {}, owner="ann")[-1]
    theirs = native.order(GenerateBody.model_validate(body), ServerSettings(), owner="ann")
    default = GenerateBody.model_fields
    named = {name for name, value in theirs.settings.items() if name in ALL or value != default[name].default}
    assert {name: theirs.settings[name] for name in named} == {name: ours.settings[name] for name in named}
    assert named >= set(ALL)
    assert ours.upscale == theirs.upscale is not None


def test_every_field_of_the_native_api_is_one_of_the_live_modes_or_has_no_meaning_there() -> None:
    """Else a form's setting would be lost while typing."""
    without = {"kind", "n", "deterministic", "parent", "deadline"}
    assert set(GenerateBody.model_fields) - without <= set(Draw.model_fields)


def test_the_first_picture_has_the_adapters_and_neither_second_pass_nor_upscaler() -> None:
    body = {"adapters": [{"name": "ink"}], "hires": {"scale": 2.0}, "upscale": {"name": "auto"}}
    first, full = live.orders(wish(**body), STUDENTS, {}, owner="")
    assert first.settings["adapters"] == full.settings["adapters"] == (AdapterUse(name="ink"),)
    assert ("hires" in first.settings, "hires" in full.settings) == (False, True)
    assert (first.upscale, full.upscale) == (None, Upscale(name="auto"))


def test_a_first_picture_that_is_begun_is_shown_though_somebody_types_on() -> None:
    """Else steady typing, faster than a picture is drawn, would show none."""

    async def run() -> None:
        desk = Desk()
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        desk.go.clear()
        session.want(wish(id=1))
        await desk.until(lambda: desk.orders)
        session.want(wish(prompt="blue", id=2))
        await asyncio.sleep(0.02)
        desk.go.set()
        await desk.until(lambda: desk.sent and desk.sent[-1].get("final"))
        assert [(one["id"], one["final"]) for one in desk.sent] == [(1, False), (2, False), (2, True)]
        running.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("why", ["waits", "slow", "full", "stopped"])
def test_what_is_not_wanted_any_more_is_given_up(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits in the queue, when it takes too long, when it is the full picture, after a stop."""
    monkeypatch.setattr(live, "FINISHING", 0.05 if why == "slow" else 60.0)

    async def run() -> None:
        desk = Desk()
        desk.begins = why != "waits"
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        desk.holds = orders = 2 if why == "full" else 1
        session.want(wish(id=1))
        await desk.until(lambda: len(desk.orders) == orders)
        if why == "stopped":
            session.stop()
        else:
            session.want(wish(prompt="blue", id=2))
            await desk.until(lambda: len(desk.orders) == orders + 1)
        await asyncio.sleep(0.02)
        desk.go.set()
        if why == "stopped":
            await asyncio.sleep(0.02)
            assert desk.sent == []
        else:
            await desk.until(lambda: desk.sent and desk.sent[-1].get("final") and desk.sent[-1]["id"] == 2)
            assert [one["id"] for one in desk.sent] == [1, 2, 2][why != "full" :]
        running.cancel()

    asyncio.run(run())


def test_an_unknown_student_is_told() -> None:
    with pytest.raises(NotFoundError):
        live.orders(wish(student="other"), STUDENTS, {}, owner="")


def test_a_full_queue_is_asked_again_until_the_wish_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        desk = Desk()
        desk.errors = [QueueFull("full", retry_after=0.0), QueueFull("full", retry_after=0.0)]
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        session.want(wish())
        await desk.until(lambda: desk.sent and desk.sent[-1].get("final"))
        assert [one["type"] for one in desk.sent] == ["error", "frame", "frame"]
        assert desk.sent[0]["error"]["retry_after"] == 0.0
        desk.errors = [QueueFull("full", retry_after=60.0)]
        session.want(wish(prompt="blue", id=1))
        await desk.until(lambda: desk.sent[-1]["type"] == "error")
        session.want(wish(prompt="green", id=2))
        await desk.until(lambda: desk.sent[-1].get("final"))
        assert {one["id"] for one in desk.sent[-2:]} == {2}
        running.cancel()

    asyncio.run(run())


def test_a_bug_of_the_drawing_is_told_and_the_session_goes_on() -> None:
    async def run() -> None:
        desk = Desk()
        desk.errors = [ZeroDivisionError("in the middle of it")]
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        session.want(wish())
        await desk.until(lambda: desk.sent)
        assert "middle" not in desk.sent[0]["error"]["message"]
        session.want(wish(prompt="blue"))
        await desk.until(lambda: desk.sent[-1].get("final"))
        running.cancel()

    asyncio.run(run())


def test_a_wish_that_failed_is_tried_again_when_it_is_sent_again() -> None:
    async def run() -> None:
        desk = Desk()
        desk.errors = [EngineError("not finite")]
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        session.want(wish())
        await desk.until(lambda: desk.sent)
        assert desk.sent[0]["error"]["code"] == "engine_failed"
        assert session.want(wish()) is None
        await desk.until(lambda: desk.sent[-1].get("final"))
        running.cancel()

    asyncio.run(run())


def test_what_was_shown_is_not_drawn_again_after_a_break() -> None:
    async def run() -> None:
        desk = Desk()
        session = Session(desk.studio())
        running = asyncio.ensure_future(session.run(desk.send))
        session.want(wish(idle_ms=10_000))
        await desk.until(lambda: desk.sent)
        running.cancel()
        await asyncio.wait({running})
        session.want(wish(idle_ms=10_000, id=5))  # sent again by a client that does not know
        await session.resume(desk.send)
        assert [one["type"] for one in desk.sent] == ["frame", "resumed", "frame"]
        assert desk.sent[2]["again"] and desk.sent[2]["frame"] == desk.sent[0]["frame"]
        assert len(desk.orders) == 1

    asyncio.run(run())


def test_sessions_are_kept_for_a_while_for_their_owner_only() -> None:
    async def run() -> None:
        now = [0.0]
        desk, sessions = Desk(), Sessions(most=2, clock=lambda: now[0])
        mine = Session(desk.studio(), "ann", clock=lambda: now[0])
        sessions.add(mine)
        with pytest.raises(UsageError):
            sessions.find(mine.token, "bob")
        sessions.leave(mine)
        now[0] = live.RESUME - 1
        assert sessions.find(mine.token, "ann") is mine
        now[0] = 10 * live.RESUME  # connected again: kept
        assert sessions.find(mine.token, "ann") is mine
        sessions.leave(mine)
        now[0] += live.RESUME + 1
        with pytest.raises(UsageError):
            sessions.find(mine.token, "ann")

    asyncio.run(run())


def test_there_are_only_so_many_sessions_and_those_that_were_left_make_room() -> None:
    async def run() -> None:
        desk, sessions = Desk(), Sessions(most=2)
        one, two, three, four = (Session(desk.studio()) for _ in range(4))
        sessions.add(one)
        sessions.add(two)
        with pytest.raises(QueueFull):
            sessions.add(three)
        sessions.leave(one)
        sessions.add(three)
        with pytest.raises(UsageError):
            sessions.find(one.token, "")
        sessions.drop(two)
        sessions.add(four)

    asyncio.run(run())


def test_messages_are_read() -> None:
    assert isinstance(parse('{"type": "ping"}'), Ping)
    drawing = parse('{"prompt": "red", "steps": 4}')
    assert isinstance(drawing, Draw) and drawing.num_inference_steps == 4
    assert drawing.same(wish(steps=4, idle_ms=400, id="x"))
    assert not drawing.same(wish(steps=5, idle_ms=400))
    for text in (
        "",
        "null",
        "[" * 100_000,
        '{"prompt": 1}',
        '{"prompt": "a", "id": 1.5}',
        '{"prompt": "a", "id": {}}',
    ):
        with pytest.raises(Unclear):
            parse(text)
    with pytest.raises(Unclear) as caught:
        parse('{"id": 3, "prompt": "a", "seed": "x"}')
    assert (caught.value.id, caught.value.field) == (3, "seed")
