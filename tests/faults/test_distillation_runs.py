"""Distillations that are interrupted, poisoned or cut: faults T07, T12, T13, T15, T23 (and checks 10, 22)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "distillation"))
import tiny_runs
import tiny_stages as tiny
from tiny_stages import ADAPTER, CRITICS, PROGRESSIVE, STAGES, distill, network_run, toy

from fewstep.checkpoint import safetensors
from fewstep.distillation import origins, run
from fewstep.distillation.flash import Flash
from fewstep.distillation.sections import DistillationRecipe
from fewstep.errors import RecipeError, RunError
from fewstep.training import checkpointing, trainer
from fewstep.training.loop import Loop
from fewstep.training.state import weights_digest


@pytest.fixture(autouse=True, scope="module")
def no_tensorboard() -> Iterator[None]:
    """It takes a second to import, and says nothing here."""

    class Silent:
        def __init__(self, folder: Path) -> None: ...
        def scalars(self, *_: Any) -> None: ...
        def image(self, *_: Any) -> None: ...
        def close(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "TensorBoard", Silent)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Uninterrupted runs to compare with, made when they are asked for."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            torch.set_num_threads(1)
            made[kind] = tmp_path_factory.mktemp(kind)
            assert distill(toy(kind), made[kind]).finished
        return made[kind]

    return of


def interrupted(images: int, stage: str = "few") -> Any:
    """A progress callback that asks to stop when a stage has seen so many images: one step later it does."""
    length = {"few": 48, "pretrain": 12}[stage]

    def on_progress(progress: Any) -> None:
        if progress.stop_images == length and progress.images_seen == images:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_progress


# T07 and check 22: stopping and going on


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("lightning", 2),
        ("lightning", 6),
        ("lightning", 11),
        ("lightning_lora", 6),
        ("flash", 3),
        ("flash", 5),
        ("dmd2", 6),
        ("progressive", 5),
        ("lcm", 5),
        ("conversion", 5),
    ],
)
def test_t07_check_22_a_resumed_distillation_is_bit_equal(
    whole: Any, tmp_path: Path, kind: str, step: int
) -> None:
    """Weights, averages, both optimisers and what was logged: in the warm-up, between turns, at the end."""
    first = distill(toy(kind), tmp_path, on_progress=interrupted(4 * (step - 1)))
    assert (first.finished, first.stopped) == (False, "SIGTERM")
    assert first.stages[-1].steps == step
    again = distill(toy(kind), tmp_path, resume=True)
    assert again.finished and len(again.stages) == 1 and again.stages[0].steps == 12
    here, there = tmp_path / "01-few", whole(kind) / "01-few"
    hashes = tiny_runs.hashes(here)
    assert hashes == tiny_runs.hashes(there)
    trained = {"student", *CRITICS.get(kind.removesuffix("_lora"), set())}
    files = {f"{role}{part}.safetensors" for role in trained for part in ("", ".optimiser")}
    assert set(hashes) == files | {"student.ema.safetensors"}
    assert tiny_runs.losses(here) == tiny_runs.losses(there)


def test_t07_the_runs_that_are_compared_do_learn(whole: Any) -> None:
    for kind in ("lightning", "dmd2"):
        lines = tiny_runs.losses(whole(kind) / "01-few")
        trained = [sum(f"loss/{role}" in line for line in lines) for role in ("student", *CRITICS[kind])]
        assert trained == {"lightning": [4, 12], "dmd2": [3, 12]}[kind]
    kept = safetensors.load_torch(checkpointing.weights(whole("lightning") / "01-few", "student"))
    start = safetensors.load_torch(checkpointing.weights(whole("lightning") / "00-pretrain", "student"))
    assert kept.keys() == start.keys() and not all(torch.equal(kept[key], start[key]) for key in kept)


def test_t07_check_22_stopping_in_one_stage_goes_on_with_the_next(whole: Any, tmp_path: Path) -> None:
    first = distill(toy("lightning"), tmp_path, on_progress=interrupted(4, "pretrain"))
    assert (first.finished, first.stopped) == (False, "SIGTERM")
    assert not (tmp_path / "01-few").exists()
    again = distill(toy("lightning"), tmp_path, resume=True)
    assert again.finished and [result.steps for result in again.stages] == [3, 12]
    assert tiny_runs.hashes(tmp_path / "01-few") == tiny_runs.hashes(whole("lightning") / "01-few")


@pytest.mark.parametrize(("kind", "images"), [("lightning", 28), ("flash", 20)])
def test_t07_check_22_a_killed_distillation_goes_on_bit_equal(
    whole: Any, tmp_path: Path, kind: str, images: int
) -> None:
    recipe = toy(kind, checkpoint_images=8)

    def die(progress: Any) -> None:
        if progress.stop_images == 48 and progress.images_seen == images:
            os.kill(os.getpid(), signal.SIGKILL)

    child = tiny_runs.fork(lambda: distill(recipe, tmp_path, on_progress=die))
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    newest = checkpointing.found(tmp_path / "01-few" / "checkpoints")[-1]
    assert int(newest.name) == images // 8 * 8
    distill(recipe, tmp_path, resume=True)
    assert tiny_runs.hashes(tmp_path / "01-few") == tiny_runs.hashes(whole(kind) / "01-few")
    assert tiny_runs.losses(tmp_path / "01-few") == tiny_runs.losses(whole(kind) / "01-few")


def test_check_10_a_resumed_curriculum_goes_on_in_its_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phase, start and scale of every batch are those of a run in one go: they follow from images seen."""
    seen: list[tuple[int, int, int, float]] = []
    real = Flash._way

    def way(self: Flash, context: Any) -> Any:
        fresh = "way" not in context.shared
        found = real(self, context)
        if fresh:
            phase = self.section.phases.index(self.phase(context.step))
            seen.append((context.step, phase, found["start"], float(found["teacher"].sum())))
        return found

    monkeypatch.setattr(Flash, "_way", way)
    distill(toy("flash", accumulation=1), tmp_path / "whole")
    once = list(seen)
    assert [entry[:2] for entry in once] == list(enumerate([0] * 3 + [1] * 3 + [2] * 6))
    assert len({entry[2] for entry in once}) > 1
    seen.clear()
    # Four steps: inside of the second phase.
    distill(toy("flash", accumulation=1), tmp_path / "cut", on_progress=interrupted(12))
    assert len(seen) == 4
    distill(toy("flash", accumulation=1), tmp_path / "cut", resume=True)
    assert seen == once


