"""Styles written from the page, against a real server: kept, replaced when asked twice, deleted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest

from fewstep.studio.frame import Frame
from fewstep.studio.orders import Form
from fewstep.studio.tabs import create_styles
from fewstep.studio.words import Words

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving

HOSTILE = "<script>alert(1)</script>../{x}${y}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


class Tab:
    """The fold with its events, called as Gradio calls them."""

    def __init__(self, server: Served) -> None:
        frame = Frame(Words("en"))
        form = frame.shared["create"] = Form()
        with gr.Blocks() as blocks:
            names = ("styles", "prompt", "negative_prompt")
            form.components = {name: gr.Textbox() for name in names}
            create_styles.wire(frame, create_styles.build(Words("en")))
        self.events = {one.fn.__name__: one.fn for one in blocks.fns.values()}
        url = httpx.URL(server.url)
        scope = {"server": (url.host, url.port)}
        self.request = SimpleNamespace(headers={}, request=SimpleNamespace(scope=scope))

    def do(self, what: str, *given: Any) -> list[Any]:
        """Updates of: the form's styles, the name, the button, what was asked about, what is said."""
        found: list[Any] = asyncio.run(self.events[what](*given, self.request))
        return found


def listed(server: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = httpx.get(f"{server.url}/api/v1/styles").json()["styles"]
    return found


def test_prompts_are_kept_replaced_and_deleted(server: Served) -> None:
    tab = Tab(server)
    form, name, button, asked, said = tab.do("keep", " film ", "", "film of {prompt}", "photo", [])
    assert listed(server) == [
        {"name": "film", "prompt": "film of {prompt}", "negative_prompt": "photo", "own": True}
    ]
    assert [label for label, _ in form["choices"]] == ["film"] and name["value"] == "film"
    assert (button, asked) == ("Keep", "") and "film is a style now." in said
    chosen = [form["choices"][0][1]]

    _, _, button, asked, said = tab.do("keep", "film", "", "another", "", chosen)
    assert (button, asked) == ("Replace", "film") and "is there already" in said
    assert listed(server)[0]["prompt"] == "film of {prompt}"
    form, *_ = tab.do("keep", "film", asked, "another", "", chosen)
    assert listed(server)[0]["prompt"] == "another"
    assert form["value"] == [form["choices"][0][1]] != chosen  # what was chosen says the new text
    # The question was about another style.
    tab.do("keep", "ink", "", "ink", "", [])
    assert tab.do("keep", "ink", "film", "x", "", [])[2] == "Replace"

    form, name, _, _, said = tab.do("remove", "film", form["value"])
    assert form["value"] == [] and name["choices"] == ["ink"] and "film is deleted." in said
    assert [one["name"] for one in listed(server)] == ["ink"]
    assert tab.do("look", "ink", [])[1]["choices"] == ["ink"]


@pytest.mark.parametrize(
    ("event", "given", "sentence"),
    [
        ("keep", ("", "", "x", "", []), "Give the style a name first."),
        ("remove", (None, []), "Give the style a name first."),
        ("keep", ("a", "", " ", "", []), "says nothing"),
        ("keep", ("#a", "", "x", "", []), "does not begin with #"),
        ("remove", ("gone", []), "is not known"),
    ],
)
def test_what_is_refused_is_said_in_place(
    server: Served, event: str, given: tuple[Any, ...], sentence: str
) -> None:
    said = Tab(server).do(event, *given)[4]
    assert sentence in said and 'data-state="refused"' in said
    assert listed(server) == []


def test_a_hostile_name_is_a_text(server: Served) -> None:
    said = Tab(server).do("keep", HOSTILE, "", "x", "", [])[4]
    assert [one["name"] for one in listed(server)] == [HOSTILE]
    assert "<script>" not in said and "${" not in said
    assert "<script>" not in Tab(server).do("keep", HOSTILE, "", "x", "", [])[4]
    assert "<script>" not in Tab(server).do("remove", HOSTILE, [])[4]


def test_a_server_that_is_away_is_said() -> None:
    tab = Tab(SimpleNamespace(url="http://127.0.0.1:9"))  # type: ignore[arg-type]
    assert "does not answer" in tab.do("look", "", [])[4]
