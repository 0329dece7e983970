"""Pictures of every tab for the documentation: python tests/browser/screenshots.py [NAME ...]

Starts a server of its own with a fresh folder, makes real pictures, and writes docs/studio/NAME.png: every
tab in English, and Create in the dark, on a phone, and in Chinese. Distil shows a student that is made
for it, which takes minutes and the drawing set; `report` is its card. Look at them before committing.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from conftest import PATIENCE, Studio, launched, serving, show_tab

ROOT: Final = Path(__file__).parents[2]
OUT: Final = ROOT / "docs" / "studio"
PROMPTS: Final = (
    "a red apple, noto style, on a sky blue background",
    "a cat face, twemoji style, on a mint green background",
    "a fox, fluent 3d style, on a beige background",
    "a strawberry, noto style, on a light gray background",
    "a tropical fish, twemoji style, on a lavender background",
    "a mushroom, fluent flat style, on a yellow background",
)
PHONE: Final = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "device_scale_factor": 2}


def create(studio: Studio, page: Page) -> None:
    page.locator("#prompt textarea").press_sequentially(PROMPTS[0], delay=20)
    page.wait_for_timeout(6000)  # the finished picture of the live mode
    page.locator("#create-draw").click()
    page.locator("#create-gallery img").nth(3).wait_for()
    page.wait_for_timeout(1500)


def extras(studio: Studio, page: Page) -> None:
    upload(page, "#extras-picture", drawn(studio, 1))
    page.locator("#extras-run").click()
    page.locator("#extras-compare img, #extras-results img").first.wait_for()
    page.wait_for_timeout(1500)


def info(studio: Studio, page: Page) -> None:
    upload(page, "#info-picture", drawn(studio, 2))
    page.locator("#info-settings table").wait_for()
    page.wait_for_timeout(1000)


def history(studio: Studio, page: Page) -> None:
    page.locator("#history-grid [role=option]").nth(2).click()
    page.locator("#history-details table").wait_for()
    page.wait_for_timeout(1500)


def models(studio: Studio, page: Page) -> None:
    page.locator("#models-table").get_by_text("emoji-128", exact=True).first.click()
    page.locator("#models-details table").first.wait_for()


def train(studio: Studio, page: Page) -> None:
    page.locator("#train-captions img:visible").first.wait_for()
    page.wait_for_timeout(1000)


def distil(studio: Studio, page: Page) -> None:
    """A student of a minute, as the page would order it, drawn beside its teacher and measured."""
    order = {
        "kind": "distill", "name": "quick", "method": "lcm", "dataset": "drawings", "model": "emoji-128",
        "bundle": "emoji-128-quick", "bundle_precision": "fp16", "images": 600, "batch_size": 8, "grids": 3,
    }  # fmt: skip
    assert studio.ended(studio.post("/api/v1/jobs", order)["id"], 1800)["state"] == "done"
    show_tab(page, "create")
    show_tab(page, "distil")
    page.locator("#distil-compare").click(timeout=10 * PATIENCE)
    page.locator("#distil-card table.card img").nth(4).wait_for(timeout=10 * PATIENCE)
    page.locator("#distil-evaluate").click()
    page.locator("#distil-card tr[data-figure=top1] td").nth(2).wait_for(timeout=30 * PATIENCE)
    page.locator("#distil-evaluate:enabled").wait_for()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1500)


def report(studio: Studio, page: Page) -> None:
    """What `distil` has left."""
    page.locator("#distil-card tr[data-figure=top1]").wait_for()


def nothing(studio: Studio, page: Page) -> None:
    page.wait_for_timeout(1500)


TABS: Final[dict[str, Callable[[Studio, Page], None]]] = {
    "create": create, "extras": extras, "info": info, "history": history, "merger": nothing, "models": models,
    "train": train, "distil": distil, "report": report, "xyz": nothing, "settings": nothing,
}  # fmt: skip
PARTS: Final = {"report": ("distil", "#distil-card")}
"""Pictures of a part of a tab: the tab, and the part."""


def drawn(studio: Studio, index: int) -> bytes:
    return studio.bytes(studio.get("/api/v1/images")["images"][index]["url"])


def upload(page: Page, where: str, data: bytes) -> None:
    file = {"name": "picture.png", "mimeType": "image/png", "buffer": data}
    page.locator(f"{where} input[type=file]").first.set_input_files([file])


def prepare(studio: Studio) -> None:
    """Pictures in the history, one of them a favourite, and a dataset."""
    for seed, prompt in enumerate(PROMPTS):
        job = studio.draw(prompt, seed=seed, num_inference_steps=4 if seed % 2 else None, n=1 + seed % 2)
    image = job["result"]["images"][0]
    studio.request("PATCH", f"/api/v1/images/{image}", {"favourite": True, "add_tags": ["food", "draft"]})
    by_prompt = {one["prompt"]: one["url"] for one in studio.get("/api/v1/images")["images"]}
    for index, prompt in enumerate(PROMPTS):
        files = {"pictures": (f"drawing-{index}.png", studio.bytes(by_prompt[prompt]), "image/png")}
        studio.post("/api/v1/datasets/drawings", files=files)
    captions = {f"drawing-{index}": prompt for index, prompt in enumerate(PROMPTS)}
    studio.request("PATCH", "/api/v1/datasets/drawings", {"captions": captions})


def shoot(page: Page, name: str, part: str | None = None) -> None:
    """At 256 colours, which is a third of the bytes; all of the window, or a part of the page."""
    page.mouse.move(0, 0)
    taken = page.screenshot() if part is None else page.locator(part).screenshot()
    with Image.open(io.BytesIO(taken)) as image:
        small = image.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE)
    OUT.mkdir(parents=True, exist_ok=True)
    small.save(OUT / f"{name}.png", optimize=True)


def opened(browser: Browser, studio: Studio, language: str = "en", **how: object) -> Page:
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 960}, **how}).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE)
    page.goto(studio.page(language))
    page.locator("#prompt").wait_for()
    page.wait_for_timeout(2000)
    return page


def main(wanted: list[str]) -> None:
    others = {
        "dark": ("en", {"color_scheme": "dark"}), "phone": ("en", PHONE),
        "chinese": ("zh", {"locale": "zh-CN"}),
    }  # fmt: skip
    if unknown := set(wanted) - TABS.keys() - others.keys():
        sys.exit(f"{', '.join(unknown)}: not known; there are {', '.join([*TABS, *others])}")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "--models-dir", str(ROOT / "weights")) as studio,
        sync_playwright() as playwright,
    ):
        prepare(studio)
        browser = launched(playwright)
        assert browser is not None, "there is no Chromium; install it with: apt-get install chromium"
        page = opened(browser, studio)
        for name, fill in TABS.items():
            if not wanted or name in wanted:
                tab, part = PARTS.get(name, (name, None))
                show_tab(page, tab)
                fill(studio, page)
                shoot(page, name, part)
        for name, (language, how) in others.items():
            if not wanted or name in wanted:
                page = opened(browser, studio, language, **how)
                create(studio, page)
                shoot(page, name)
                page.context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
