"""What a checkpoint promises: complete or not there, verified, kept, readable later."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch

from fewstep.checkpoint import atomic
from fewstep.errors import CheckpointError, OutputError
from fewstep.training import checkpointing

FIXTURES = Path(__file__).parent / "fixtures"


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"net": {"w": torch.full((40_000,), value)}, "net.ema": {"w": torch.full((40_000,), value)}}


def save(parent: Path, images: int) -> Path:
    return checkpointing.save(parent, images, tensors(float(images)), {"steps": images})


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("primitive", ["write", "fsync", "replace"])
def test_t01_whichever_primitive_fails_the_previous_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primitive: str
) -> None:
    save(tmp_path, 1)
    real, state = getattr(os, primitive), {"count": 0, "fail_at": 10**9}

    def wrapped(*arguments: object) -> object:
        state["count"] += 1
        if state["count"] == state["fail_at"]:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, primitive, wrapped)
    save(tmp_path / "count", 2)
    for k in range(1, state["count"] + 1):
        state.update(count=0, fail_at=k)
        with pytest.raises(OutputError, match="No space left"):
            save(tmp_path, 2)
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        newest = checkpointing.latest(tmp_path)
        assert newest is not None
        # The last flush comes after the rename: then the new one is there, and complete.
        after_rename = (tmp_path / "0000000002").is_dir()
        assert newest.images_seen == (2 if after_rename else 1)
        assert newest.tensors("net")["w"][0] == newest.images_seen
        assert not after_rename or (primitive, k) == ("fsync", state["count"])
        atomic.remove_folder(tmp_path / "0000000002")


def test_t01_thirty_kills_while_saving(tmp_path: Path) -> None:
    def save_without_end() -> None:
        newest = checkpointing.latest(tmp_path)
        images = newest.images_seen if newest else 0
        while True:
            images += 1
            save(tmp_path, images)
            checkpointing.retain(tmp_path, 2)

    rng, last, interrupted = np.random.default_rng(0), 0, 0
    for _ in range(30):
        child = tiny_runs.fork(save_without_end)
        time.sleep(rng.uniform(0.01, 0.08))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        interrupted += len(atomic.sweep(tmp_path))
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        for folder in checkpointing.found(tmp_path):
            checkpoint = checkpointing.open_checkpoint(folder)
            assert checkpoint.tensors("net.ema")["w"].unique().tolist() == [checkpoint.images_seen]
        newest = checkpointing.latest(tmp_path)
        assert newest is None or newest.images_seen >= last
        last = newest.images_seen if newest else last
    assert last > 0
    assert interrupted > 3, "the kills missed the saving: this test shows nothing"


def test_t02_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.replace

    def note(source: Path, target: Path) -> None:
        order.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", note)
    save(tmp_path, 5)
    assert order == ["net.safetensors", "net.ema.safetensors", "state.json", "0000000005"]


def test_t03_a_serialiser_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Torn:
        """Stands in for a tensor until it is asked for its data."""

        def detach(self) -> torch.Tensor:
            raise RuntimeError("device lost")

    bad = {**tensors(1.0), "last": {"w": Torn()}}
    with pytest.raises(RuntimeError, match="device lost"):
        checkpointing.save(tmp_path, 1, bad, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON"):
        checkpointing.save(tmp_path, 1, tensors(1.0), {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_t04_a_full_disk_keeps_old_checkpoints_and_fails_at_the_end(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"

    def full_after_the_first() -> None:
        def fill(progress: object) -> None:
            if progress.images_seen == 20:  # type: ignore[attr-defined]
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        try:
            tiny_runs.run("denoiser", run_folder, "runtime.checkpoint_images=8", on_progress=fill)
        except OutputError as error:
            (tmp_path / "error").write_text(str(error))
            os._exit(error.exit_code)

    child = tiny_runs.fork(full_after_the_first)
    child.join(60)
    assert child.exitcode == OutputError.exit_code
    assert "cannot be written" in (tmp_path / "error").read_text()
    kept = checkpointing.found(run_folder / "checkpoints")
    assert [folder.name for folder in kept] == ["0000000008", "0000000016"]
    for folder in kept:
        checkpointing.open_checkpoint(folder)
    assert not [p for p in (run_folder / "checkpoints").iterdir() if p.name.startswith(".")]
    assert tiny_runs.losses(run_folder)[-1]["images"] == 48  # training went on
    tiny_runs.run("denoiser", run_folder, resume=True)  # space was made
    tiny_runs.run("denoiser", tmp_path / "whole")
    assert tiny_runs.hashes(run_folder) == tiny_runs.hashes(tmp_path / "whole")


def test_t05_bit_flip_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    flip_a_byte(save(tmp_path, 2) / "net.ema.safetensors")
    with caplog.at_level(logging.WARNING):
        newest = checkpointing.latest(tmp_path)
    assert newest is not None and newest.images_seen == 1
    assert "CHECKPOINT BROKEN" in caplog.text and "hash differs" in caplog.text
    with pytest.raises(CheckpointError, match="hash differs"):
        checkpointing.latest(tmp_path, strict=True)
    flip_a_byte(tmp_path / "0000000001" / "net.safetensors")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are broken"):
        checkpointing.latest(tmp_path)


@pytest.mark.slow
def test_t05_a_run_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    tiny_runs.run("denoiser", tmp_path / "whole")
    tiny_runs.run("denoiser", tmp_path / "run", "runtime.checkpoint_images=8", "stop.images=24")
    newest = checkpointing.found(tmp_path / "run" / "checkpoints")[-1]
    flip_a_byte(newest / "denoiser.safetensors")
    with pytest.raises(CheckpointError):
        tiny_runs.run("denoiser", tmp_path / "run", resume=True, strict=True)
    # Only 24 is broken, so the run starts from 16 and must write 24 and all later ones anew.
    tiny_runs.run("denoiser", tmp_path / "run", "runtime.checkpoint_images=8", "runtime.keep=9", resume=True)
    assert tiny_runs.hashes(tmp_path / "run") == tiny_runs.hashes(tmp_path / "whole")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [int(f.name) for f in checkpointing.found(checkpoints)] == [16, 24, 32, 40, 48]
    for folder in checkpointing.found(checkpoints):
        checkpointing.open_checkpoint(folder)
    assert (checkpoints / "0000000024.broken").is_dir()


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "empty manifest", "outside"])
def test_t05_other_damage_is_seen_too(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    manifest = newest / "state.json"
    if damage == "cut":
        (newest / "net.safetensors").write_bytes((newest / "net.safetensors").read_bytes()[:-1])
    elif damage == "gone":
        (newest / "net.safetensors").unlink()
    elif damage == "outside":
        manifest.write_text(manifest.read_text().replace("net.safetensors", "../0000000001/net.safetensors"))
    else:
        manifest.write_text("{" if damage == "manifest" else "[]")
    found = checkpointing.latest(tmp_path)
    assert found is not None and found.images_seen == 1


def test_t06_retention_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    for images in range(1, 6):
        save(tmp_path, images)
    (tmp_path / "0000000099").mkdir()  # no manifest: not a checkpoint, does not count as the newest
    refused: list[Path] = []

    def second_is_stuck(folder: Path) -> None:
        if folder.name.endswith("2"):
            refused.append(folder)
            raise PermissionError("in use")
        atomic.remove_folder(folder)

    checkpointing.retain(tmp_path, 2, remove=second_is_stuck)
    assert refused
    assert [int(folder.name) for folder in checkpointing.found(tmp_path)] == [2, 4, 5]
    checkpointing.retain(tmp_path, 2)
    assert [int(folder.name) for folder in checkpointing.found(tmp_path)] == [4, 5]


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_t06_one_checkpoint_is_not_enough(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1)
    with pytest.raises(ValueError, match="keep 2 or more"):
        checkpointing.retain(tmp_path, keep)
    assert len(checkpointing.found(tmp_path)) == 1


def test_t06_a_run_keeps_two(tmp_path: Path) -> None:
    tiny_runs.run("denoiser", tmp_path, "runtime.checkpoint_images=8")
    assert [f.name for f in checkpointing.found(tmp_path / "checkpoints")] == ["0000000040", "0000000048"]


def test_t10_checkpoints_of_every_release_are_read() -> None:
    found = sorted(FIXTURES.glob("checkpoint-format-*"))
    assert {int(folder.name.rpartition("-")[2]) for folder in found} == set(
        range(1, checkpointing.FORMAT + 1)
    )
    for folder in found:
        checkpoint = checkpointing.latest(folder)
        assert checkpoint is not None and checkpoint.images_seen == 8
        assert checkpoint.manifest["roles"]["denoiser"]["guard"]["skipped"] == 0
        assert set(checkpoint.tensors("denoiser")) == set(checkpoint.tensors("denoiser.ema"))


def test_t10_a_release_fixture_can_be_resumed(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(FIXTURES / "checkpoint-format-1", tmp_path / "checkpoints")
    result = tiny_runs.run("denoiser", tmp_path, "stop.images=12", resume=True)
    assert (result.images_seen, result.steps) == (12, 3)


@pytest.mark.parametrize(
    ("version", "told"), [(0, "too old"), (99, "install a newer fewstep"), ("x", "newer")]
)
def test_t10_other_formats_are_refused_with_a_version_message(
    tmp_path: Path, version: object, told: str
) -> None:
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "state.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": version, "fewstep": "9.9"}))
    with pytest.raises(CheckpointError, match=told) as error:  # and no silent fall-back to the older one
        checkpointing.latest(tmp_path)
    assert "9.9" in str(error.value)
