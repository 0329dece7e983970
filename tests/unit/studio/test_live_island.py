"""What the form tells the live island, and what its texts and scripts must keep to."""

from __future__ import annotations

import asyncio
import re
from importlib import resources
from typing import Any

import pytest

pytest.importorskip("gradio")

from fewstep.server.schemas.live import Draw
from fewstep.studio import keys, live, orders
from fewstep.studio.words import LANGUAGES, Words, texts

ASSETS = resources.files("fewstep.studio").joinpath("assets")
ISLAND = ASSETS.joinpath("live.js").read_text("utf-8")
PAGE = ASSETS.joinpath("page.js").read_text("utf-8")
TEMPLATE = ASSETS.joinpath("live.html").read_text("utf-8")


def test_an_order_becomes_fields_of_a_wish_and_what_stands_around_the_typed_words() -> None:
    body = {
        "kind": "generate", "prompt": "ink, \ue000, on paper", "seed": 3, "n": 4, "deterministic": True,
        "adapters": [{"name": "ink", "weight": 0.5}], "num_inference_steps": 4, "save": True,
    }  # fmt: skip
    told = live.settings(body, "a" * 32)
    assert told == {
        "order": {"seed": 3, "adapters": [{"name": "ink", "weight": 0.5}], "num_inference_steps": 4},
        "wrap": ["ink, ", ", on paper"],
        "shown": "a" * 32,
    }
    front, back = told["wrap"]
    wish = Draw.model_validate({**told["order"], "prompt": f"{front}a fox{back}"})
    assert (wish.prompt, wish.adapters[0].name) == ("ink, a fox, on paper", "ink")


def test_a_form_that_makes_no_order_tells_the_island_why() -> None:
    """A style that is too long: Gradio would show the bare error of the event, and the island drew on."""
    from fewstep.studio import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.studio.page.TABS", {"create": page.TABS["create"]})
        blocks = page.build("en")
    events = [one.fn for one in blocks.fns.values() if getattr(one.fn, "__module__", "") == live.__name__]
    told = next(one for one in events if one.__name__ == "told")
    names = list(orders.FIELDS)
    form: list[Any] = [None] * (len(names) + 12)
    form[names.index("styles")] = [f'["s", "{"x" * 30_000}", ""]']
    form[names.index("student")] = "four"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "api_of", lambda request: None)
        found = asyncio.run(told(None, None, *form))
    assert found["order"] == {} and found["field"] == "styles"
    assert "makes the prompt longer" in found["message"]


def test_a_prompt_that_lost_what_is_typed_is_not_put_around_it() -> None:
    assert live.settings({"prompt": "something else"}, None)["wrap"] == ["", ""]
    assert live.settings({}, None) == {"order": {}, "wrap": ["", ""], "shown": None}


def test_the_island_stays_small() -> None:
    assert len(ISLAND.splitlines()) <= 300


@pytest.mark.parametrize("script", [ISLAND, PAGE], ids=["live.js", "page.js"])
def test_scripts_make_no_markup_of_texts(script: str) -> None:
    """What a person typed is set as text; tests/browser types hostile prompts, this looks for the ways."""
    ways = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "createContextualFragment",
        "eval(",
    )
    assert [way for way in ways if way in script] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_island_is_there(language: str) -> None:
    words = Words(language)
    asked = set(re.findall(r"say\(\"(\w+)\"", ISLAND)) | set(re.findall(r"words\.(\w+)", ISLAND + TEMPLATE))
    states = " ".join(re.findall(r"\bstate\(([^()]*)\)", ISLAND))
    asked |= {f"state_{name}" for name in re.findall(r"\"(\w+)\"", states)}
    listed = re.search(r"FACTS = \"(.*?)\"", ISLAND)
    assert listed is not None
    asked |= {f"fact_{name}" for name in listed[1].split()}
    assert len(asked) > 30
    assert all(words(f"live.{name}") for name in asked)
    # In a template Gradio would read these as its own.
    assert not [
        text for name in texts("live") for text in [words(f"live.{name}")] if re.search(r"`|\$\{", text)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_list_has_every_key_that_the_page_answers(language: str) -> None:
    html = keys.dialog(Words(language))
    letters = re.search(r"const letters = \{(.*?)\n  \};", PAGE, re.DOTALL)
    assert letters is not None
    answered = re.findall(r"^    \"?(\w|/|\?)\"?: ", letters[1], re.MULTILINE)
    assert len(answered) == 7
    for letter in answered:
        assert f"<kbd>{letter.upper()}</kbd>" in html
    assert html.count("<kbd>") == sum(len(keys._single(one)) for one, _ in keys.KEYS)
    assert set(texts("keys")) == {name for _, name in keys.KEYS} | {
        "title",
        "open",
        "close",
        "theme",
        "typing",
    }
