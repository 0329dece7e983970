"""The merger's form becomes an order, and a refusal is a sentence."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
import pytest

from fewstep.server.schemas.work import MergeBody
from fewstep.studio.client import ApiError
from fewstep.studio.tabs import merger
from fewstep.studio.words import Words, texts

HOSTILE = "<script>alert(1)</script>${alert(2)}{{x}}"


def form(mode: str, *models: Any, **more: Any) -> list[Any]:
    a, b, c = (*models, None, None, None)[:3]
    values = {"ratio": 0.3, "blocks": "", "dtype": "", "vae": "", **more}
    return [mode, a, b, c, *values.values()]


def test_every_mode_of_the_server_is_there_with_its_texts() -> None:
    modes = MergeBody.model_fields["mode"].annotation.__args__  # type: ignore[union-attr]
    assert set(merger.NEEDS) == set(modes)
    for mode in modes:
        assert {f"mode_{mode}", f"formula_{mode}"} <= texts("merger").keys()


@pytest.mark.parametrize("mode", list(merger.NEEDS))
def test_what_the_form_says_is_an_order_that_the_server_takes(mode: str) -> None:
    body = merger.body_of(form(mode, "one", "two", "three", blocks=" IN00=0.5 "), "mixed", Words("en"))
    order = MergeBody.model_validate(body)
    assert order.models == ("one", "two", "three")[: merger.NEEDS[mode]]
    assert (order.ratio, order.blocks, order.dtype) == (
        0.3 if len(order.models) > 1 else None,
        "IN00=0.5",
        None,
    )


def test_a_model_that_is_not_chosen_is_named() -> None:
    with pytest.raises(gr.Error, match="Choose C first"):
        merger.body_of(form("add-difference", "one", "two"), "x", Words("en"))


class Api:
    """Draws for one name and refuses another."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        return {"native_width": 128, "native_height": 64}

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.orders.append(body)
        if body["override_settings"]["sd_model_checkpoint"] == "broken":
            raise ApiError(HOSTILE)
        return {"images": ["AAAA"]}


def trial(api: Any, models: list[tuple[str, str]], given: tuple[Any, ...]) -> str:
    async def run() -> str:
        found = [drawn async for _, drawn in merger._trial(api, Words("en"), models, given)]
        return found[-1]

    return asyncio.run(run())


def test_a_trial_draws_every_model_once_and_keeps_no_picture() -> None:
    api = Api()
    html = trial(api, [("A", "one"), ("B", "one"), ("the merge", "draft-1")], ("a fox", 7, 0))
    assert html.count("<img") == 2 and "A, B: one" in html and "draft-1" not in html
    assert [one["do_not_save_samples"] for one in api.orders] == [True, True]
    assert [(one["seed"], one["width"], one["height"], "steps" in one) for one in api.orders] == [
        (7, 128, 64, False)
    ] * 2


def test_h04_a_model_that_cannot_be_drawn_with_is_said_and_not_run_as_markup() -> None:
    html = trial(Api(), [("A", "broken"), ("B", HOSTILE)], ("a fox", 7, 2))
    assert "<script" not in html and not set(html) & set("{}$`")
    assert html.count("<figure>") == 2 and "class='failed'" in html


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_is_there(language: str) -> None:
    for name, both in texts("merger").items():
        assert set(both) == {"en", "zh"} and all(isinstance(one, str) and one for one in both.values()), name
