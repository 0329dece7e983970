"""Create, as a person uses it: draw, turn the dial, take an adapter, branch off, reload, paste."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any, Protocol

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

PROMPT = "a red apple, noto style, on a sky blue background"
LONG = 180_000
"""Milliseconds for a picture, on a machine with much else to do."""


class Studio(Protocol):
    url: str

    def get(self, path: str, **query: Any) -> Any: ...
    def bytes(self, path: str) -> bytes: ...


def ready(page: Page) -> None:
    """The form says what the server has."""
    expect(page.locator("#create-quality input")).to_have_count(4, timeout=LONG)
    # Live drawing would share the machine with what these tests wait for.
    live = page.locator("#live [role=switch][aria-checked=true]")
    if live.count():
        live.click()


def draw(studio: Studio, page: Page, prompt: str, *, seed: int, stop: int = 0) -> dict[str, Any]:
    """Draw one picture; what the history knows of it."""
    page.locator("#create-quality input").nth(stop).check()
    for name, value in (("seed", seed), ("count", 1)):
        field = page.locator(f"#create-{name} input[type=number]")
        field.fill(str(value))
        field.press("Tab")
    page.fill("#prompt textarea", prompt)
    before = {one["id"] for one in newest(studio, 10)}
    page.locator("#create-draw").click()
    until = time.monotonic() + LONG / 1000
    while not (found := newest(studio)) or found[0]["id"] in before:
        assert time.monotonic() < until, "nothing was drawn"
        page.wait_for_timeout(200)
    done(page)
    return found[0]


def done(page: Page) -> None:
    going = page.locator("#create-state [data-state=running], #create-state [data-state=queued]")
    expect(going).to_have_count(0, timeout=LONG)
    expect(page.locator("#create-state [data-state=done]")).to_have_count(1, timeout=LONG)
    expect(page.locator("#create-stop")).to_be_hidden(timeout=LONG)


def newest(studio: Studio, count: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = studio.get("/api/v1/images", limit=count)["images"]
    return found


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def shown(page: Page, place: int = 0) -> bytes:
    """What the gallery shows, as the browser fetches it."""
    source = page.locator("#create-gallery .thumbnail-item img").nth(place).get_attribute("src")
    assert source is not None
    return httpx.get(source if source.startswith("http") else page.url.split("/studio")[0] + source).content


def test_a_picture_is_drawn_kept_branched_and_there_after_a_reload(
    studio: Studio, page: Page, heard: Any
) -> None:
    ready(page)
    view = draw(studio, page, PROMPT, seed=3)
    record = view["record"]
    assert record["prompt"] == PROMPT and record["seed"] == 3 and record["num_inference_steps"] == 1
    assert record["student"]["name"] == "lcm" and view["client"] == "native"
    kept = studio.bytes(view["url"])
    assert shown(page) == kept  # the very file, with its settings inside
    assert pixels(kept).std() > 20
    expect(page.locator("#create-negative textarea")).to_be_disabled()

    page.locator("#create-vary").click()
    expect(page.locator("#create-gallery .thumbnail-item")).to_have_count(5, timeout=LONG)
    done(page)
    variations = newest(studio, 4)
    assert {one["parent"] for one in variations} == {view["id"]}
    assert {one["record"]["seed"] for one in variations} == {3}
    drawn = [pixels(studio.bytes(one["url"])) for one in variations]
    for picture in drawn:
        assert np.abs(picture - pixels(kept)).mean() > 0.5
    assert np.abs(drawn[0] - drawn[1]).mean() > 0.5

    # Its streams break off; Gradio says so in the console.
    for text in ("AbortError", "Connection errored out"):
        heard.expect(text)
    page.reload()
    ready(page)
    expect(page.locator("#prompt textarea")).to_have_value(PROMPT)
    expect(page.locator("#create-quality input").nth(0)).to_be_checked()
    expect(page.locator("#create-seed input")).to_have_value("3")
    expect(page.locator("#create-gallery .thumbnail-item")).to_have_count(1, timeout=LONG)


def test_a_reload_in_the_middle_of_a_job_comes_back_to_it(studio: Studio, page: Page, heard: Any) -> None:
    for text in ("AbortError", "Connection errored out"):
        heard.expect(text)
    ready(page)
    page.locator("#create-quality input").nth(3).check()
    field = page.locator("#create-count input[type=number]")
    field.fill("6")
    field.press("Tab")
    page.fill("#prompt textarea", "a fox, noto style")
    expect(page.locator("#create-negative textarea")).to_be_enabled()  # the teacher reads it
    page.locator("#create-draw").click()
    expect(page.locator("#create-state [data-state=running] progress")).to_have_count(1, timeout=LONG)
    page.reload()
    ready(page)
    done(page)
    expect(page.locator("#create-gallery .thumbnail-item")).to_have_count(6, timeout=LONG)
    views = newest(studio, 6)
    assert {one["job_id"] for one in views} == {views[0]["job_id"]}
    assert {one["record"]["num_inference_steps"] for one in views} == {20}


def test_an_adapter_changes_the_picture(studio: Studio, page: Page) -> None:
    ready(page)
    prompt = "a red apple, gold style"
    plain = draw(studio, page, prompt, seed=5, stop=2)
    page.locator("#create-adapters-fold > button").click()
    cards = page.locator("#create-adapters [data-adapter]")
    expect(cards.first).to_be_visible(timeout=LONG)
    assert {cards.nth(place).get_attribute("data-adapter") for place in range(cards.count())} >= {
        "gold",
        "night",
    }
    page.locator("#create-adapters [data-adapter=gold] input[type=checkbox]").check()
    gold = draw(studio, page, prompt, seed=5, stop=2)
    assert [(one["name"], one["weight"]) for one in gold["record"]["adapters"]] == [("gold", 1.0)]
    assert "adapters" not in plain["record"]
    changed = np.abs(pixels(studio.bytes(gold["url"])) - pixels(studio.bytes(plain["url"]))).mean()
    assert changed > 5


def test_chinese_on_a_phone_and_a_pasted_text_of_parameters(open_page: Callable[..., Page]) -> None:
    page = open_page("zh", viewport={"width": 390, "height": 844})
    ready(page)
    expect(page.locator("#create-draw")).to_have_text("绘制")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    text = (
        "a cat face, twemoji style\\nSteps: 2, Sampler: LCM, CFG scale: 1.0, Seed: 77, Size: 128x96, "
        "Model: emoji-128, Student: lcm, Version: fewstep 0.1.0"
    )
    page.locator("#prompt textarea").focus()
    page.evaluate(
        """text => {
          const box = document.querySelector('#prompt textarea'), data = new DataTransfer();
          data.setData('text', text);
          box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
          document.execCommand('insertText', false, text);
        }""",
        text.replace("\\n", "\n"),
    )
    expect(page.locator("#prompt textarea")).to_have_value("a cat face, twemoji style")
    expect(page.locator("#create-seed input")).to_have_value("77")
    expect(page.locator("#create-height input")).to_have_value("96")
    expect(page.locator("#create-quality input").nth(1)).to_be_checked()
