"""A refusal is a sentence in place with one button, which puts it right and draws."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator, Page, expect

LONG = 180_000
"""Milliseconds for a picture, on a machine with much else to do."""

Studio = Any
"""The fixtures' `conftest.Studio`."""


def fill(page: Page, name: str, value: float) -> Locator:
    field = page.locator(f"#create-{name} input").first
    field.fill(str(value))
    field.press("Tab")
    return field


def ready(page: Page) -> None:
    expect(page.locator("#create-quality input")).to_have_count(4, timeout=LONG)
    page.locator("#live [role=switch][aria-checked=true]").click()
    page.locator("#create-count input[type=number]").fill("1")
    page.locator("#prompt textarea").fill("a red apple, noto style")


def helped(page: Page, sentence: str, label: str) -> None:
    """Draw, be refused, press the button, and get the picture."""
    page.locator("#create-draw").click()
    said = page.locator("#create-state [data-state=refused]")
    expect(said).to_contain_text(sentence)
    expect(said).to_have_attribute("role", "alert")
    button = page.locator("#create-remedy")
    expect(button).to_have_text(label)
    expect(page.locator("#create-draw")).to_be_visible()
    button.click()
    expect(page.locator("#create-state [data-state=done]")).to_have_count(1, timeout=LONG)
    expect(button).to_be_hidden()


def test_a_size_and_a_guidance_that_cannot_be_are_put_right_by_a_button(studio: Studio, page: Page) -> None:
    ready(page)
    width = fill(page, "width", 100)
    helped(page, "width is 100", "Use 104×128")
    expect(width).to_have_value("104")
    kept = studio.get("/api/v1/images", limit=1)["images"][0]
    assert (kept["width"], kept["height"]) == (104, 128)

    page.locator("#create-advanced > button").click()
    guidance = fill(page, "guidance", 3)
    helped(page, "draws without guidance", "Set guidance to 1")
    expect(guidance).to_have_value("1")
    second = studio.get("/api/v1/images", limit=1)["images"][0]
    assert second["id"] != kept["id"] and second["record"]["guidance_scale"] == 1.0
    expect(page.locator(".toast-body")).to_have_count(0)


def test_the_live_canvas_is_helped_as_well(page: Page) -> None:
    expect(page.locator("#create-quality input")).to_have_count(4, timeout=LONG)
    page.locator("#prompt textarea").fill("a red apple, noto style")
    fill(page, "width", 100)
    expect(page.locator("#live [data-part=error]")).to_contain_text("width is 100", timeout=LONG)
    page.locator("#create-remedy").click()
    expect(page.locator("#live [data-part=facts]")).to_contain_text("seed", timeout=LONG)
    expect(page.locator("#live [data-part=error]")).to_be_hidden()
    expect(page.locator("#create-remedy")).to_be_hidden()
