"""Train as a person does: pictures dropped, an adapter made, through a reload, and used."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

Studio = Any
"""The fixtures' `conftest.Studio`."""
LONG = 180.0
WEIGHTS = Path(__file__).parents[2] / "weights"
Serve = Callable[..., contextlib.AbstractContextManager[Studio]]


@pytest.fixture(scope="module")
def school(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server with a model that can be taught."""
    if not (WEIGHTS / "emoji-128" / "model_index.json").is_file():
        pytest.skip("weights/emoji-128 is not here")
    with serve(tmp_path_factory.mktemp("school"), "--models-dir", str(WEIGHTS)) as made:
        yield made


def balls() -> list[tuple[str, bytes]]:
    """Five pictures of a dark ball on yellow."""
    found = []
    for i in range(5):
        image, buffer = Image.new("RGB", (128, 128), (250, 240, 20 * i)), io.BytesIO()
        ImageDraw.Draw(image).ellipse((20 + 4 * i, 20, 100, 110), fill=(40 * i, 30, 200))
        image.save(buffer, "PNG")
        found.append((f"ball-{i}.png", buffer.getvalue()))
    return found


def fill(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name} textarea, #{name} input").first.fill(value)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def ended(page: Page, studio: Studio, kind: str) -> dict[str, Any]:
    """The newest job of a kind, once it is done and the page says so."""
    job = studio.ended(studio.get("/api/v1/jobs", kind=kind)["jobs"][0]["id"], 2 * LONG)
    assert job["state"] == "done", (job, studio.get(f"/api/v1/jobs/{job['id']}/log")["lines"])
    return job


def draw_in_create(page: Page, studio: Studio) -> dict[str, Any]:
    """Press Draw for one picture of seed 3, and return what the history knows of it."""
    before = {one["id"] for one in studio.get("/api/v1/images")["images"]}
    fill(page, "create-seed", "3")
    page.locator("#create-seed input").press("Tab")
    page.locator("#create-count input[type=number]").fill("1")
    page.locator("#create-count input[type=number]").press("Tab")
    page.locator("#create-draw").click()
    until, new = time.monotonic() + LONG, []
    while not new and time.monotonic() < until:
        time.sleep(0.5)
        new = [one for one in studio.get("/api/v1/images")["images"] if one["id"] not in before]
    assert len(new) == 1
    found: dict[str, Any] = new[0]
    return found


def pixels(studio: Studio, image_id: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(studio.bytes(f"/api/v1/images/{image_id}/file"))) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


@pytest.mark.soak  # a minute of one process, for what tests/api and tests/faults/server train without a page
def test_a_lora_is_trained_through_a_reload_and_used(
    school: Studio, open_page: Callable[..., Page], heard: Any
) -> None:
    heard.expect("AbortError")  # what the page was asking when it is loaded again
    page = open_page(at=school)
    tab(page, "Train")
    expect(page.locator("#train-model input")).to_have_value("emoji-128")
    fill(page, "train-trigger", "zzq")
    page.locator("#train-dataset input").fill("balls")
    page.locator("#train-dataset input").press("Enter")
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in balls()]
    page.locator("#train-files input[type=file]").set_input_files(files)
    expect(page.locator("#train-captions").get_by_text("ball-4").last).to_be_attached()
    page.locator("#train-fill").click()
    expect(page.locator("#train-captions").get_by_text("zzq").last).to_be_attached()
    fill(page, "train-name", "ball")
    fill(page, "train-images", "80")
    page.locator("#train-further button").first.click()
    fill(page, "train-batch-size", "4")
    fill(page, "train-grids", "1")
    page.locator("#train-start").click()
    expect(page.locator('#train-state [data-state="running"]')).to_be_visible()

    page.reload()  # the server goes on, and the page finds it again
    expect(page.locator('#jobs li[data-state="running"]')).to_contain_text("Training ball")
    tab(page, "Train")
    expect(page.locator('#train-state [data-state="running"]')).to_be_visible()
    job = ended(page, school, "train")
    assert job["result"] == {"lora": "ball"}
    pictures = school.get("/api/v1/datasets/balls")["pictures"]
    assert [one["caption"] for one in pictures] == ["zzq"] * 5
    expect(page.locator('#train-state [data-state="done"]')).to_be_visible()
    expect(page.locator("#train-curves polyline")).to_have_count(1)
    expect(page.locator("#train-samples img")).to_have_count(1)
    expect(page.locator("#jobs")).to_be_hidden()

    page.locator("#train-use").click()
    expect(page.locator("#prompt textarea")).to_have_value("zzq")
    made = draw_in_create(page, school)
    assert [one["name"] for one in made["record"]["adapters"]] == ["ball"]
    record = made["record"]
    student = (record.get("student") or {}).get("name", "none")
    plain = school.draw("zzq", seed=3, num_inference_steps=record["num_inference_steps"], student=student)[
        "result"
    ]["images"][0]
    assert np.abs(pixels(school, made["id"]) - pixels(school, plain)).mean() > 2.0


def test_captions_are_written_picture_by_picture(studio: Studio, page: Page) -> None:
    tab(page, "Train")
    page.locator("#train-dataset input").fill("one-by-one")
    page.locator("#train-dataset input").press("Enter")
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in balls()]
    page.locator("#train-files input[type=file]").set_input_files(files)
    said, box = page.locator("#train-one-picture figcaption"), page.locator("#train-one-caption textarea")
    expect(said).to_have_text("1 of 5: ball-0 · 5 without a caption")
    box.fill("a dark ball")
    page.locator("#train-one-after").click()
    expect(said).to_have_text("2 of 5: ball-1 · 4 without a caption")
    expect(box).to_have_value("")
    box.fill("a second one")
    box.press("Shift+Enter")
    expect(said).to_have_text("3 of 5: ball-2 · 3 without a caption")
    page.locator("#train-one-before").click()
    expect(box).to_have_value("a second one")
    page.locator("#train-captions").get_by_text("ball-3").last.click()
    expect(said).to_have_text("4 of 5: ball-3 · 3 without a caption")
    captions = [one["caption"] for one in studio.get("/api/v1/datasets/one-by-one")["pictures"]]
    assert captions == ["a dark ball", "a second one", "", "", ""]
