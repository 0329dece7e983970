"""What helps when the server refuses: each remedy against a real server's refusal, and it must help."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")

from fewstep.errors import DataError, QueueFull, UsageError
from fewstep.studio import orders, remedies
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.remedies import Remedy
from fewstep.studio.tabs import create_trouble
from fewstep.studio.words import LANGUAGES, Words, texts

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving

FORM: dict[str, Any] = {
    "prompt": "a fox", "negative_prompt": "", "model": "fake", "quality": "four:4", "student": "four",
    "num_inference_steps": 4, "solver": "euler", "guidance_scale": 1.0, "guidance_rescale": 0.0, "eta": -1,
    "clip_skip": 0, "emphasis": "original", "insist": False, "deterministic": False, "seed": 1, "n": 1,
    "width": 128, "height": 128, "variation_seed": -1, "variation_strength": 0, "adapters": [], "styles": [],
    "upscale": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("remedies")) as served:
        yield served


def visitor(server: Served) -> Api:
    url = httpx.URL(server.url)
    scope = {"server": (url.host, url.port)}
    return api_of(SimpleNamespace(headers={}, request=SimpleNamespace(scope=scope)))  # type: ignore[arg-type]


def refused(server: Served, values: dict[str, Any]) -> tuple[ApiError, dict[str, Any]]:
    """What the server says to a form, and the facts of its model."""
    api = visitor(server)

    async def order() -> tuple[ApiError, dict[str, Any]]:
        facts = await api.get("/api/v1/models/fake")
        with pytest.raises(ApiError) as told:
            await api.post("/api/v1/jobs", orders.body(values))
        return told.value, facts

    return asyncio.run(order())


@pytest.mark.parametrize(
    ("wrong", "label"),
    [
        ({"width": 100}, "Use 104×128"), ({"height": 3}, "Use 128×32"), ({"width": 4096}, "Use 256×128"),
        ({"num_inference_steps": 3}, "Use 4 steps"),
        ({"student": "two", "num_inference_steps": 9}, "Use 2 steps"),
        ({"student": "none", "num_inference_steps": 3000}, "Use 5 steps"),
        ({"guidance_scale": 3.0}, "Set guidance to 1"),
        ({"guidance_rescale": 0.5}, "Set guidance rescale to 0"),
        ({"solver": "heun"}, "Use the solver "), ({"eta": 0.5}, "Use the model's own eta"),
        ({"clip_skip": 2}, "Set clip skip to 0"), ({"n": 1000}, "Draw one picture"),
        ({"student": "gone"}, "Use 4 steps"), ({"adapters": [{"name": "gone"}]}, "Leave the adapters out"),
        ({"upscale": "gone"}, "Do not enlarge"),
    ],
)  # fmt: skip
def test_what_is_offered_is_taken(server: Served, wrong: dict[str, Any], label: str) -> None:
    usual = {"solver": "", "student": "four"}
    error, facts = refused(server, FORM | usual | wrong)
    assert error.field and str(error)
    remedy = remedies.find(error, FORM | usual | wrong, facts, "fake")
    assert remedy is not None and remedy.label(Words("en")).startswith(label)
    better = FORM | usual | wrong | remedy.changes
    job = asyncio.run(visitor(server).post("/api/v1/jobs", orders.body(better)))
    assert job["state"] in ("queued", "running", "done")


def test_a_model_that_is_gone_gives_way_to_the_servers_own_with_its_settings(server: Served) -> None:
    error, _ = refused(server, FORM | {"model": "gone", "solver": ""})
    # The fake server's registry says it without the field, the real one's does: see test_pool.
    remedy = remedies.find(
        ApiError(str(error), error.code, 404, "model"), FORM | {"model": "gone"}, None, "fake"
    )
    assert remedy is not None and remedy.label(Words("en")) == "Use the model fake"
    assert remedy.changes["model"] == "fake"
    assert {remedy.changes[name] for name in orders.OF_MODEL} == {None}  # its own, not those of the other
    assert remedies.find(ApiError("", "not_found", 404, "model"), FORM, None, "fake") is None


@pytest.mark.parametrize("field", ["image", "mask", "outpaint", "strength"])
def test_a_picture_has_to_be_given_by_hand(field: str) -> None:
    remedy = remedies.find(ApiError("x", "invalid_value", 422, field), FORM)
    assert remedy == Remedy("picture", go="edit")


@pytest.mark.parametrize(
    "code",
    ["", "queue_full", "not_ready", "deadline", "internal", "engine_failed", "failed", "expired", "cut_off"],
)
def test_what_may_be_gone_the_next_time_is_tried_again(code: str) -> None:
    for error in (code, ApiError("x", code)):
        found = remedies.find(error, FORM)
        assert found is not None and found.label(Words("en")) == "Try again" and not found.changes


def test_memory_is_spared_first() -> None:
    found = [remedies.find(ApiError("x", "out_of_memory"), FORM | {"n": n}) for n in (4, 1)]
    assert [one.name for one in found if one is not None] == ["one", "again"]


@pytest.mark.parametrize(
    "error",
    [
        ApiError("x", "invalid_value", 422), ApiError("x", "unauthorized", 401),
        ApiError("x", "missing_dependency", 501), ApiError("x", "invalid_value", 422, "prompt"),
        ApiError("x", "invalid_value", 422, "adapters"), UsageError("x"), DataError("x"), "done", "running",
        "cancelled",
    ],
)  # fmt: skip
def test_what_only_a_person_can_put_right_has_no_button(error: Any) -> None:
    assert remedies.find(error, FORM) is None  # adapters: none is chosen, so they are tags in the prompt


def test_a_button_that_would_change_nothing_is_none() -> None:
    assert remedies.find(ApiError("x", "invalid_value", 422, "guidance_scale"), FORM) is None
    assert remedies.find(ApiError("x", "queue_full", 429, "guidance_scale"), FORM) == Remedy("again")
    model = {"size_multiple": 8, "max_size": 256, "native_width": 128, "native_height": 128}
    # A size that can be drawn is too much work: the model's own.
    found = remedies.find(UsageError("x", field="width"), FORM | {"width": 256, "height": 256}, model)
    assert found is not None and found.changes == {"width": 128, "height": 128}


def test_errors_of_the_form_itself_are_helped_as_well() -> None:
    long = orders.body(FORM | {"styles": ['["s", "x, {prompt}", ""]']})
    assert long["prompt"] == "x, a fox"
    with pytest.raises(UsageError) as told:
        orders.body(FORM | {"styles": [f'["s", "{"x" * 30_000}", ""]']})
    assert remedies.find(told.value, FORM | {"styles": ["s"]}) == Remedy("styles", changes={"styles": []})


def test_what_helps_in_extras() -> None:
    form = {"upscaler": "gone", "upscaler_2": "gone"}
    for field, label in (
        ("upscaler", "Use the automatic upscaler"), ("upscaler_2", "Leave the second upscaler out"),
        ("image", "Choose a picture"), ("files", "Choose a picture"),
    ):  # fmt: skip
        found = remedies.find(ApiError("x", "invalid_value", 422, field), form, of=remedies.EXTRAS)
        assert found is not None and found.label(Words("en")) == label
    assert remedies.find(ApiError("x", "invalid_value", 422, "width"), form, of=remedies.EXTRAS) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_sentence_is_a_text(language: str) -> None:
    made = remedies.sentence("<script>alert(1)</script>${x}{{y}}")
    assert "<script>" not in made and "${" not in made and "{{" not in made
    for name in texts("remedies"):
        assert Words(language)(f"remedies.{name}")


def test_every_text_is_of_a_remedy() -> None:
    source = Path(remedies.__file__).read_text("utf-8")
    assert all(f'"{name}"' in source for name in texts("remedies"))


def test_a_refusal_of_variations_does_not_blame_the_form(server: Served) -> None:
    """They are made of a picture's record: a change of the form would not help."""
    import gradio as gr

    with gr.Blocks():
        button = remedies.Button(Words("en"), "create")
    error = ApiError("x", "invalid_value", 422, "num_inference_steps")
    wrong = FORM | {"num_inference_steps": 3}
    shown = asyncio.run(create_trouble.refused(button, visitor(server), error, wrong, "order"))
    assert shown[button.kept] == {"changes": {"num_inference_steps": 4}, "go": "", "again": "order"}
    shown = asyncio.run(create_trouble.refused(button, visitor(server), error, wrong, "vary"))
    assert shown[button.kept] is None
    ended = create_trouble.ended(button, {"state": "cut_off", "id": "j"})
    assert ended[button.kept] == {"changes": {}, "go": "", "again": "requeue", "job": "j"}
    assert create_trouble.ended(button, {"state": "done", "id": "j"})[button.kept] is None


def test_a_full_queue_is_told_with_its_code(server: Served) -> None:
    assert QueueFull("x").field is None
    with pytest.raises(ApiError) as told:
        asyncio.run(Api("http://127.0.0.1:9", {}).get("/api/v1/models"))
    assert told.value.code == "" and remedies.find(told.value, FORM) == Remedy("again")
