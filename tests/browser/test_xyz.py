"""X/Y/Z plot: its cells are the pictures that the same orders draw alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

Studio = Any
"""The fixtures' `conftest.Studio`."""


def pixels(studio: Studio, image_id: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(studio.bytes(f"/api/v1/images/{image_id}/file"))) as image:
        return np.asarray(image.convert("RGB"))


def test_a_grid_has_the_pictures_of_its_orders(studio: Studio, page: Page) -> None:
    def fill(name: str, value: str) -> None:
        page.locator(f"#xyz-{name} textarea, #xyz-{name} input").first.fill(value)

    page.get_by_role("tab", name="X/Y/Z plot").click()
    fill("prompt", "a red apple, noto style")
    fill("x-values", "5-6")
    page.locator("#xyz-y input").click()
    page.get_by_role("option", name="Prompt search and replace", exact=True).click()
    fill("y-values", "red, green")
    expect(page.locator("#xyz-state")).to_contain_text("4 pictures")
    page.locator("#xyz-draw").click()
    expect(page.locator("#xyz-plot td img")).to_have_count(4)
    whole = page.locator("#xyz-plot .plot-whole")
    expect(whole.locator("img")).to_be_visible()
    grid = studio.get(f"/api/v1/images/{whole.get_attribute('data-image')}")
    assert [axis["values"] for axis in grid["record"]["grid"]["axes"]] == [["5", "6"], ["red", "green"]]
    (cells,) = grid["record"]["grid"]["cells"]
    assert len({one for row in cells for one in row}) == 4

    picture = pixels(studio, grid["id"])
    for y, colour in enumerate(("red", "green")):
        for x, seed in enumerate((5, 6)):
            facts = studio.get(f"/api/v1/images/{cells[y][x]}")
            assert (facts["prompt"], facts["record"]["seed"]) == (f"a {colour} apple, noto style", seed)
    facts = studio.get(f"/api/v1/images/{cells[1][0]}")["record"]
    student = (facts.get("student") or {}).get("name", "none")
    alone = studio.draw(
        "a green apple, noto style", seed=5, student=student,
        num_inference_steps=facts["num_inference_steps"],
    )["result"]["images"][0]  # fmt: skip
    cell = pixels(studio, alone)
    height, width = cell.shape[:2]
    # The second row of the first column: cells stand at the lower right end, with gaps of 4 pixels.
    left, top = picture.shape[1] - 2 * (width + 4), picture.shape[0] - (height + 4)
    assert np.array_equal(picture[top : top + height, left : left + width], cell)
    assert not np.array_equal(picture[top : top + height, left + width + 4 : left + 2 * width + 4], cell)
