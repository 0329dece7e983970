"""What Create shows of texts from elsewhere: names and words of adapter files, errors of jobs."""

from __future__ import annotations

import asyncio
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import pytest

from fewstep.studio import adapters, orders
from fewstep.studio.client import ApiError
from fewstep.studio.tabs import create_draw, create_form
from fewstep.studio.words import LANGUAGES, Words

HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>${alert(3)}{{alert}}`"


class Elements(HTMLParser):
    """Tags and attributes of what a browser would make of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def one(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "alias": None, "bytes": 1, "modified": 1.0, "family": None, "fits": True, "why": None,
        "trigger_words": [], "weight": 1.0, "picture": None, **more,
    }  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_names_and_words_are_shown_and_do_nothing(language: str) -> None:
    given = [
        one(HOSTILE, alias=HOSTILE, trigger_words=[HOSTILE]), one("b", fits=False, why=HOSTILE),
        one("c", picture=f"data:image/png;base64,{HOSTILE}"),
    ]  # fmt: skip
    made = adapters.value(Words(language), given, [{"name": HOSTILE, "weight": 0.5}])["html"]
    found = Elements(made)
    assert found.text.count("<script>alert(2)</script>") == 3  # alias, words, reason
    assert set(found.tags) <= {"div", "img", "label", "input", "output", "small", "span"}
    assert found.tags.count("img") == 1
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert ("data-adapter", HOSTILE) in found.attributes
    # Gradio fills templates of JavaScript and of Handlebars: no value may look like one.
    assert "${" not in made and "{{" not in made and "`" not in made


def test_what_is_chosen_fits_and_has_a_weight_in_range() -> None:
    given = [one("a"), one("b", fits=False, why="it was made for SD1")]
    chosen = [
        {"name": "a", "weight": 99}, {"name": "b", "weight": 1}, {"name": "gone", "weight": 1},
    ]  # fmt: skip
    value = adapters.value(Words("en"), given, chosen)
    assert value["chosen"] == [{"name": "a", "weight": 2.0}]
    assert "disabled" in value["html"] and "it was made for SD1" in value["html"]
    junks: tuple[Any, ...] = (None, "x", [None, 3, {}], {"chosen": "x"}, {"html": ""})
    for junk in junks:
        assert adapters.chosen(junk) == []
    assert adapters.chosen([{"name": "a", "weight": "nan"}]) == [{"name": "a", "weight": 1.0}]
    assert "--loras-dir" in adapters.value(Words("en"), [], [])["html"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("job", "said"),
    [
        ({"state": "queued", "position": 3}, "3"),
        ({"state": "running", "progress": {"step": 5, "total": 20, "seconds": 2.0}}, "6.0"),
        ({"state": "running", "progress": {"step": 0, "total": 0, "seconds": 0.0}}, ""),
        ({"state": "failed", "error": HOSTILE}, "<script>alert(2)</script>"),
        ({"state": "done", "result": {"images": [], "timings": {}}}, "--no-save"),
        ({"state": "done", "result": {"images": ["a"], "timings": {"total": 1.234}}}, "1.23"),
        ({"state": "done", "started": 1.0, "finished": 3.5, "result": {"images": [{"id": "a"}]}}, "2.50"),
        ({"state": "cancelled"}, ""), ({"state": "expired"}, ""), ({"state": "cut_off"}, ""),
    ],
)  # fmt: skip
def test_the_state_of_a_job_is_a_sentence(language: str, job: dict[str, Any], said: str) -> None:
    found = Elements(create_draw.state(Words(language), job))
    assert said in found.text and found.text.strip()
    assert set(found.tags) <= {"div", "progress", "span"}
    assert ("data-state", job["state"]) in found.attributes


def test_a_negative_prompt_is_greyed_with_the_reason() -> None:
    contract = {"guidance": "classifier_free", "negative_prompt_effective": True}
    model = {"contract": contract, "students": [{"name": "four", "contract": {"guidance": "off"}}]}
    words = Words("en")
    told = create_form.negative(words, model, {"student": "none", "guidance_scale": 2.0})
    assert told["interactive"] is True
    for values, reason in (
        ({"student": "four", "guidance_scale": 1}, "students"),
        ({"student": "none", "guidance_scale": 1}, "guidance is 1"),
    ):
        greyed = create_form.negative(words, model, values)
        assert greyed["interactive"] is False and reason in greyed["info"]
    ignoring = {**model, "contract": contract | {"negative_prompt_effective": False}}
    assert (
        "ignores" in create_form.negative(words, ignoring, {"student": "none", "guidance_scale": 2})["info"]
    )


def test_pictures_of_a_job_are_known_when_it_is_done() -> None:
    assert create_draw.made({"state": "running", "result": None}) == []
    assert create_draw.made({"state": "done", "result": {"images": ["a", "b"]}}) == ["a", "b"]
    enlarged = {"images": [{"id": "c", "parent": "a", "width": 512, "height": 512}]}
    assert create_draw.made({"state": "done", "result": enlarged}) == ["c"]
    assert create_draw.made({"state": "done", "result": {"images": []}}) == []


