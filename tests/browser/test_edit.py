"""A part of a picture is painted over in the browser and drawn anew; the rest stays bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_what_is_painted_is_redrawn_and_nothing_else(studio: Any, page: Page, tmp_path: Path) -> None:
    before = studio.bytes(f"/api/v1/images/{studio.draw()['result']['images'][0]}/file")
    (tmp_path / "apple.png").write_bytes(before)
    page.locator("#edit > button").click()
    page.locator("#edit-picture canvas").first.wait_for()
    page.wait_for_timeout(500)  # a person is not faster than Gradio's editor
    page.set_input_files("#edit-picture input[type=file]", tmp_path / "apple.png")
    hint = page.locator("#edit-hint")
    hint.get_by_text("All of it is redrawn").wait_for()
    canvas = page.locator("#edit-picture canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(across - 20, down)
    page.mouse.down()
    page.mouse.move(across + 20, down, steps=5)
    page.mouse.up()
    hint.get_by_text("128×128 pixels, of which").wait_for()
    share = int(hint.inner_text().split("of which ")[1].split("%")[0])
    page.locator("#create-count input[type=number]").fill("1")
    page.locator("#prompt textarea").fill("a blue fish, noto style")
    page.locator("#create-draw").click()
    page.locator("#create-state [data-state=done]").wait_for()
    kept = studio.get("/api/v1/images", limit=1)["images"][0]
    assert (kept["record"]["task"], kept["prompt"]) == ("inpaint", "a blue fish, noto style")
    changed = np.abs(pixels(studio.bytes(kept["url"])) - pixels(before)).max(axis=2) > 0
    assert 0 < changed.mean() <= share / 100 + 0.01
    assert changed[56:72, 56:72].mean() > 0.5
    assert not changed[:16].any() and not changed[-16:].any()
    assert not changed[:, :8].any() and not changed[:, -8:].any()
