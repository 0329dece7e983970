"""Adapter training when something is wrong: pictures, captions, base, disk, or a process that is killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))

import families_builder
from families_builder import Case

from fewstep.checkpoint import atomic, safetensors
from fewstep.cli.main import main
from fewstep.errors import OutputError
from fewstep.training import adapter_run, checkpointing
from fewstep.training.products import finish
from fewstep.training.recipe import parse_recipe
from fewstep.training.trainer import train

Output = pytest.CaptureFixture[str]

RECIPE = """
kind: lora
name: small
base: {{path: {base}}}
data: {{source: folder, path: {pictures}, batch_size: 2}}
pictures: {{mirror: true, crop: random, crops: 2}}
lora: {{rank: 2, targets: [attention], dropout: 0.2}}
optimiser: {{learning_rate: 0.01}}
stop: {{images: 12}}
runtime: {{threads: 1, device: cpu, log_images: 2, prefetch: 0, checkpoint_minutes: 60}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families_builder.build(
        Case("sd1", "txt2img", scheduler="ddim"), tmp_path_factory.mktemp("b") / "m"
    )


def make(folder: Path, count: int, *, captions: bool = True) -> Path:
    folder.mkdir()
    for i in range(count):
        array = np.full((16, 20, 3), 10 * (i % 20), np.uint8)
        Image.fromarray(array).save(folder / f"{i:02d}.png")
        if captions:
            (folder / f"{i:02d}.txt").write_text(f"apple {i}")
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No forward pass before training: tests of what is refused do not need the estimate."""
    monkeypatch.setattr(adapter_run.adapter_memory, "estimate", lambda *_: "not measured")
    yield


def go(base: Path, pictures: Path, run: Path, *settings: str, resume: bool = False) -> None:
    recipe = parse_recipe(RECIPE.format(base=base, pictures=pictures), settings)
    train(recipe, run_folder=run, resume=resume, show_progress=False)


@pytest.mark.usefixtures("quick")
def test_t07_a_killed_run_goes_on_bit_by_bit(base: Path, tmp_path: Path) -> None:
    pictures = make(tmp_path / "pictures", 3)
    go(base, pictures, tmp_path / "whole")
    run = tmp_path / "killed"
    child = tiny_runs.fork(lambda: go(base, pictures, run, "runtime.checkpoint_images=2", "stop.images=4000"))
    deadline = time.monotonic() + 300
    while not checkpointing.found(run / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    reached = int(checkpointing.found(run / "checkpoints")[-1].name)
    assert reached < 4000
    end = max(12, reached + 2 - reached % 2)
    go(base, pictures, run, f"stop.images={end}", resume=True)
    if end != 12:
        shutil.rmtree(tmp_path / "whole")
        go(base, pictures, tmp_path / "whole", f"stop.images={end}")
    assert tiny_runs.hashes(run) == tiny_runs.hashes(tmp_path / "whole")
    made = [finish(folder) for folder in (run, tmp_path / "whole")]
    assert made[0] is not None and made[1] is not None
    states = [safetensors.load_torch(path) for path in made if path is not None]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    # the safetensors library writes the texts in any order
    assert safetensors.read_metadata(made[0]) == safetensors.read_metadata(made[1])


@pytest.mark.usefixtures("quick")
def test_five_corrupt_pictures_in_fifty_are_reported_and_the_rest_trains(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = make(tmp_path / "pictures", 50)
    broken = [f"{i:02d}.png" for i in (3, 11, 20, 33, 49)]
    for name in broken:
        (pictures / name).write_bytes((pictures / name).read_bytes()[:40])
    with caplog.at_level(logging.WARNING, "fewstep.training"):
        go(base, pictures, tmp_path / "run", "stop.images=2", "pictures.crops=1", "pictures.mirror=false")
    assert "5 of 50 pictures cannot be used" in caplog.text and "03.png" in caplog.text
    report = json.loads((tmp_path / "run" / "bad_pictures.json").read_text())
    assert [entry["sample"] for entry in report["samples"]] == broken
    assert (finish(tmp_path / "run") or Path("none")).is_file()


@pytest.mark.usefixtures("quick")
def test_a_full_disk_in_the_middle_loses_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, run = make(tmp_path / "pictures", 3), tmp_path / "run"
    go(base, pictures, run, "stop.images=4")
    before = tiny_runs.hashes(run)
    file = finish(run)
    assert file is not None
    content = file.read_bytes()
    real = os.replace

    def full(source: str, target: str) -> None:
        if "checkpoints" in str(target) or str(target).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OutputError, match="No space left"):
            go(base, pictures, run, "stop.images=8", resume=True)
        with pytest.raises(OutputError, match="No space left"):
            finish(run)
    assert tiny_runs.hashes(run) == before and file.read_bytes() == content
    assert not [path for path in run.rglob(".*") if path.is_file()]
    atomic.sweep(run)
    go(base, pictures, run, resume=True)
    go(base, pictures, tmp_path / "whole")
    assert tiny_runs.hashes(run) == tiny_runs.hashes(tmp_path / "whole")


def refused(arguments: list[str], code: int, capsys: Output) -> str:
    """What the command says; one line, the code, and no file."""
    assert main(["train", *arguments]) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("fewstep: ") and "Traceback" not in "".join(said)
    return said[-1]


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_trained_is_said_in_a_sentence(
    base: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bare = make(tmp_path / "good", 2), make(tmp_path / "bare", 2, captions=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    model = ["--model", str(base)]
    assert "2 of 2 pictures have no caption" in refused(["lora", "bare", *model], 6, capsys)
    assert "no image in this folder" in refused(["lora", "empty", *model], 6, capsys)
    assert "no such folder" in refused(["lora", "nowhere", *model], 6, capsys)
    assert "no folder given" in refused(["embedding"], 2, capsys)
    assert "model 'other'" in refused(["lora", "good", "--model", "other"], 4, capsys)
    assert "ends in .safetensors" in refused(["lora", "good", *model, "--out", "x.ckpt"], 2, capsys)
    (tmp_path / "there.safetensors").write_text("mine")
    assert "exists already" in refused(["lora", "good", *model, "--out", "there.safetensors"], 7, capsys)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    wrong = ["lora", "good", *model, "--set", "pictures.width=50"]
    assert "multiples of 16; use 48" in refused(wrong, 2, capsys)
    wrong = ["lora", "good", *model, "--set", "lora.targets=[nothing]"]
    assert "no layer answers to 'nothing'" in refused(wrong, 2, capsys)
    inpaint = families_builder.build(Case("sd1", "inpaint-9"), tmp_path / "inpaint")
    assert "inpainting or editing" in refused(["lora", "good", "--model", str(inpaint)], 3, capsys)
    pixart = families_builder.build(Case("pixart-sigma", "txt2img"), tmp_path / "pixart")
    wrong = ["embedding", "good", "--model", str(pixart), "--set", "pictures.width=16"]
    assert "reads its text with T5" in refused([*wrong, "--set", "pictures.height=16"], 2, capsys)
    assert "--trigger" in refused(["emoji-128/denoiser", str(good)], 2, capsys)
    # a trigger is enough where nothing is written
    assert main(["train", "lora", str(bare), *model, "--trigger", "zzq", "--dry-run"]) == 0