def test_a_folder_with_a_distillation_is_not_overwritten(whole: Any) -> None:
    before = tiny_runs.hashes(whole("lcm") / "01-few")
    with pytest.raises(RunError, match="--resume"):
        distill(toy("lcm"), whole("lcm"))
    assert tiny_runs.hashes(whole("lcm") / "01-few") == before
    again = distill(toy("lcm"), whole("lcm"), resume=True)
    assert again.finished and again.stages == ()


def test_t07_a_stage_that_was_killed_after_its_last_checkpoint_is_finished(
    whole: Any, tmp_path: Path
) -> None:
    shutil.copytree(whole("lcm"), tmp_path / "run")
    before = tiny_runs.hashes(tmp_path / "run" / "01-few")
    (tmp_path / "run" / "01-few" / run.DONE).unlink()
    with pytest.raises(RunError, match="not finished; go on with --resume"):
        run.student(toy("lcm"), tmp_path / "run")
    again = distill(toy("lcm"), tmp_path / "run", resume=True)
    assert again.finished and [result.steps for result in again.stages] == [12]
    assert tiny_runs.hashes(tmp_path / "run" / "01-few") == before
    run.student(toy("lcm"), tmp_path / "run")


def test_t09_a_changed_stage_needs_override(tmp_path: Path) -> None:
    distill(toy("progressive"), tmp_path, on_progress=interrupted(8))
    recipe = toy("progressive")
    stages = [
        *recipe.stages[:1],
        recipe.stages[1].model_copy(
            update={"optimiser": recipe.stages[1].optimiser.model_copy(update={"learning_rate": 0.5})}
        ),
    ]
    changed = recipe.model_copy(update={"stages": tuple(stages)})
    with pytest.raises(RunError, match=r"stage\.optimiser\.learning_rate: 0\.01 -> 0\.5"):
        distill(changed, tmp_path, resume=True)
    assert distill(changed, tmp_path, resume=True, override=True).finished


def with_stop(recipe: DistillationRecipe, place: int, images: int) -> DistillationRecipe:
    stages = list(recipe.stages)
    stages[place] = stages[place].model_copy(
        update={"stop": stages[place].stop.model_copy(update={"images": images})}
    )
    return recipe.model_copy(update={"stages": tuple(stages)})


def test_a_finished_last_stage_goes_on_to_a_later_stop(whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole("lcm"), tmp_path / "run")
    longer = with_stop(toy("lcm"), -1, 2 * toy("lcm").stages[-1].stop.images)
    done = distill(longer, tmp_path / "run", resume=True)
    assert done.finished and [result.images_seen for result in done.stages] == [longer.stages[-1].stop.images]


def test_a_stage_that_ended_by_its_hours_stays_ended(tmp_path: Path) -> None:
    recipe = toy("lcm")
    hours = recipe.stages[0].stop.model_copy(update={"images": 10**6, "hours": 1e-9})
    timed = recipe.model_copy(
        update={"stages": (recipe.stages[0].model_copy(update={"stop": hours}), *recipe.stages[1:])}
    )
    distill(timed, tmp_path, on_progress=interrupted(16))
    assert json.loads((tmp_path / "00-pretrain" / run.DONE).read_text())["stopped"] == "hours"
    again = distill(timed, tmp_path, resume=True)
    assert again.finished and [result.steps for result in again.stages] == [12]


