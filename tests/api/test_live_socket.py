"""The live mode over a real WebSocket, with the fake backend held at every denoiser call."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.server.routes import live as route

FEW, FULL = 1, 5
"""Steps of the quickest student here, and of the model itself."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("live"), students={"one": (1,), "four": (4,)}) as served:
        yield served


class Screen:
    """A client."""

    def __init__(self, server: Served) -> None:
        url = server.url.replace("http", "ws", 1) + "/api/v1/live"
        self._stack = contextlib.ExitStack()
        self.socket: ClientConnection = self._stack.enter_context(connect(url, max_size=None, proxy=None))
        self.hello = self.next()

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def next(self, timeout: float = 20.0) -> dict[str, Any]:
        """The next message; of a frame also its picture, as ``pixels``."""
        text = self.socket.recv(timeout)
        assert isinstance(text, str)
        told: dict[str, Any] = json.loads(text)
        if told["type"] == "frame":
            data = self.socket.recv(timeout)
            assert isinstance(data, bytes)
            assert len(data) == told["bytes"]
            image = Image.open(io.BytesIO(data))
            assert image.format == told["format"].upper()
            assert image.size == (told["width"], told["height"])
            told["pixels"] = np.asarray(image.convert("RGB"))
            told["info"] = dict(image.info)
        return told

    def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of a kind; those before it are passed over."""
        while True:
            told = self.next()
            if told["type"] == kind and all(told.get(name) == value for name, value in fields.items()):
                return told

    def silent(self, seconds: float) -> bool:
        try:
            self.next(seconds)
        except TimeoutError:
            return True
        return False


@pytest.fixture
def screen(server: Served) -> Iterator[Screen]:
    made = Screen(server)
    yield made
    made.socket.close()
    until(server.idle)


def test_a_wish_is_drawn_quickly_and_then_in_full(server: Served, screen: Screen) -> None:
    before = server.backend.calls
    screen.say(id=1, prompt="a red apple", seed=5, format="png", idle_ms=50)
    quick, full = screen.next(), screen.next()
    assert [(one["type"], one["id"], one["frame"], one["final"]) for one in (quick, full)] == [
        ("frame", 1, 1, False), ("frame", 1, 2, True),
    ]  # fmt: skip
    assert [one["num_inference_steps"] for one in (quick, full)] == [FEW, FULL]
    assert [one["seed"] for one in (quick, full)] == [5, 5]
    assert server.backend.calls - before == FEW + FULL
    assert full["info"]["parameters"].startswith("a red apple")
    assert full["image_id"] is None
    assert (quick["pixels"] != full["pixels"]).any()


def test_typing_quickly_draws_only_what_is_still_wanted(server: Served, screen: Screen) -> None:
    """Ten wishes while the first is at its only step: the first and the last are drawn, none between."""
    text = "red dog on"
    assert len(text) == 10
    before = server.backend.calls
    with server.held() as gate:
        screen.say(id=1, prompt=text[:1], idle_ms=300)
        until(server.backend.waiting.is_set)
        for length in range(2, 11):
            screen.say(id=length, prompt=text[:length], idle_ms=300)
        for _ in range(9):
            screen.until("replaced")
        until(lambda: any(one.request.prompt == text for one in server.services.generator.waiting()))
        gate.set()
        frames = []
        while not frames or not frames[-1]["final"]:
            told = screen.next()
            if told["type"] == "frame":
                frames.append(told)
    assert frames[-1]["id"] == 10
    assert [one["id"] for one in frames if one["id"] not in (1, 10)] == []
    # One step of the first wish, which had begun; the last one's quick picture and its full one.
    assert server.backend.calls - before == 1 + FEW + FULL
    assert screen.silent(0.2)


def test_a_newer_wish_stops_the_older_between_steps(server: Served, screen: Screen) -> None:
    screen.say(id=1, prompt="red", idle_ms=0)
    assert screen.next()["final"] is False
    with server.held() as gate:
        # The final picture of five steps may have begun: it stops at its next step.
        screen.say(id=2, prompt="blue", idle_ms=0)
        until(server.backend.waiting.is_set)
        before = server.backend.calls
        screen.say(id=3, prompt="green", final=False)
        screen.until("replaced", id=2, by=3)
        until(lambda: len(server.services.generator.waiting()) == 2)
        gate.set()
        told = screen.until("frame", id=3)
    assert told["final"] is False
    assert server.backend.calls - before <= FEW + 1


def test_equal_wishes_are_drawn_once(server: Served, screen: Screen) -> None:
    with server.held() as gate:
        screen.say(id="a", prompt="red", idle_ms=50)
        until(server.backend.waiting.is_set)
        before = server.backend.calls
        screen.say(id="b", prompt="red", idle_ms=50)
        assert screen.next() == {"type": "same", "id": "b", "frame": None, "final": False}
        gate.set()
        assert [screen.next()["id"] for _ in range(2)] == ["b", "b"]
    assert server.backend.calls - before == FEW + FULL - 1
    screen.say(id="c", prompt="red", idle_ms=50)
    assert screen.next() == {"type": "same", "id": "c", "frame": 2, "final": True}
    assert server.backend.calls - before == FEW + FULL - 1


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        ("{", "unclear", None),
        ("[1]", "unclear", None),
        ('{"type": "dance"}', "unclear", "type"),
        ('{"id": 4}', "unclear", "prompt"),
        ('{"id": 4, "prompt": "red", "seed": -1}', "unclear", "seed"),
        ('{"id": 4, "prompt": "red", "colour": 1}', "unclear", "colour"),
        ('{"id": 4, "prompt": "red", "guidance_scale": NaN}', "unclear", "guidance_scale"),
        ('{"id": 4, "prompt": "red", "model": "other"}', "not_found", None),
        ('{"id": 4, "prompt": "red", "student": "none such"}', "not_found", "student"),
        ('{"id": 4, "prompt": "red", "width": 65, "height": 64}', "invalid_value", "width"),
        ('{"id": 4, "prompt": "red", "image": "no base64!"}', "invalid_data", None),
        ('{"id": 4, "prompt": "red", "image": "http://example.org/a.png"}', "invalid_value", None),
        ('{"type": "resume", "token": "unknown"}', "invalid_value", "token"),
        (b"\x00", "unclear", None),
    ],
)
def test_what_is_wrong_is_told_and_the_connection_stays(
    screen: Screen, message: str | bytes, code: str, field: str | None
) -> None:
    screen.socket.send(message)
    told = screen.next()
    assert told["type"] == "error"
    assert (told["error"]["code"], told["error"]["field"]) == (code, field)
    assert told["error"]["message"]
    if b'"id": 4' in (message if isinstance(message, bytes) else message.encode()):
        assert told["id"] == 4
    screen.say(id=5, prompt="red", final=False)
    assert screen.next()["id"] == 5


def test_a_wish_that_failed_may_be_sent_again(
    server: Served, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.backend, "_poison_after", server.backend.calls)
        screen.say(id=1, prompt="red", final=False)
        assert screen.next()["error"]["code"] == "engine_failed"
    screen.say(id=2, prompt="red", final=False)
    assert screen.next()["type"] == "frame"


def test_a_message_that_is_too_long_is_refused(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MAX_MESSAGE", 100)
    screen.say(id=1, prompt="x" * 200)
    assert screen.next()["error"]["code"] == "too_large"


def test_ping_and_stop(server: Served, screen: Screen) -> None:
    screen.say(type="ping", id=9)
    assert screen.next() == {"type": "pong", "id": 9}
    with server.held() as gate:
        screen.say(id=1, prompt="blue", idle_ms=0)
        until(server.backend.waiting.is_set)
        before = server.backend.calls
        screen.say(type="stop", id=2)
        assert screen.next() == {"type": "stopped", "id": 2}
        until(lambda: all(one.task.cancelled() for one in server.services.generator.waiting()))
        gate.set()
        until(server.idle)
    assert server.backend.calls == before
    assert screen.silent(0.1)


def test_a_connection_that_says_nothing_is_closed(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "IDLE", 0.2)
    made = Screen(server)
    with pytest.raises(ConnectionClosed) as caught:
        made.next()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == route.GONE_IDLE


def test_a_client_that_goes_away_stops_its_drawing(server: Served) -> None:
    made = Screen(server)
    made.say(id=1, prompt="blue", idle_ms=0)
    assert made.next()["final"] is False
    with server.held() as gate:
        made.say(id=2, prompt="green", idle_ms=0)
        until(server.backend.waiting.is_set)
        before = server.backend.calls
        made.socket.close()
        until(lambda: all(one.task.cancelled() for one in server.services.generator.waiting()))
        gate.set()
        until(server.idle)
    assert server.backend.calls == before


def test_a_client_that_comes_back_sees_the_last_picture_and_gets_the_rest(server: Served) -> None:
    made = Screen(server)
    made.say(id=1, prompt="blue", idle_ms=10_000, format="png")
    quick = made.next()
    made.socket.close()
    again = Screen(server)
    assert again.hello["token"] != made.hello["token"]
    again.say(type="resume", token=made.hello["token"])
    assert again.next() == {"type": "resumed", "token": made.hello["token"], "id": 1, "final": False}
    shown = again.next()
    assert shown["again"] is True and shown["frame"] == quick["frame"]
    assert (shown["pixels"] == quick["pixels"]).all()
    again.say(id=2, prompt="blue", idle_ms=0, format="png")
    assert again.until("frame", final=True)["frame"] > quick["frame"]
    again.socket.close()


def test_what_was_wanted_when_the_connection_broke_is_drawn_afterwards(server: Served) -> None:
    made = Screen(server)
    made.say(id=1, prompt="green", idle_ms=200)
    made.next()
    made.socket.close()
    again = Screen(server)
    before = server.backend.calls
    again.say(type="resume", token=made.hello["token"])
    assert again.until("frame", final=True)["id"] == 1
    assert server.backend.calls - before == FULL  # its quick picture had been shown
    again.socket.close()


def test_a_session_has_one_connection(server: Served) -> None:
    made = Screen(server)
    again = Screen(server)
    again.say(type="resume", token=made.hello["token"])
    assert again.next()["type"] == "resumed"
    with pytest.raises(ConnectionClosed) as caught:
        made.next()
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == route.TAKEN_OVER
    again.say(id=1, prompt="red", final=False)
    assert again.next()["type"] == "frame"
    again.socket.close()


def test_few_steps_are_one_picture(screen: Screen) -> None:
    screen.say(id=1, prompt="red", steps=1)
    told = screen.next()
    assert told["final"] is True
    assert screen.silent(0.1)


def test_a_picture_to_start_from(screen: Screen) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 10, 10)).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    screen.say(id=1, prompt="", image=text, strength=0.25, final=False, format="webp")
    told = screen.next()
    assert told["type"] == "frame" and told["format"] == "webp"


def test_a_final_picture_is_kept_where_it_is_asked_for(server: Served, screen: Screen) -> None:
    screen.say(id=1, prompt="red apple", save=True, idle_ms=0)
    quick, full = screen.next(), screen.next()
    assert quick["image_id"] is None
    assert server.services.history.open(full["image_id"], "")


def test_the_first_picture_comes_at_once(screen: Screen) -> None:
    """No target on a shared machine; that nothing waits for the idle time is what this shows."""
    began = time.monotonic()
    screen.say(id=1, prompt="a dog", idle_ms=10_000)
    assert screen.next()["final"] is False
    assert time.monotonic() - began < 5.0
