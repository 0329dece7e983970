"""A run that was interrupted goes on as if nothing had happened, bit by bit."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_runs

from fewstep.checkpoint import atomic
from fewstep.errors import NotFoundError, RunError
from fewstep.training import checkpointing
from fewstep.training.lock import run_lock


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs of 12 steps to compare with."""
    import torch

    torch.set_num_threads(1)
    folders = {}
    for kind in ("denoiser", "autoencoder", "evaluator"):
        folders[kind] = tmp_path_factory.mktemp(kind)
        tiny_runs.run(kind, folders[kind], "runtime.accumulation=2")
    return folders


@pytest.mark.parametrize("kind", ["denoiser", "autoencoder", "evaluator"])
@pytest.mark.parametrize("k", [1, 5, 11])
def test_t07_a_resumed_run_is_bit_equal(whole: dict[str, Path], tmp_path: Path, kind: str, k: int) -> None:
    # The discriminator joins at step 4, so k = 1 resumes before and k = 5 after its warm-up.
    tiny_runs.run(kind, tmp_path, "runtime.accumulation=2", f"stop.images={4 * k}")
    result = tiny_runs.run(kind, tmp_path, "runtime.accumulation=2", resume=True)
    assert (result.images_seen, result.steps) == (48, 12)
    assert tiny_runs.hashes(tmp_path) == tiny_runs.hashes(whole[kind])
    assert tiny_runs.losses(tmp_path) == tiny_runs.losses(whole[kind])


def test_t07_the_runs_that_are_compared_do_learn(whole: dict[str, Path]) -> None:
    start, end = (tiny_runs.losses(whole["autoencoder"])[i]["loss/autoencoder"] for i in (0, -1))
    assert end < start
    assert any("loss/discriminator" in line for line in tiny_runs.losses(whole["autoencoder"]))


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_t08_a_resumed_run_sees_the_same_samples(tmp_path: Path, prefetch: int) -> None:
    asked = []
    for stop in (24, 48):
        data = tiny_runs.Latents(16)
        tiny_runs.run(
            "denoiser",
            tmp_path,
            f"stop.images={stop}",
            f"runtime.prefetch={prefetch}",
            dataset=data,
            resume=True,
        )
        asked += data.asked[:24]  # the thread may have read ahead
    assert [sorted(asked[i : i + 16]) for i in (0, 16, 32)] == [list(range(16))] * 3
    assert asked[:16] != asked[16:32] != asked[32:48]


@pytest.mark.slow
def test_kill_at_any_moment_then_resume_is_bit_equal(whole: dict[str, Path], tmp_path: Path) -> None:
    settings = ("runtime.accumulation=2", "runtime.checkpoint_images=4", "runtime.prefetch=2")
    rng, killed_at = np.random.default_rng(1), []
    for kind in ("denoiser", "autoencoder"):
        folder = tmp_path / kind
        for _ in range(8):
            child = tiny_runs.fork(
                lambda kind=kind, folder=folder: tiny_runs.run(kind, folder, *settings, resume=True)
            )
            limit = time.monotonic() + 30
            while not (folder / "recipe.yaml").is_file() and child.is_alive() and time.monotonic() < limit:
                time.sleep(0.01)
            child.join(rng.uniform(0.05, 0.5))
            child.kill()
            child.join()
            newest = checkpointing.found(folder / "checkpoints")
            killed_at.append(int(newest[-1].name) if newest else 0)
            if child.exitcode == 0:
                break
            assert child.exitcode == -signal.SIGKILL
        tiny_runs.run(kind, folder, *settings, resume=True)
        assert tiny_runs.hashes(folder) == tiny_runs.hashes(whole[kind])
        assert tiny_runs.losses(folder) == tiny_runs.losses(whole[kind])
    assert len(set(killed_at)) > 2, "all kills hit the same place: this test shows little"


@pytest.mark.parametrize("k", [1, 9, 17])
def test_kill_at_a_primitive_then_resume_is_bit_equal(whole: dict[str, Path], tmp_path: Path, k: int) -> None:
    settings = ("runtime.accumulation=2", "runtime.checkpoint_images=16")

    def die_at_the_kth_rename() -> None:
        real, count = os.replace, [0]

        def replace(source: Path, target: Path) -> None:
            count[0] += 1
            if count[0] == k:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        os.replace = replace  # type: ignore[assignment]
        tiny_runs.run("denoiser", tmp_path, *settings)

    child = tiny_runs.fork(die_at_the_kth_rename)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    tiny_runs.run("denoiser", tmp_path, *settings, resume=True)
    assert tiny_runs.hashes(tmp_path) == tiny_runs.hashes(whole["denoiser"])
    assert tiny_runs.losses(tmp_path) == tiny_runs.losses(whole["denoiser"])
    left = [p.name for p in tmp_path.rglob(".*") if ".tmp-" in p.name]
    assert left == []


