"""Signals: the first saves and stops, the second ends at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import tiny_runs

from fewstep.training import checkpointing


def send(name: str, *, at: int, times: int = 1) -> object:
    def on_progress(progress: object) -> None:
        if progress.images_seen == at:  # type: ignore[attr-defined]
            for _ in range(times):
                os.kill(os.getpid(), getattr(signal, name))

    return on_progress


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_t11_a_signal_finishes_the_step_saves_and_stops(tmp_path: Path, name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    result = tiny_runs.run("denoiser", tmp_path, on_progress=send(name, at=12))
    # It comes after the third step; the fourth is finished, logged and saved.
    assert (result.stopped, result.images_seen) == (name, 16)
    assert int(result.checkpoint.name) == 16 == tiny_runs.losses(tmp_path)[-1]["images"]
    assert signal.getsignal(getattr(signal, name)) is before
    checkpointing.open_checkpoint(result.checkpoint)


def test_t11_handlers_are_restored_after_an_error(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail(progress: object) -> None:
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        tiny_runs.run("denoiser", tmp_path, on_progress=fail)
    assert signal.getsignal(signal.SIGTERM) is before


def test_t11_a_process_that_gets_sigterm_exits_with_zero(tmp_path: Path) -> None:
    child = tiny_runs.fork(lambda: tiny_runs.run("denoiser", tmp_path, "stop.images=4000000"))
    limit = time.monotonic() + 60
    while not (tmp_path / "progress.jsonl").is_file() and time.monotonic() < limit:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == 0
    saved = checkpointing.found(tmp_path / "checkpoints")
    assert int(saved[-1].name) == tiny_runs.losses(tmp_path)[-1]["images"] > 0


def test_t11_a_second_signal_exits_now(tmp_path: Path) -> None:
    child = tiny_runs.fork(
        lambda: tiny_runs.run("denoiser", tmp_path, on_progress=send("SIGTERM", at=12, times=2))
    )
    child.join(60)
    assert child.exitcode == 128 + signal.SIGTERM
    assert checkpointing.found(tmp_path / "checkpoints") == []


def test_t11_who_is_told_to_stop_saves_before_a_grid_is_drawn(tmp_path: Path) -> None:
    saved: list[list[str]] = []

    def sampler(modules: object, recipe: object, images_seen: int) -> None:
        saved.append([folder.name for folder in checkpointing.found(tmp_path / "checkpoints")])

    result = tiny_runs.run(
        "denoiser", tmp_path, "samples.every_images=16", on_progress=send("SIGTERM", at=12), sampler=sampler
    )
    assert (result.stopped, saved) == ("SIGTERM", [[f"{16:010d}"]])


def test_a_time_limit_saves_and_stops(tmp_path: Path) -> None:
    result = tiny_runs.run("denoiser", tmp_path, "stop.hours=1e-9")
    assert (result.stopped, result.images_seen) == ("hours", 4)
    assert int(result.checkpoint.name) == 4


def test_checkpoints_come_by_wall_time(tmp_path: Path) -> None:
    tiny_runs.run("denoiser", tmp_path, "runtime.checkpoint_minutes=1e-9", "runtime.keep=100")
    names = [int(folder.name) for folder in checkpointing.found(tmp_path / "checkpoints")]
    assert names == list(range(4, 49, 4))
