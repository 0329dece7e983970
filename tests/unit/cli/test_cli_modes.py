"""The sampling modes of ``fewstep generate`` on the fake backend."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import generate
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.prompt import containers

Output = pytest.CaptureFixture[str]


class Steered(FakeBackend):
    def control(self, uses: Any) -> None:
        self.scales = [use.scale for use in uses] or getattr(self, "scales", [])


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Steered:
    fake = Steered()
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: Engine(backend=fake))
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("in.png")
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:48, 16:48] = 255
    Image.fromarray(mask).save("mask.png")
    return fake


def run(*options: str) -> list[dict[str, Any]]:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["generate", "a red apple", "--upscale", "none", "--quiet", "--json", *options]) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def pixels(path: str | Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def written(record: dict[str, Any]) -> str:
    with Image.open(record["path"]) as image:
        return str(containers.decode(image).parameters)


def test_masks() -> None:
    (record,) = run(
        "--image", "in.png", "--mask", "mask.png", "--masked-content", "fill", "--mask-blur", "2",
        "--only-masked", "--padding", "4", "--invert-mask",
    )  # fmt: skip
    assert record["masking"] == {
        "content": "fill", "blur": 2, "only_masked": True, "padding": 4, "inverted": True,
    }  # fmt: skip
    assert np.array_equal(pixels(record["path"])[28:36, 28:36], pixels("in.png")[28:36, 28:36])
    assert "Mask mode: Inpaint not masked, Mask blur: 2, Inpaint area: Only masked" in written(record)


def test_outpaint() -> None:
    (record,) = run("--image", "in.png", "--outpaint", "32,0,0,8")
    assert (record["file_width"], record["file_height"]) == (96, 72)
    assert np.array_equal(pixels(record["path"])[:48, 48:], pixels("in.png")[:48, 16:])


def test_hires() -> None:
    (record,) = run(
        "--hires", "1.5", "--hires-steps", "4", "--hires-strength", "0.5", "--hires-upscaler", "nearest"
    )
    assert (record["file_width"], record["file_height"]) == (96, 96)
    assert "Denoising strength: 0.5, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Nearest" in written(
        record
    )
    (record,) = run("--hires", "128x96")
    assert (record["file_width"], record["file_height"]) == (128, 96)


def test_variations_are_told_of_each_image() -> None:
    records = run("--seed", "7", "--n", "2", "--variation-seed", "50", "--variation-strength", "0.3")
    assert [record["seed"] for record in records] == [7, 7]
    assert [record["variation"]["seed"] for record in records] == [50, 51]
    alone = run("--seed", "7", "--variation-seed", "51", "--variation-strength", "0.3")[0]
    assert np.abs(pixels(records[1]["path"]).astype(int) - pixels(alone["path"])).max() <= 1
    assert written(alone) == written(records[1])


def test_tiles_and_seed_resize() -> None:
    (record,) = run("--vae-tiling", "--seed-resize", "48x64")
    assert record["vae_tiling"] is True and record["variation"]["resize_from"] == [48, 64]
    assert "vae_tiling" not in run("--size", "256x256", "--no-vae-tiling")[0]
    assert run("--size", "256x256")[0]["vae_tiling"] is True


def test_control_networks(backend: Steered, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "edges"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    (record,) = run(
        "--control", "edges", "--control-image", "in.png", "--control-scale", "0.5",
        "--control", str(folder), "--control-image", "in.png", "--control-scale", "0.25",
        "--models-dir", "models",
    )  # fmt: skip
    assert backend.scales == [0.5, 0.25]
    assert [use["name"] for use in record["control"]] == ["edges", "edges"]
    assert 'Control 1: "edges, scale 0.25"' in written(record)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--outpaint", "8"], "left,right,top,bottom"),
        (["--outpaint", "8,8,-8,0"], "left,right,top,bottom"),
        (["--outpaint", "8,8,x,0"], "left,right,top,bottom"),
        (["--hires", "large"], "a scale such as 2"),
        (["--hires", "12x"], "width and height"),
        (["--hires-steps", "4"], "--hires-steps is given without --hires"),
        (["--hires-strength", "0.5"], "without --hires"),
        (["--hires-upscaler", "latent"], "without --hires"),
        (["--control", "edges"], "give one picture for each network"),
        (["--control-image", "in.png"], "0 --control and 1 --control-image"),
        (
            ["--control", "e", "--control-image", "in.png", "--control-scale", "1", "--control-scale", "1"],
            "or none",
        ),
        (["--control", "edges", "--control-image", "in.png"], "control 'edges': not found"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: list[str], words: str, capsys: Output) -> None:
    assert main(["generate", "a red apple", *options]) in (2, 4)
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


def test_the_guide_names_options_that_there_are() -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "guides" / "modes.md").read_text(encoding="utf-8")
    known = set(re.findall(r"--[a-z][a-z-]*", (docs / "reference" / "cli.md").read_text(encoding="utf-8")))
    used = set(re.findall(r"--[a-z][a-z-]*", page))
    assert len(used) > 15 and used <= known, used - known