def test_t09_a_changed_recipe_needs_override(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_runs.run("denoiser", tmp_path, "stop.images=8")
    with pytest.raises(RunError, match=r"optimiser\.learning_rate: 0\.003 -> 0\.1.*--override"):
        tiny_runs.run("denoiser", tmp_path, "optimiser.learning_rate=0.1", resume=True)
    with caplog.at_level(logging.WARNING):
        result = tiny_runs.run(
            "denoiser",
            tmp_path,
            "stop.images=12",
            "optimiser.learning_rate=0.1",
            resume=True,
            override=True,
        )
    assert result.images_seen == 12
    for change in ("stop.images: 8 -> 12", "optimiser.learning_rate: 0.003 -> 0.1"):
        assert f"recipe changed: {change}" in caplog.text
    assert "learning_rate: 0.1" in (tmp_path / "recipe.yaml").read_text()


def test_t09_changed_data_need_override(tmp_path: Path) -> None:
    tiny_runs.run("denoiser", tmp_path, "stop.images=8")
    for data, override in ((tiny_runs.Latents(19), False), (tiny_runs.Latents(19), True)):
        arguments = {"resume": True, "dataset": data, "override": override}
        if override:
            tiny_runs.run("denoiser", tmp_path, "stop.images=12", **arguments)
        else:
            with pytest.raises(RunError, match=r"the data changed.*latents-20 -> latents-19"):
                tiny_runs.run("denoiser", tmp_path, "stop.images=12", **arguments)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    tiny_runs.run("denoiser", tmp_path, "stop.images=4")
    before = tiny_runs.hashes(tmp_path)
    with pytest.raises(RunError, match="--resume"):
        tiny_runs.run("denoiser", tmp_path, "stop.images=8")
    assert tiny_runs.hashes(tmp_path) == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = tiny_runs.run("denoiser", tmp_path, "stop.images=8")
    again = tiny_runs.run("denoiser", tmp_path, "stop.images=8", resume=True)
    assert (again.images_seen, again.steps, again.stopped) == (8, 2, "images")
    assert again.checkpoint == first.checkpoint


def test_init_from_takes_the_average_of_another_run(tmp_path: Path) -> None:
    from fewstep.training.trainer import make_task

    result = tiny_runs.run("denoiser", tmp_path, "stop.images=8")
    averaged = checkpointing.open_checkpoint(result.checkpoint).tensors("denoiser.ema")
    with pytest.raises(NotFoundError, match="no weights here"):
        make_task(tiny_runs.recipe("denoiser", f"init_from={tmp_path / 'samples'}"))
    for source in (tmp_path, result.checkpoint / "denoiser.ema.safetensors"):
        task = make_task(tiny_runs.recipe("denoiser", f"init_from={source}"))
        state = task.roles["denoiser"].weights.state_dict()
        assert all((state[name] == averaged[name]).all() for name in averaged)


def test_t18_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def second() -> None:
        try:
            tiny_runs.run("denoiser", tmp_path / "run")
        except RunError as error:
            told.write_text(str(error))
            os._exit(error.exit_code)

    with run_lock(tmp_path / "run"):
        child = tiny_runs.fork(second)
        child.join(60)
    assert child.exitcode == RunError.exit_code
    assert f"pid {os.getpid()} on host" in told.read_text() and f"kill {os.getpid()}" in told.read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_t18_a_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    def die_with_the_lock() -> None:
        with run_lock(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    child = tiny_runs.fork(die_with_the_lock)
    child.join(60)
    assert (tmp_path / "lock.json").is_file()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_t18_a_lock_of_another_host_is_explained(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        holder = {"pid": 7, "host": "node-3", "since": "2020-01-01 00:00:00"}
        atomic.write_text(tmp_path / "lock.json", json.dumps(holder))
        with (
            pytest.raises(RunError, match=r"pid 7 on host node-3 .* stale: delete .*lock"),
            run_lock(tmp_path),
        ):
            pass
        (tmp_path / "lock.json").write_text("{")
        with pytest.raises(RunError, match="another run holds its lock"), run_lock(tmp_path):
            pass
