"""A picture of the history is enlarged in the browser, and kept as made from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page


def test_a_picture_is_enlarged_four_times(studio: Any, page: Page, tmp_path: Path) -> None:
    image_id = studio.draw("a yellow lemon, noto style")["result"]["images"][0]
    before = studio.bytes(f"/api/v1/images/{image_id}/file")
    path = tmp_path / "lemon.png"
    path.write_bytes(before)
    page.get_by_role("tab", name="PNG Info").click()
    page.set_input_files("#info-picture input[type=file]", path)
    page.locator("#info-made [data-tool=fewstep]").wait_for()
    page.locator("#info-send-extras").click()
    page.locator("#extras-origin").get_by_text("From the history").wait_for()
    page.locator("#extras-run").click()
    page.locator("#extras-state [data-state=done]").wait_for()
    assert "512×512 pixels" in page.locator("#extras-state").inner_text()
    kept = studio.get("/api/v1/images", limit=1)["images"][0]
    assert (kept["width"], kept["height"], kept["parent"]) == (512, 512, image_id)
    assert kept["record"]["extras"]["scale"] == 4 and kept["record"]["extras"]["upscaler"]
    small = Image.open(io.BytesIO(studio.bytes(kept["url"]))).resize((128, 128), Image.Resampling.BOX)
    was = np.asarray(Image.open(io.BytesIO(before)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(small.convert("RGB")).astype(int) - was).mean() < 8
    page.locator("#extras-compare img").first.wait_for()
    # A page that is loaded again shows the job's picture.
    page.reload()
    page.locator("#prompt").wait_for()
    page.get_by_role("tab", name="Extras").click()
    page.locator("#extras-state [data-state=done]").wait_for()
    page.locator("#extras-compare img").first.wait_for()
