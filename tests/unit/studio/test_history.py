"""What the history tab shows: hostile texts stay texts, and what a browser says is checked."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import gradio as gr
import pytest

from fewstep.studio.markup import rows, text
from fewstep.studio.tabs import history, history_view
from fewstep.studio.words import Words, texts

HOSTILE = (
    "</td><script>alert(1)</script> <img src=x onerror=alert(2)> ${alert(3)} {{constructor}} `x` \\ ' \""
)


class Tags(HTMLParser):
    """Collects the elements and the text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.said = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.said += data


def picture(number: int = 1, **more: Any) -> dict[str, Any]:
    image_id = f"{number:032x}"
    return {
        "id": image_id, "created": 0.0, "client": "native", "job_id": None, "parent": None, "kind": "png",
        "width": 128, "height": 96, "size": 1234, "model": "m", "prompt": "a fox", "negative_prompt": "",
        "favourite": False, "tags": [], "trashed": None, "url": f"/api/v1/images/{image_id}/file",
        "thumbnail": f"/api/v1/images/{image_id}/thumbnail", "record": {"prompt": "a fox", "seed": 0}, **more,
    }  # fmt: skip


def hostile() -> dict[str, Any]:
    record = dict.fromkeys(("prompt", "student", "solver", "seed", "num_inference_steps", "model"), HOSTILE)
    return picture(prompt=HOSTILE, negative_prompt=HOSTILE, model=HOSTILE, tags=[HOSTILE], record=record)


def test_h04_hostile_texts_stay_texts() -> None:
    words = Words("en")
    family = {"parents": [hostile()], "children": [hostile()]}
    shown = [
        history_view.grid([hostile()], words, empty=HOSTILE),
        history_view.grid([], words, empty=HOSTILE),
        history_view.details(hostile(), words),
        history_view.lineage(family, None, words),
        rows([(HOSTILE, HOSTILE)]),
    ]
    for html in shown:
        found = Tags(html)
        assert "script" not in found.names
        assert not [name for name, _ in found.attributes if name.startswith("on")]
        assert not [value for name, value in found.attributes if name == "src" and value == "x"]
        # nothing that a template of Handlebars or JavaScript would take for its own
        assert not set(html) & set("{}$`\\")
    assert HOSTILE in Tags(shown[2]).said


def test_a_text_comes_back_as_it_was() -> None:
    assert Tags(f"<p>{text(HOSTILE)}</p>").said == HOSTILE
    assert ("title", HOSTILE) in Tags(f"<p title='{text(HOSTILE)}'></p>").attributes


def test_one_picture_of_the_grid_can_be_reached_by_tab_and_the_chosen_are_marked() -> None:
    images = [picture(1), picture(2, favourite=True), picture(3)]
    found = Tags(history_view.grid(images, Words("zh"), chosen=[images[1]["id"]], empty=""))
    assert [value for name, value in found.attributes if name == "tabindex"] == ["-1", "0", "-1"]
    assert [value for name, value in found.attributes if name == "aria-selected"] == [
        "false",
        "true",
        "false",
    ]
    assert found.said == "★"


def test_lineage_says_when_the_parent_is_gone() -> None:
    none: dict[str, Any] = {"parents": [], "children": []}
    words = Words("en")
    assert words("history.gone") in history_view.lineage(none, "0" * 32, words)
    assert words("history.no_lineage") in history_view.lineage(none, None, words)
    assert history_view.lineage(None, None, words) == ""


@pytest.mark.parametrize(
    "data", [None, [], {"ids": "x"}, {"ids": [1, {}, "../x", "a b"], "last": "../x"}, {}]
)
def test_what_a_browser_says_is_chosen_is_checked(data: Any) -> None:
    assert history._told_of(gr.EventData(None, data)) == ([], None)


def test_ids_of_the_choice_come_through() -> None:
    data = {"ids": ["a1", "b2"], "last": "b2"}
    assert history._told_of(gr.EventData(None, data)) == (["a1", "b2"], "b2")
    assert history._told_of(gr.EventData(None, {"ids": ["a1"], "last": "zz"})) == (["a1"], None)


def test_tags_are_split_at_commas_of_both_kinds() -> None:
    assert history._names(" red apple, 水果，x ,, ") == ["red apple", "水果", "x"]


@pytest.mark.parametrize("part", ["history"])
def test_every_text_is_there_in_both_languages(part: str) -> None:
    for name, both in texts(part).items():
        assert set(both) == {"en", "zh"} and all(both.values()), name
