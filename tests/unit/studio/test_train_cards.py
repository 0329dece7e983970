"""Captions picture by picture: what is typed lands at its picture, in the table and on the server."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from PIL import Image

from fewstep.studio.frame import Frame
from fewstep.studio.tabs import train_cards, train_pictures
from fewstep.studio.words import LANGUAGES, Words

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving

ROWS = [["<img>", "a", ""], ["<img>", "b", "a ball"], ["<img>", "c", " "]]
HOSTILE = "\"'><script>alert(1)</script>{{x}}${y}"
WORDS = Words("en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_card_has_its_picture_its_place_and_its_caption(language: str) -> None:
    picture, name, caption, before, after = train_cards.shown(Words(language), "my set/", ROWS, 1)
    assert 'src="/api/v1/datasets/my%20set%2F/pictures/b"' in picture
    assert (name, caption["value"], before["interactive"], after["interactive"]) == (
        "b",
        "a ball",
        True,
        True,
    )
    assert "b</figcaption>" not in picture and "2" in picture and "3" in picture  # two have no caption
    first, last = (train_cards.shown(Words(language), "s", ROWS, place) for place in (-5, 9))
    assert (first[1], first[3]["interactive"], first[4]["interactive"]) == ("a", False, True)
    assert (last[1], last[3]["interactive"], last[4]["interactive"]) == ("c", True, False)
    assert train_cards.shown(Words(language), "s", [], 0)[:2] == ["", ""]
    hostile = train_cards.shown(Words(language), HOSTILE, [["", HOSTILE, HOSTILE]], 0)[0]
    assert "<script>" not in hostile and "${" not in hostile and "{{" not in hostile


def test_captions_that_are_missing_are_counted() -> None:
    assert "2 of 3: b · 2 without a caption" in train_cards.shown(WORDS, "s", ROWS, 1)[0]
    assert "without" not in train_cards.shown(WORDS, "s", [["", "a", "x"]], 0)[0]


def test_what_is_typed_belongs_to_the_picture_it_came_with() -> None:
    after = train_cards.merged(ROWS, "a", "a fox")
    assert [row[2] for row in after] == ["a fox", "a ball", " "] and ROWS[0][2] == ""
    assert train_cards.changed(ROWS, after) == [["<img>", "a", "a fox"]]
    for name, caption in (("b", "a ball"), ("gone", "x"), ("", "x"), (None, "x"), ("a", None)):
        assert train_cards.merged(ROWS, name, caption) is ROWS
    assert train_cards.changed(ROWS, ROWS) == []
    assert [train_cards.place_of(ROWS, name) for name in ("c", "gone", None)] == [2, 0, 0]


class Tab:
    """The pictures of a tab with their events, called as Gradio calls them."""

    def __init__(self, server: Served) -> None:
        frame = Frame(WORDS)
        with gr.Blocks() as blocks, gr.Tabs(), gr.Tab("x") as frame.tab:
            trigger = gr.Textbox()
            train_pictures.build(frame, "train", trigger=trigger)
        self.events: dict[str, list[Any]] = {}
        for one in blocks.fns.values():
            self.events.setdefault(one.fn.__name__, []).append(one.fn)
        url = httpx.URL(server.url)
        scope = {"server": (url.host, url.port)}
        self.request = SimpleNamespace(headers={}, request=SimpleNamespace(scope=scope))

    def do(self, what: str, *given: Any, place: int = 0) -> Any:
        return asyncio.run(self.events[what][place](*given, self.request))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        files = []
        for name in "abc":
            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
            files.append(("pictures", (f"{name}.png", buffer.getvalue(), "image/png")))
        assert httpx.post(f"{served.url}/api/v1/datasets/set", files=files).status_code == 201
        yield served


def captions(server: Served) -> list[str]:
    found = httpx.get(f"{server.url}/api/v1/datasets/set").json()["pictures"]
    return [one["caption"] for one in found]


def test_going_on_saves_what_was_typed(server: Served) -> None:
    tab = Tab(server)
    _, table, _, _, name, *_ = tab.do("look", "set", [])
    assert [row[1:] for row in table] == [["a", ""], ["b", ""], ["c", ""]] and name == "a"
    table, _, name, *_ = tab.do("go", "set", table, "a", "a fox", place=0)
    assert name == "b" and table[0][2] == "a fox" and captions(server) == ["a fox", "", ""]
    same, _, name, caption, *_ = tab.do("go", "set", table, "b", "", place=1)
    assert name == "a" and caption["value"] == "a fox"
    assert same == gr.skip()  # nothing was typed: the table is left alone
    _, _, name, *_ = tab.do("go", "set", table, "c", "", place=0)
    assert name == "c"  # there is no picture after it
    tab.do("kept", "set", table, "c", "a cat")
    assert captions(server) == ["a fox", "", "a cat"]


def test_what_was_typed_stays_when_somebody_comes_back_to_the_tab(server: Served) -> None:
    """It was read from the server anew each time, and captions that were not saved yet were gone."""
    tab = Tab(server)
    table = tab.do("look", "set", [])[1]
    typed = train_cards.merged(table, "b", "not saved yet")
    found = tab.do("look", "set", typed)
    assert found[1] == gr.skip() and found[4] == gr.skip()
    httpx.delete(f"{server.url}/api/v1/datasets/set/pictures/a")
    assert [row[1] for row in tab.do("look", "set", typed)[1]] == ["b", "c"]
