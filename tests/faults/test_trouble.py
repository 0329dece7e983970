"""Loaders, memory and loggers that fail while a run goes on."""

from __future__ import annotations

import logging
import os
import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from fewstep.errors import DataError, RecipeError, RunError
from fewstep.training import checkpointing
from fewstep.training.guards import is_out_of_memory, out_of_memory


class Hanging(tiny_runs.Latents):
    """Stops answering at the 20th sample."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        batch = super().batch(indices, rng)
        if len(self.asked) >= 20:
            self.release.wait(30)
        return batch


def test_t17_a_hanging_loader_ends_the_run_and_leaves_its_checkpoint(tmp_path: Path) -> None:
    data = Hanging()
    settings = ("runtime.prefetch=1", "runtime.prefetch_timeout=0.5", "runtime.checkpoint_images=8")
    try:
        with pytest.raises(DataError, match=r"sample \d+: not loaded within 0\.5 s") as error:
            tiny_runs.run("denoiser", tmp_path, *settings, dataset=data)
        assert f"sample {data.asked[-1]}:" in str(error.value)
    finally:
        data.release.set()
    newest = checkpointing.latest(tmp_path / "checkpoints")
    assert newest is not None and newest.images_seen in (8, 16)


def test_t19_out_of_memory_says_what_to_set(tmp_path: Path) -> None:
    told = tmp_path / "told"
    data = tiny_runs.Pixels()

    def starve() -> None:
        def limit(progress: Any) -> None:
            if progress.images_seen == 8:
                data.side = 256  # memory that was freed before is not enough for these
                used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))

        try:
            tiny_runs.run(
                "autoencoder",
                tmp_path / "run",
                "runtime.checkpoint_images=8",
                dataset=data,
                on_progress=limit,
            )
        except RunError as error:
            told.write_text(str(error))
            os._exit(error.exit_code)

    child = tiny_runs.fork(starve)
    child.join(90)
    assert child.exitcode == RunError.exit_code
    assert "out of memory with 4 images a step in 1 part(s)" in told.read_text()
    assert "runtime.accumulation=2" in told.read_text()
    newest = checkpointing.latest(tmp_path / "run" / "checkpoints")
    # 16 where batches of small pictures were loaded ahead
    assert newest is not None and newest.images_seen in (8, 16)


def test_t19_other_errors_are_not_taken_for_it() -> None:
    import torch

    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(4, 1):
        raise RuntimeError("shapes do not match")
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())


class Failing:
    """A tracker whose server is down."""

    def __init__(self) -> None:
        self.calls = 0

    def scalars(self, images_seen: int, values: object) -> None:
        self.calls += 1
        raise ConnectionError("tracker is down")

    def image(self, images_seen: int, name: str, image: object) -> None:
        self.calls += 1

    def close(self) -> None:
        self.calls += 1


def test_t20_a_failing_logger_is_warned_about_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from fewstep.training.logs import ProgressFile

    failing = Failing()
    loggers = [failing, ProgressFile(tmp_path / "progress.jsonl")]
    with caplog.at_level(logging.WARNING):
        result = tiny_runs.run("denoiser", tmp_path, loggers=loggers)
    assert result.images_seen == 48
    assert failing.calls == 1
    assert caplog.text.count("tracker is down") == 1
    assert len(tiny_runs.losses(tmp_path)) == 12  # the others go on


def test_t20_a_failing_sampler_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def sampler(modules: object, recipe: object, images_seen: int) -> np.ndarray:
        raise ValueError("no picture")

    with caplog.at_level(logging.WARNING):
        result = tiny_runs.run("denoiser", tmp_path, "samples.every_images=24", sampler=sampler)
    assert result.images_seen == 48 and caplog.text.count("no picture") == 2


def test_tensorboard_gets_values_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def sampler(modules: object, recipe: object, images_seen: int) -> np.ndarray:
        return np.full((4, 6, 3), 200, np.uint8)

    settings = ("samples.every_images=8", "stop.images=8")
    tiny_runs.run("denoiser", tmp_path, *settings, sampler=sampler, loggers=None)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss/denoiser")] == [4, 8]
    assert [event.step for event in events.Images("samples")] == [8]
    assert (tmp_path / "progress.jsonl").is_file()


@pytest.mark.parametrize("parts", [3, 8])
def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path, parts: int) -> None:
    with pytest.raises(
        RecipeError, match=rf"not a multiple of 1 process.* {parts}; use {6 if parts == 3 else 8}"
    ):
        tiny_runs.run("denoiser", tmp_path, f"runtime.accumulation={parts}")


def test_the_bar_gets_rate_and_time_left(tmp_path: Path) -> None:
    seen: list[Any] = []
    tiny_runs.run("denoiser", tmp_path, "stop.images=12", on_progress=seen.append)
    assert [progress.images_seen for progress in seen] == [4, 8, 12]
    assert all(progress.images_per_second > 0 for progress in seen)
    assert seen[0].seconds_left > 0 == seen[-1].seconds_left
    assert "loss/denoiser" in seen[-1].values


@pytest.mark.parametrize(
    "setting",
    ["runtime.mixed_precision=bf16", "runtime.gradient_checkpointing=true", "runtime.channels_last=false"],
)
def test_runtime_settings_train_to_about_the_same_loss(tmp_path: Path, setting: str) -> None:
    plain, other = tmp_path / "plain", tmp_path / "other"
    for folder, settings in ((plain, ()), (other, (setting,))):
        tiny_runs.run("denoiser", folder, "model.dropout=0.0", "stop.images=8", *settings)
    losses = [tiny_runs.losses(folder)[-1]["loss/denoiser"] for folder in (plain, other)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    if "bf16" in setting:
        assert losses[1] != losses[0]
    newest = checkpointing.latest(other / "checkpoints")
    assert newest is not None
    assert {str(value.dtype) for value in newest.tensors("denoiser").values()} == {"torch.float32"}
