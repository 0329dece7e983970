"""A merge that is killed, cancelled, out of space, or whose models change leaves nothing half done."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import atomic, tensorfile
from fewstep.checkpoint.merging import run, writing
from fewstep.checkpoint.merging.run import Options, merge
from fewstep.errors import CheckpointError, OutputError

WEIGHTS = Path(__file__).parents[2] / "weights" / "emoji-128" / "vae" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two autoencoders: the smallest file that is a model."""
    root = tmp_path_factory.mktemp("models")
    found = []
    for add, name in enumerate("ab"):
        found.append(root / f"{name}.safetensors")
        save_file({n: v + add for n, v in load_file(WEIGHTS).items()}, found[-1])
    return found


def fork(function: Callable[[], None]) -> Any:
    """A child that shares the imported torch: importing it takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_kills_at_any_moment_leave_the_old_file_or_the_new_one(models: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"

    def merge_without_end() -> None:
        torch.set_num_threads(1)
        for number in range(10_000):
            merge(models, out, Options(multiplier=number % 2, replace=True))

    a, b = map(load_file, models)
    rng, interrupted = np.random.default_rng(0), 0
    for _ in range(8):
        child = fork(merge_without_end)
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out*")) and time.monotonic() < deadline:
            time.sleep(0.002)  # until it writes, however busy the machine is
        time.sleep(rng.uniform(0.0, 0.1))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        interrupted += len(atomic.sweep(tmp_path))
        assert left(tmp_path) in ([], ["out.safetensors"])
        if out.exists():
            found = load_file(out)
            assert any(all(torch.equal(found[n], given[n]) for n in given) for given in (a, b))
    assert interrupted > 1, "the kills missed the writing: this test shows nothing"


def test_a_merge_sweeps_what_a_dead_one_left(models: list[Path], tmp_path: Path) -> None:
    child = fork(lambda: None)
    child.join()
    (tmp_path / f".out.safetensors.tmp-{child.pid}-0123abcd").write_bytes(b"half")
    merge(models, tmp_path / "out.safetensors", Options())
    assert left(tmp_path) == ["out.safetensors"]


@pytest.mark.parametrize("moment", [1, 30, 100])
def test_ctrl_c_leaves_nothing(models: list[Path], tmp_path: Path, moment: int) -> None:
    count = 0

    def press(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGINT)

    # A shell that started the tests in the background has had the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            merge(models, tmp_path / "out.safetensors", Options(), on_progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk_in_the_middle_is_a_sentence_and_leaves_nothing(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    given, out = models, tmp_path / "place" / "out.safetensors"
    if kind == "folder":
        out = tmp_path / "place" / "out"
        given = [tmp_path / "m"]
        for part in ("unet", "vae"):
            shutil.copytree(WEIGHTS.parents[1] / part, given[0] / part)
        (given[0] / "NOTICE").write_text("x")
    room = {"left": 1_000_000}
    real = Path.open

    class Full:
        """A file on a disk with little room."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: Any) -> int:
            room["left"] -= len(data)
            if room["left"] < 0:
                raise OSError(28, "No space left on device")
            return int(self.file.write(data))

    def opened(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = real(self, mode, *rest, **more)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", opened)
    options = Options(mode="no-interpolation") if kind == "folder" else Options()
    with pytest.raises(OutputError, match="No space left") as error:
        merge(given, out, options)
    assert "free some space" in str(error.value) and room["left"] < 0
    assert left(out.parent) == []


def test_a_disk_that_is_too_small_is_seen_before_the_work(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: Usage)
    monkeypatch.setattr(writing, "write_file", lambda *a: pytest.fail("wrote"))
    with pytest.raises(OutputError, match=r"needs 0\.0 GB, and the disk has 0\.0 GB left; free some space"):
        merge(models, tmp_path / "new" / "out.safetensors", Options())
    assert left(tmp_path) == []


def test_a_model_that_changes_while_it_is_read_is_refused(models: list[Path], tmp_path: Path) -> None:
    copies = [tmp_path / path.name for path in models]
    for path, copy in zip(models, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    count = 0

    def touch(done: int, total: int) -> None:
        nonlocal count
        count += 1
        if count == 40:
            with copies[1].open("r+b") as file:
                file.seek(-4, 2)
                file.write(b"\0\0\0\0")

    with pytest.raises(CheckpointError, match="was changed while it was read"):
        merge(copies, tmp_path / "out.safetensors", Options(), on_progress=touch)
    assert left(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_a_failure_while_replacing_keeps_the_old_result(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    merge(models, out, Options(multiplier=0.0))
    before = out.read_bytes()
    real = tensorfile.write

    def torn(path: Any, plan: Any, tensors: Iterator[Any], metadata: Any = None) -> None:
        def some() -> Iterator[Any]:
            for number, item in enumerate(tensors):
                if number == 20:
                    raise OSError(5, "Input/output error")
                yield item

        real(path, plan, some(), metadata)

    monkeypatch.setattr(tensorfile, "write", torn)
    with pytest.raises(OutputError, match="Input/output error"):
        merge(models, out, Options(multiplier=1.0, replace=True))
    assert out.read_bytes() == before and left(tmp_path) == ["out.safetensors"]