class Server:
    """Plays the API of a server with one model and two adapters."""

    async def get(self, path: str, **query: Any) -> Any:
        contract = {
            "method": "base", "num_inference_steps": 20, "allowed_steps": None, "solver": "ddim",
            "spacing": "trailing", "eta": None, "guidance": "classifier_free", "guidance_scale": 2.0,
            "guidance_range": None, "guidance_rescale": 0.0, "negative_prompt_effective": True,
        }  # fmt: skip
        few = {**contract, "guidance": "off", "guidance_scale": 1.0, "method": "lightning"}
        model = {
            "name": "emoji-128", "default": True, "hash": "h", "native_width": 128, "native_height": 96,
            "solver": "ddim", "max_clip_skip": 0, "contract": contract,
            "students": [{"name": "four", "steps": [4], "contract": few}],
        }  # fmt: skip
        answers = {
            "/api/v1/models": {"models": [model]}, "/api/v1/models/emoji-128": model,
            "/api/v1/styles": {"styles": []}, "/api/v1/adapters": {"adapters": [one("gold"), one("ink")]},
        }  # fmt: skip
        name = unquote(path.removeprefix("/api/v1/models/"))
        if path.startswith("/api/v1/models/") and name != "emoji-128":
            if name != "emoji-128:pipeline":
                raise ApiError("not found", "not_found", 404)
            return model | {"name": name}
        return answers[path]


def filled(wanted: dict[str, Any]) -> dict[str, Any]:
    api: Any = Server()
    updates, _ = asyncio.run(create_form.filled(Words("en"), api, wanted))
    assert set(updates) == set(orders.FIELDS)
    return {
        name: update["chosen"] if name == "adapters" else update["value"] for name, update in updates.items()
    }


def test_an_empty_form_is_filled_with_what_the_model_is_drawn_with() -> None:
    found = filled({})
    assert (found["model"], found["width"], found["height"], found["n"]) == ("emoji-128", 128, 96, 4)
    assert (found["quality"], found["student"], found["num_inference_steps"]) == ("four:4", "four", 4)
    assert found["seed"] == -1 and found["adapters"] == [] and found["styles"] == []


def test_a_form_that_the_browser_kept_comes_back() -> None:
    kept = {
        "prompt": "a fox", "quality": "none:20", "student": "none", "num_inference_steps": 20,
        "guidance_scale": 2.0, "solver": "ddim", "seed": 7, "n": 99, "width": 64, "model": "emoji-128",
        "adapters": {"chosen": [{"name": "gold", "weight": 0.5}, {"name": "gone", "weight": 1}]},
        "unknown": 3,
    }  # fmt: skip
    found = filled(kept)
    assert found["prompt"] == "a fox" and found["seed"] == 7 and found["width"] == 64 and found["n"] == 16
    assert found["quality"] == "none:20" and found["adapters"] == [{"name": "gold", "weight": 0.5}]
    assert filled(kept | {"guidance_scale": 3.5})["quality"] is None


def note(wanted: dict[str, Any], language: str = "en") -> str:
    api: Any = Server()
    model, _ = asyncio.run(create_form.facts(api, wanted.get("model")))
    return create_form.replaced(Words(language), wanted, model)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_that_is_not_here_is_named(language: str) -> None:
    """A pasted text of another model drew with the server's own, and nothing said so."""
    for name in ("dreamshaper_8", "a:b", "../models/x:y", "x/../emoji-128", "emoji-128:gone"):
        said = Elements(note({"model": name}, language)).text
        assert name in said and "emoji-128" in said
    hostile = Elements(note({"model": HOSTILE}, language))
    assert HOSTILE[:40] in hostile.text and set(hostile.tags) == {"p"}
    assert len(note({"model": "x" * 10_000})) < 400
    for wanted in ({}, {"model": None}, {"model": "emoji-128"}, {"model": "emoji-128:pipeline"}):
        assert note(wanted) == ""


def test_what_is_no_longer_there_gives_way() -> None:
    found = filled({"model": "gone", "student": "nobody", "solver": "unknown", "num_inference_steps": 3})
    assert (found["model"], found["student"], found["solver"]) == ("emoji-128", "four", "ddim")
    assert found["quality"] == "four:4"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, ""),
        ({"model": "m", "student": "four"}, ""),
        ({"model": "m", "student": "none"}, ""),
        ({"model": "gone", "student": "lost"}, "the model gone, which is not here; m is used"),
        ({"student": "<b>lost"}, "the student &lt;b&gt;lost, which m does not have; four is used"),
    ],
)
def test_a_model_or_student_that_settings_name_and_that_is_not_here_is_said(
    wanted: dict[str, Any], said: str
) -> None:
    contract = {
        "num_inference_steps": 4, "solver": "lcm", "guidance_scale": 1.0, "negative_prompt_effective": False,
    }  # fmt: skip
    model = {
        "name": "m", "contract": contract, "students": [{"name": "four", "steps": [4], "contract": contract}],
    }  # fmt: skip
    found = create_form.replaced(Words("en"), wanted, model)
    assert said in found and bool(found) == bool(said)
