"""Nothing that comes from outside runs as markup, script or template, wherever the studio shows it.

Prompts, tags, file names, what pictures and LoRAs say of themselves, captions, names of models: each has a
text that sets `window.hit` when anything takes it for more than text, or asks for a picture that is not
there.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Page, expect

from fewstep.studio.tabs import TABS

ROOT = Path(__file__).parents[2]


def hostile(where: str) -> str:
    """A text whose traces name the place."""
    hit = f"window.hit='{where}'"
    return (
        f'{where}</title></textarea></script><script>{hit}</script><img src=x-{where} onerror="{hit}">'
        f'<svg onload={hit}><a href="javascript:{hit}">l</a> [m](javascript:{hit}) ![n](x-{where}) '
        f"${{{hit}}} {{{{{hit}}}}} {{{{{{{hit}}}}}}} <%= {hit} %> ' onmouseover={hit} \" autofocus "
        f"onfocus={hit} ` \\"
    )


def named(where: str) -> str:
    """One for the name of a file."""
    return f"{where}<img src=x-{where} onerror=window.hit='{where}'>"


RAN = """() => ({
  hit: window.hit ?? null,
  elements: [...document.querySelectorAll(
    "[src^='x-'], [href^='javascript:'], svg[onload], [onmouseover], [onfocus], "
    + "a[href*='window.hit']:not([href*='/gradio_api/file='])"
  )].map(e => e.outerHTML.slice(0, 200)),
})"""


def picture(text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    out = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(out, "PNG", pnginfo=info)
    return out.getvalue()


@pytest.fixture(scope="module")
def beset(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with hostile LoRAs, models, pictures, tags and captions."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "loras").mkdir()
    lora = (ROOT / "weights" / "emoji-128-styles" / "gold.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", lora[:8])
    header = json.loads(lora[8 : 8 + length])
    header["__metadata__"] = {
        **header.get("__metadata__", {}), "ss_output_name": hostile("lora-output"),
        "modelspec.title": hostile("lora-title"), "modelspec.trigger_phrase": hostile("lora-trigger"),
        "modelspec.description": hostile("lora-said"), "modelspec.author": hostile("lora-author"),
        "ss_tag_frequency": json.dumps({hostile("lora-folder"): {hostile("lora-tag"): 40}}),
    }  # fmt: skip
    changed = json.dumps(header).encode()
    changed += b" " * (-len(changed) % 8)
    (folder / "loras" / f"{named('lora-file')}.safetensors").write_bytes(
        struct.pack("<Q", len(changed)) + changed + lora[8 + length :]
    )
    (folder / "models").mkdir()
    (folder / "models" / named("model")).symlink_to(ROOT / "weights" / "emoji-128")
    options = ("--loras-dir", str(folder / "loras"), "--models-dir", str(folder / "models"))
    with serve(folder, *options) as studio:
        job = studio.draw(hostile("prompt"), negative_prompt=hostile("negative"), n=1, num_inference_steps=2)
        studio.request(
            "PATCH",
            f"/api/v1/images/{job['result']['images'][0]}",
            {"add_tags": ["<b onclick=window.hit='tag'>tag"]},
        )
        files = {"pictures": ("a.png", picture(""), "image/png")}
        made = studio.post("/api/v1/datasets/set", files=files)
        captions = {made["pictures"][0]["name"]: hostile("caption")}
        studio.request("PATCH", "/api/v1/datasets/set", {"captions": captions})
        yield studio


def upload(page: Page, where: str, name: str, data: bytes) -> None:
    page.locator(f"{where} input[type=file]").first.set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": data}]
    )


def settle(page: Page) -> None:
    """Pictures that are not there, and scripts, have had the time to fail or to run."""
    page.wait_for_timeout(700)


def test_hostile_texts_are_shown_and_do_nothing(beset, open_page, go) -> None:
    page = open_page(at=beset)
    found = {}

    def look(where: str) -> None:
        settle(page)
        ran = page.evaluate(RAN)
        if ran["hit"] or ran["elements"]:
            found[where] = ran
            page.evaluate("() => { delete window.hit; }")

    box = page.locator("#prompt textarea")
    box.fill(hostile("typed"))
    look("create, live")
    page.locator("#create-draw").click()
    expect(page.locator("#create-gallery img").first).to_be_visible()
    look("create, drawn")
    for fold in page.locator("#tab-create button.label-wrap").all():
        if fold.is_visible() and "open" not in (fold.get_attribute("class") or ""):
            fold.click()
    look("create, unfolded")
    page.reload()
    box.wait_for()
    look("create, again")

    go(page, "history")
    tile = page.locator("#history-grid [role=option]", has=page.locator("img")).last
    tile.click()
    expect(page.locator("#history-details")).to_contain_text("<script>window.hit='prompt'</script>")
    look("history")

    go(page, "info")
    said = (
        f"{hostile('info')}\nNegative prompt: {hostile('info-not')}\nSteps: 20, Sampler: Euler a, Seed: 1, "
    )
    said += (
        f'CFG scale: 7, Size: 64x64, Model: "{hostile("info-model")}", Version: "{hostile("info-version")}"'
    )
    upload(page, "#info-picture", f"{named('info-file')}.png", picture(said))
    expect(page.locator("#info-prompt textarea")).to_have_value(re.compile("<script>window.hit='info'"))
    look("info")

    go(page, "extras")
    upload(page, "#extras-files", f"{named('extras-file')}.png", picture(""))
    expect(page.locator("#extras-files")).to_contain_text(".png")
    look("extras")

    panel = go(page, "models")
    expect(panel).to_contain_text("emoji-128")
    expect(panel).not_to_contain_text("model<img")  # names of models are keys: such a folder is none
    look("models")

    go(page, "train")
    expect(page.locator("#train-captions")).to_contain_text("caption</title>")
    look("train")

    for name in TABS:
        panel = go(page, name)
        for choice in panel.locator("input[role=listbox]").all():
            if choice.is_visible() and choice.is_enabled():
                choice.click()
                page.keyboard.press("Escape")
        look(f"{name}, choices")
    assert found == {}
