"""Models and Settings as a person uses them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect


def test_a_model_is_looked_into_and_let_go_of(studio: Any, page: Page) -> None:
    studio.draw(num_inference_steps=1)
    # The times of the dial are measured by drawing, which would load the model again.
    expect(page.locator("#create-quality label").filter(has_text=re.compile(r"\d s$"))).to_have_count(4)
    page.get_by_role("tab", name="Models", exact=True).click()
    row = page.locator("#models-table tr", has_text="emoji-128").first
    expect(row).to_contain_text("in memory")
    row.get_by_role("button").click()
    facts = studio.get("/api/v1/models/emoji-128")
    for shown in (facts["licence"], facts["hash"], f"{facts['native_width']} x {facts['native_height']}"):
        expect(page.locator("#models-details")).to_contain_text(shown)
    # it comes with the package: nobody takes it away here
    expect(page.locator("#models-remove")).to_be_hidden()
    page.locator("#models-unload").click()
    expect(row).not_to_contain_text("in memory")
    assert not any(one["loaded"] for one in studio.get("/api/v1/models")["models"])

    page.locator("#models-download").get_by_role("button").first.click()
    page.locator("#models-repository").get_by_role("textbox").fill("../../etc/passwd")
    page.locator("#models-start").click()
    expect(page.get_by_text("repository:").first).to_be_visible()


def test_settings_hold_at_once_and_are_on_disk(
    studio: Any, page: Page, open_page: Callable[..., Page]
) -> None:
    def settings(on: Page, name: str) -> None:
        on.get_by_role("tab", name=name, exact=True).click()
        on.locator("#settings-page").wait_for()

    try:
        settings(page, "Settings")
        page.locator("#settings-search").get_by_role("textbox").fill("dark")
        expect(page.locator("#settings-page")).to_be_hidden()
        page.locator("#settings-theme").get_by_label("dark").check()
        expect(page.locator("#settings-state")).to_contain_text("Colours")
        expect(page.locator("body")).to_have_class("dark")
        page.locator("#settings-search").get_by_role("textbox").fill("")
        for side in ("width", "height"):
            page.locator(f"#settings-{side}").get_by_role("spinbutton").fill("8")
        page.locator("#settings-height").get_by_role("spinbutton").press("Enter")
        expect(page.locator("#settings-state")).to_contain_text("greater than or equal to 16")
        expect(page.locator("#settings-height").get_by_role("spinbutton")).to_have_value("0")
        page.locator("#settings-format").get_by_label("WebP").check()  # and the height is left, unchanged
        expect(page.locator("#settings-state")).to_contain_text("Format")

        kept = json.loads((studio.data / "preferences.json").read_text())["owners"][""]
        assert kept == {"theme": "dark", "format": "webp"}
        image = studio.draw(num_inference_steps=1)["result"]["images"][0]
        assert studio.bytes(f"/api/v1/images/{image}/file")[8:12] == b"WEBP"
        # another browser, and another language, begin with it
        other = open_page("zh")
        expect(other.locator("body")).to_have_class("dark")
        settings(other, "设置")
        expect(other.locator("#settings-format").get_by_label("WebP")).to_be_checked()
    finally:
        names = studio.get("/api/v1/settings")["values"]
        import httpx

        httpx.patch(f"{studio.url}/api/v1/settings", json=dict.fromkeys(names)).raise_for_status()