def test_a_stage_that_others_started_from_cannot_change(whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole("lcm"), tmp_path / "run")
    longer = with_stop(toy("lcm"), 0, 2 * toy("lcm").stages[0].stop.images)
    with pytest.raises(RunError, match="after 01-few had started from it"):
        distill(longer, tmp_path / "run", resume=True)


def test_the_average_of_a_student_with_rare_steps_has_the_half_life_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its decay counts the images of all batches since its last step."""
    from fewstep.training import loop

    counted: list[int] = []
    real = loop.ema_decay
    monkeypatch.setattr(
        loop, "ema_decay", lambda images, *rest: counted.append(images) or real(images, *rest)
    )
    stage = network_run("lightning", student_every=4, critic_warmup_steps=0, ema={"half_life_images": 64.0})
    stage.step(8)
    assert counted == [4 * stage.recipe.data.batch_size] * 2


# T15: what must not move


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", STAGES)
def test_t15_the_teacher_keeps_every_bit_and_gets_no_gradient(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = network_run(kind, mode, student_every=1, critic_warmup_steps=0)
    teacher: Any = stage.task.teacher
    assert ("teacher" in stage.state.roles) == (mode == "full")
    frozen = {k: p for k, p in teacher.module.named_parameters() if "lora_" not in k}
    kept = {k: p.detach().clone() for k, p in frozen.items()}
    real, gradients = Loop._update, []

    def update(self: Loop, *arguments: Any) -> None:
        gradients.extend(p.grad for p in frozen.values())
        real(self, *arguments)

    monkeypatch.setattr(Loop, "_update", update)
    student = weights_digest(stage.state.roles["student"].role.weights)
    stage.step(7)  # into the third phase of Flash
    assert gradients and all(gradient is None for gradient in gradients)
    assert all(torch.equal(p, kept[k]) for k, p in frozen.items())
    assert weights_digest(stage.state.roles["student"].role.weights) != student


def test_t15_an_exact_teacher_has_nothing_to_move(whole: Any) -> None:
    base = origins.open_base(toy("lcm"))
    assert base.open_network is None and base.mixture is not None
    assert set(tiny_runs.hashes(whole("lcm") / "00-pretrain")) == {
        f"student{part}.safetensors" for part in ("", ".ema", ".optimiser")
    }


# T23: accumulation through a whole run


@pytest.mark.parametrize("kind", ["lightning", "dmd2"])
def test_t23_check_23_accumulation_equals_the_large_batch(whole: Any, tmp_path: Path, kind: str) -> None:
    """Within float32's rounding, which Adam enlarges where gradients are tiny."""
    distill(toy(kind, accumulation=1), tmp_path)
    for role in ("student", *CRITICS[kind]):
        cut, at_once = (
            checkpointing.open_checkpoint(checkpointing.found(folder / "01-few" / "checkpoints")[-1]).tensors(
                role
            )
            for folder in (whole(kind), tmp_path)
        )
        for name, value in at_once.items():
            torch.testing.assert_close(cut[name], value, atol=2e-3, rtol=2e-3, msg=f"{role} {name}")


# Merging an adapter


@pytest.mark.parametrize("teacher", ["base", "pretrain"])
def test_an_adapter_is_merged_and_all_of_it_trained_on(tmp_path: Path, teacher: str) -> None:
    lora = PROGRESSIVE | {
        "name": "adapted",
        "teacher": teacher,
        "student": ADAPTER,
        "stop": {"images": 16},
    }
    merged = PROGRESSIVE | {
        "name": "merged",
        "teacher": teacher,
        "student": {"mode": "merge"},
        "stop": {"images": 8},
    }
    recipe = toy("progressive")
    values = json.loads(recipe.model_dump_json())["stages"]
    made = tiny.recipe(values[0], lora, merged, teacher=json.loads(recipe.teacher.model_dump_json()))
    assert distill(made, tmp_path).finished
    adapted, _ = run.student(made, tmp_path, stage="adapted")
    network, _ = run.student(made, tmp_path)
    before, after = dict(adapted.named_parameters()), dict(network.named_parameters())
    assert before.keys() == after.keys()
    # Biases have no adapter; that they move shows that everything is trained now.
    assert not any(torch.equal(before[name], after[name]) for name in after if name.endswith("bias"))
    adapter = safetensors.load_torch(checkpointing.weights(tmp_path / "01-adapted", "student"))
    assert all("lora_" in key for key in adapter)


def test_a_merge_without_an_adapter_is_refused(tmp_path: Path) -> None:
    stage = PROGRESSIVE | {"student": {"mode": "merge"}, "name": "few"}
    recipe = toy("progressive")
    values = json.loads(recipe.model_dump_json())
    with pytest.raises(RecipeError, match=r"stage few: student\.mode merge needs a lora stage"):
        distill(tiny.recipe(values["stages"][0], stage, teacher=values["teacher"]), tmp_path)
