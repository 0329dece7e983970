"""Pictures are read back in the browser, ours are drawn again, and nothing that they say is obeyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page

HOSTILE = "<img src=x onerror=alert(1)>{{this}}${alert(2)}"


def test_a_picture_is_read_back_and_drawn_again(studio: Any, page: Page, tmp_path: Path) -> None:
    job = studio.draw("a green pear, noto style", num_inference_steps=4, student="none", insist=True)
    path = tmp_path / "pear.png"
    path.write_bytes(studio.bytes(f"/api/v1/images/{job['result']['images'][0]}/file"))
    page.get_by_role("tab", name="PNG Info").click()
    page.set_input_files("#info-picture input[type=file]", path)
    page.locator("#info-made [data-tool=fewstep]").wait_for()
    assert page.locator("#info-prompt textarea").input_value() == "a green pear, noto style"
    assert "Steps\t4" in page.locator("#info-settings").inner_text()
    page.locator("#info-replay").click()
    page.locator("#info-verdict [data-verdict]").wait_for()
    assert page.locator("#info-verdict").inner_text() == "The same, bit for bit."
    # A text of another tool, made to be obeyed, in the place of the first.
    chunks = PngInfo()
    chunks.add_text("parameters", f"{HOSTILE}\nSteps: 7, Seed: 5, Sampler: {HOSTILE}, Model: {HOSTILE}")
    chunks.add_text(HOSTILE[:60], HOSTILE)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "hostile.png", pnginfo=chunks)
    page.set_input_files("#info-picture input[type=file]", tmp_path / "hostile.png")
    page.locator("#info-settings").get_by_text("7", exact=True).wait_for()
    assert page.locator("#info-prompt textarea").input_value() == HOSTILE
    assert page.locator("#info-settings td").nth(2).inner_text() == HOSTILE
    assert page.locator("#tab-info img[src=x], [id^=info-] img[src=x]").count() == 0
    page.locator("#info-send-settings").click()
    page.locator("#prompt").wait_for()
    page.wait_for_function("text => document.querySelector('#prompt textarea').value === text", arg=HOSTILE)
    # Its model is none of ours: the form says which one draws in its place.
    note = page.locator("#create-note")
    note.get_by_text("is not here; emoji-128 is used.").wait_for()
    assert HOSTILE in note.inner_text() and note.locator("img").count() == 0
