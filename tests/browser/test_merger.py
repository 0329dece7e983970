"""Two models are merged, looked at, kept, and drawn with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file, save_file

pytest.importorskip("torch")

PIPELINE = Path(__file__).parents[2] / "weights" / "emoji-128"


def models(folder: Path) -> None:
    """The bundled model's pipeline, and a copy with other weights; both without students."""
    for name in ("one", "two"):
        shutil.copytree(PIPELINE, folder / name, ignore=shutil.ignore_patterns("students"))
    path = folder / "two" / "unet" / "diffusion_pytorch_model.safetensors"
    random = np.random.default_rng(0)
    weights = {
        key: (value * (1 + 0.3 * random.standard_normal(value.shape))).astype(value.dtype)
        if value.ndim == 4
        else value
        for key, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def test_a_merge_is_tried_kept_and_drawn_with(
    serve: Callable[..., Any], open_page: Callable[..., Page], tmp_path: Path
) -> None:
    models(tmp_path / "models")
    with serve(tmp_path, "--models-dir", str(tmp_path / "models")) as studio:
        page = open_page(at=studio)
        page.get_by_role("tab", name="Merger", exact=True).click()
        page.locator("#merger-b").get_by_role("listbox").or_(page.locator("#merger-b input")).first.click()
        page.get_by_role("option", name="two", exact=True).click()
        page.locator("#merger-steps").get_by_role("spinbutton").fill("1")
        page.locator("#merger-try").click()
        pictures = page.locator("#merger-pictures figure img")
        expect(pictures).to_have_count(3, timeout=180_000)
        # three pictures, each another one
        assert len({pictures.nth(place).get_attribute("src") for place in range(3)}) == 3
        drafts = [one for one in studio.get("/api/v1/models")["models"] if one["draft"]]
        assert len(drafts) == 1

        name = page.locator("#merger-name").get_by_role("textbox")
        name.fill("one")
        page.locator("#merger-keep").click()
        expect(page.get_by_text("there is a model called 'one' already").first).to_be_visible()
        name.fill("mixed")
        page.locator("#merger-keep").click()
        expect(page.locator("#merger-state")).to_contain_text("mixed is among the models")
        there = {one["name"]: one for one in studio.get("/api/v1/models")["models"]}
        assert not any(one["draft"] for one in there.values()) and "mixed" in there
        assert studio.get("/api/v1/images")["images"] == []  # a trial is no picture of the history

        image = studio.draw(model="mixed", num_inference_steps=1)["result"]["images"][0]
        assert studio.get(f"/api/v1/images/{image}")["model"] == "mixed"
        merged = load_file(studio.data / "models" / "mixed" / "unet" / "diffusion_pytorch_model.safetensors")
        parents = [
            load_file(tmp_path / "models" / part / "unet" / "diffusion_pytorch_model.safetensors")
            for part in ("one", "two")
        ]
        key = next(key for key, value in merged.items() if value.ndim == 4)
        middle = (parents[0][key].astype(np.float32) + parents[1][key].astype(np.float32)) / 2
        assert np.allclose(merged[key], middle, rtol=1e-2, atol=1e-4)
        page.context.close()  # before its server, or the page complains of it
