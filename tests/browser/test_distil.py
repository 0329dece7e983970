"""Distil as a person does: a student is made, measured beside its teacher, and drawn with from the dial.

Everything is made here, so that it runs where nothing was prepared: five pictures, and a drawing set of eight
objects whose names the bundled evaluator knows. A minute and a half on two idle cores: half of it exports the
dial, so the teacher is emoji-128 with one student of its own and not all three.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from fewstep.data import split
from fewstep.data.emoji import Drawing

Studio = Any
"""The fixtures' `conftest.Studio`."""
LONG = 600_000.0
"""Milliseconds for what takes a minute where nothing else runs."""
TEACHER = Path(__file__).parents[2] / "weights" / "emoji-128"
Serve = Callable[..., contextlib.AbstractContextManager[Studio]]
Pixels = np.ndarray[Any, Any]
STYLES = ("noto", "twemoji", "fluent flat", "fluent 3d")
OBJECTS = {
    "red apple": (210, 40, 50), "pizza": (230, 160, 60), "cat face": (250, 200, 80), "fox": (220, 110, 40),
    "owl": (120, 90, 70), "strawberry": (220, 50, 70), "tropical fish": (60, 140, 220),
    "cactus": (60, 150, 80),
}  # fmt: skip


@pytest.fixture(scope="module")
def school(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server with a teacher, in a folder with a drawing set to measure by."""
    if not (TEACHER / "model_index.json").is_file():
        pytest.skip("weights/emoji-128 is not here")
    folder = tmp_path_factory.mktemp("school")
    shutil.copytree(TEACHER, folder / "own" / "emoji-128")
    drawing_set(folder / ".cache" / "emoji-128" / "drawings")
    with contextlib.chdir(folder), serve(folder, "--models-dir", str(folder / "own")) as made:
        yield made


def drawing_set(folder: Path) -> None:
    """As `fewstep data emoji-128` leaves it: discs of a colour each."""
    items, pixels = [], []
    for style in STYLES:
        for label, colour in OBJECTS.items():
            assert not split.object_held_out(label)
            items.append(Drawing(style, "food-drink", label, (), label, "package", "1", "MIT", "train"))
            image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
            ImageDraw.Draw(image).ellipse((20, 20, 108, 108), fill=(*colour, 255))
            pixels.append(np.asarray(image))
    folder.mkdir(parents=True)
    np.save(folder / "drawings.npy", np.stack(pixels))
    lines = [json.dumps(dataclasses.asdict(item)) for item in items]
    (folder / "drawings.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "set.json").write_text(json.dumps({"fingerprint": "d" * 64, "sources": []}), encoding="utf-8")


def apples() -> list[dict[str, Any]]:
    """Five pictures with captions, as a browser sends files."""
    found = []
    for i in range(5):
        image, buffer = Image.new("RGB", (128, 128), (120, 190, 200 + 10 * i)), io.BytesIO()
        ImageDraw.Draw(image).ellipse((20 + 4 * i, 24, 100, 112), fill=(200, 30 + 10 * i, 40))
        image.save(buffer, "PNG")
        caption = b"a red apple, noto style" if i % 2 else b"a red apple"
        found += [
            {"name": f"apple-{i}.png", "mimeType": "image/png", "buffer": buffer.getvalue()},
            {"name": f"apple-{i}.txt", "mimeType": "text/plain", "buffer": caption},
        ]
    return found


def fill(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name} textarea, #{name} input").first.fill(value)


def choose(page: Page, name: str, value: str) -> None:
    field = page.locator(f"#{name} input")
    field.fill(value)
    field.press("Enter")
    expect(field).to_have_value(value)


def newest(studio: Studio, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = studio.get("/api/v1/jobs", kind=kind)["jobs"][0]
    return found


def ended(studio: Studio, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = studio.ended(job_id, LONG / 1000)
    assert job["state"] == "done", (job, studio.get(f"/api/v1/jobs/{job_id}/log")["lines"])
    return job


def pixels(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def of_picture(studio: Studio, image_id: str) -> Pixels:
    return pixels(studio.bytes(f"/api/v1/images/{image_id}/file"))


def distil(page: Page, studio: Studio) -> dict[str, Any]:
    """Fill the form, start, watch, and return the job when the page says that it is done."""
    page.get_by_role("tab", name="Distil", exact=True).click()
    expect(page.locator("#distil-model input")).to_have_value("emoji-128")
    page.locator("#distil-dataset input").fill("apples")
    page.locator("#distil-dataset input").press("Enter")
    page.locator("#distil-files input[type=file]").set_input_files(apples())
    expect(page.locator("#distil-captions").get_by_text("a red apple, noto style").first).to_be_attached()
    page.locator("#distil-method label", has_text="LCM").click()
    expect(page.locator("#distil-steps")).to_be_hidden()  # its student has any number of steps
    fill(page, "distil-name", "quick")
    fill(page, "distil-images", "48")
    page.locator("#distil-further button").first.click()
    for name, value in (("batch-size", "4"), ("grids", "2"), ("threads", "1"), ("seed", "5")):
        fill(page, f"distil-{name}", value)
    choose(page, "distil-bundle-precision", "fp16")
    page.locator("#distil-start").click()

    expect(page.locator('#distil-state [data-state="running"]')).to_be_visible()
    job_id = newest(studio, "distill")["id"]
    expect(page.locator("#distil-state")).to_contain_text("of 48 images", timeout=LONG)
    expect(page.locator("#distil-state progress[max='48']")).to_be_visible()
    expect(page.locator("#distil-card table")).to_have_count(0)  # nothing is done yet
    expect(page.locator("#jobs li").first).to_contain_text("quick")
    grid = page.locator("#distil-samples img").first
    expect(grid).to_be_visible(timeout=LONG)
    assert grid.evaluate("image => image.decode().then(() => image.naturalWidth)") > 128
    assert studio.get(f"/api/v1/jobs/{job_id}")["state"] == "running"  # it is exporting
    job = ended(studio, job_id)
    expect(page.locator('#distil-state [data-state="done"]')).to_be_visible(timeout=LONG)
    return job


def check_what_was_kept(studio: Studio, job: dict[str, Any]) -> None:
    """What the server has of the run: its order, grids that show something, curves, the student, its dial."""
    assert job["result"] == {"model": "quick", "bundle": "emoji-128-quick"}
    path = f"/api/v1/jobs/{job['id']}"
    order = studio.get(f"{path}/order")["order"]
    asked = {"method": "lcm", "model": "emoji-128", "dataset": "apples", "images": 48, "batch_size": 4}
    assert asked | {"seed": 5, "grids": 2, "bundle_precision": "fp16"} == {
        name: order[name] for name in (*asked, "seed", "grids", "bundle_precision")
    }
    names = studio.get(f"{path}/samples")["samples"]
    assert names == ["00-lcm-0000000024.png", "00-lcm-0000000048.png"]
    first, last = (pixels(studio.bytes(f"{path}/samples/{name}")) for name in names)
    # Two prompts side by side, eight numbers of steps below: both grids show something, and not the same.
    assert first.shape == last.shape and min(first.shape[:2]) > 128
    assert first.std() > 20 and last.std() > 20 and np.abs(first - last).mean() > 0.5
    (stage,) = studio.get(f"{path}/curves")["stages"]
    assert [point[0] for point in stage["values"]["teacher_distance/4"]] == [24, 48]
    model = studio.get("/api/v1/models/emoji-128-quick")
    assert {one["name"]: one["steps"] for one in model["students"]} == {
        "lcm": [1, 2, 4], "quick": [1, 2, 3, 4, 5, 6, 7, 8]
    }  # fmt: skip
    assert next(one for one in model["students"] if one["name"] == "quick")["method"] == "lcm"


def check_card(page: Page, studio: Studio, job: dict[str, Any]) -> None:
    """The card of the run on the page, against what the server measured."""
    expect(page.locator("#distil-one-name")).to_be_hidden()
    card = page.locator("#distil-card")
    expect(card.locator("table.facts")).to_contain_text("LCM")
    for part in ("quick", "emoji-128", "apples (5)", "48", "emoji-128-quick (fp16)"):
        expect(card.locator("table.facts")).to_contain_text(part)
    values = studio.get(f"/api/v1/jobs/{job['id']}/curves")["stages"][0]["values"]
    for steps in (1, 2, 4, 8):
        distance = f"{values[f'teacher_distance/{steps}'][-1][1]:.4f}"
        expect(card.locator(f'tr[data-taught="true"][data-steps="{steps}"]')).to_contain_text(distance)
    expect(card.locator('tr[data-taught="false"][data-steps="20"]')).to_have_count(1)
    grid = card.locator("figure img")
    assert grid.evaluate("image => image.decode().then(() => image.naturalWidth)") > 128
    assert (grid.get_attribute("src") or "").endswith("00-lcm-0000000048.png")


def compare(page: Page, studio: Studio) -> None:
    """Press Compare, and find every row's picture in the card and in the history."""
    page.locator("#distil-compare").click()
    expect(page.locator("#distil-card table.card img")).to_have_count(5, timeout=LONG)
    kept = studio.get("/api/v1/images", model="emoji-128-quick")["images"]
    made = {(one["record"].get("student") or {}).get("name"): one["record"]["seed"] for one in kept}
    assert len(kept) == 5 and made == {"quick": 1, None: 1}
    # The history draws the newest first, the card the fewest steps first and the teacher last.
    shown = [f"/api/v1/images/{one['id']}/file" for one in reversed(kept)]
    images = page.locator("#distil-card table.card img")
    assert [images.nth(place).get_attribute("src") for place in range(5)] == shown
    assert images.first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128


def measure(page: Page, studio: Studio) -> None:
    """Press Evaluate, and find the figures of both in the card; they are those of the reports."""
    expect(page.locator("#distil-evaluate-steps input")).to_have_value("4")
    fill(page, "distil-evaluate-prompts", "8")
    page.locator("#distil-evaluate").click()
    expect(page.locator("#distil-evaluating")).to_contain_text("Student, 4 steps")
    expect(page.locator("#distil-evaluate")).to_be_disabled()
    expect(page.locator("#distil-card tr[data-figure=top1] td")).to_have_count(3, timeout=LONG)
    jobs = studio.get("/api/v1/jobs", kind="evaluate")["jobs"]
    orders = [studio.get(f"/api/v1/jobs/{job['id']}/order")["order"] for job in reversed(jobs)]
    assert [(one["models"], one["student"], one["num_inference_steps"], one["n"]) for one in orders] == [
        (["emoji-128-quick"], "quick", 4, 8), (["emoji-128-quick"], "none", 20, 8)
    ]  # fmt: skip
    cells = page.locator("#distil-card tr[data-figure=top1] td").all_inner_texts()
    for job, cell in zip(reversed(jobs), cells, strict=False):
        (report,) = job["result"]["reports"]
        assert report["model"]["num_inference_steps"] in (4, 20) and report["sets"][0]["images"] == 8
        top1 = next(one for one in report["sets"][0]["figures"] if one["name"] == "top1")
        assert cell.startswith(f"{100 * top1['value']:.1f}%")
    expect(page.locator("#distil-evaluate")).to_be_enabled()
    expect(page.locator("#distil-evaluating")).not_to_contain_text("steps")


def draw_with_it(page: Page, studio: Studio) -> dict[str, Any]:
    """Find the new stop on Create's dial, draw a picture of seed 3 there, and return what is known of it."""
    page.locator("#distil-use").click()
    expect(page.locator("#create-model input")).to_have_value("emoji-128-quick")
    expect(page.locator("#prompt textarea")).to_have_value("a red apple")
    dial = page.locator("#create-quality")
    expect(dial.locator("label", has_text="4 steps · lcm")).to_be_visible()
    new = dial.locator("label", has_text="4 steps · quick")
    expect(new.locator("input")).to_be_checked()
    # and it is a stop that one can leave and come back to
    dial.locator("label", has_text="teacher").locator("input").check()
    expect(page.locator("#create-negative")).to_contain_text("Works through guidance")
    new.locator("input").check()
    expect(page.locator("#create-negative")).to_contain_text("students draw without guidance")
    before = {one["id"] for one in studio.get("/api/v1/images")["images"]}
    fill(page, "create-seed", "3")
    page.locator("#create-seed input").press("Tab")
    page.locator("#create-count input[type=number]").fill("1")
    page.locator("#create-count input[type=number]").press("Tab")
    page.locator("#create-draw").click()
    until, drawn = time.monotonic() + LONG / 1000, []
    while not drawn and time.monotonic() < until:
        time.sleep(0.5)
        drawn = [one for one in studio.get("/api/v1/images")["images"] if one["id"] not in before]
    assert len(drawn) == 1
    expect(page.locator("#create-gallery img").first).to_be_visible()
    # Times come one by one, the teacher's last, and leave what was chosen meanwhile.
    expect(dial.locator("label", has_text="teacher")).to_have_text(re.compile(r"\d s$"), timeout=LONG)
    expect(new.locator("input")).to_be_checked()
    found: dict[str, Any] = drawn[0]
    return found


def check_picture(studio: Studio, made: dict[str, Any]) -> None:
    """The student drew it, and nobody else would have drawn the same."""
    record = made["record"]
    assert record["model"] == made["model"] == "emoji-128-quick"
    students = studio.get("/api/v1/models/emoji-128-quick")["students"]
    quick = next(one for one in students if one["name"] == "quick")
    assert record["student"] == {"name": "quick", "method": "lcm", "hash": quick["hash"]}
    assert (record["num_inference_steps"], record["seed"], record["prompt"]) == (4, 3, "a red apple")
    assert record["guidance_scale"] == 1.0 and record["solver"] == "lcm"
    found = of_picture(studio, made["id"])
    assert found.shape == (128, 128, 3) and found.std() > 20

    def drawn(student: str, steps: int) -> Pixels:
        job = studio.draw(
            "a red apple", seed=3, model="emoji-128-quick", student=student, num_inference_steps=steps
        )
        return of_picture(studio, job["result"]["images"][0])

    assert (drawn("quick", 4) == found).all()
    for student, steps in (("lcm", 4), ("quick", 2), ("none", 20)):
        assert np.abs(drawn(student, steps) - found).mean() > 2.0, (student, steps)


@pytest.mark.soak  # three minutes of one process: continuous integration has twenty for everything
def test_a_student_is_distilled_measured_and_a_stop_of_the_dial(
    school: Studio, open_page: Callable[..., Page], heard: Any
) -> None:
    heard.expect("AbortError")  # what the page was asking when it is loaded again
    page = open_page(at=school)
    job = distil(page, school)
    check_what_was_kept(school, job)
    check_card(page, school, job)
    compare(page, school)
    measure(page, school)

    page.reload()  # the card is the server's, with its pictures and figures
    page.locator("#prompt").wait_for()
    page.get_by_role("tab", name="Distil", exact=True).click()
    check_card(page, school, job)
    expect(page.locator("#distil-card table.card img")).to_have_count(5)
    expect(page.locator("#distil-card tr[data-figure=top1] td")).to_have_count(3)

    check_picture(school, draw_with_it(page, school))
