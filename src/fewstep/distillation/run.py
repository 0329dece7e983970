"""Running a distillation: stage after stage, each a run of the training loop in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fewstep.checkpoint import atomic
from fewstep.diffusion.contract import SamplingContract
from fewstep.distillation import build, origins
from fewstep.distillation.sections import DistillationRecipe, StageSection, Teacher
from fewstep.errors import RunError
from fewstep.training import checkpointing
from fewstep.training.lock import run_lock
from fewstep.training.logs import Progress
from fewstep.training.loop import Metric, Sampler
from fewstep.training.recipe import check_resume, dump_recipe, parse_as
from fewstep.training.sections import LoopRecipe
from fewstep.training.trainer import RunResult, make_accelerator, run_task

_log = logging.getLogger("fewstep.distillation")

DONE = "done.json"
"""In a stage's folder: it reached its stop, and this is what came of it."""


class StageRecipe(LoopRecipe):
    """What one stage's run folder keeps; made from the distillation recipe."""

    kind: Literal["stage"]
    teacher: Teacher
    stage: StageSection


@dataclass(frozen=True, slots=True)
class DistillationResult:
    """How a distillation ended.

    Attributes:
        folder: of the whole run.
        stages: results of the stages that ran now, in order.
        finished: whether every stage has reached its stop.
        stopped: why the last one stopped.
    """

    folder: Path
    stages: tuple[RunResult, ...]
    finished: bool
    stopped: str


class StageHooks:
    """What a caller injects for a stage: pictures and figures of the student while it learns."""

    def sampler(self, stage: build.Stage, base: origins.Base, recipe: StageRecipe) -> Sampler | None:
        """Draws sample grids; None for none."""
        return None

    def metrics(self, stage: build.Stage, base: origins.Base, recipe: StageRecipe) -> Sequence[Metric]:
        """Measured at the same moments."""
        return ()


def stage_folders(recipe: DistillationRecipe, folder: Path) -> list[Path]:
    """The run folders of a recipe's stages."""
    return [folder / f"{place:02d}-{stage.name}" for place, stage in enumerate(recipe.stages)]


def distill(
    recipe: DistillationRecipe,
    *,
    run_folder: str | Path,
    resume: bool = False,
    override: bool = False,
    hooks: StageHooks | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    show_progress: bool = True,
) -> DistillationResult:
    """Run the stages of a recipe, or go on where they stopped; in every process of a run on many.

    Args:
        recipe: the whole recipe.
        run_folder: gets a folder per stage, ``00-NAME`` and so on; locked while this runs.
        resume: skip finished stages and go on with the newest checkpoint of the next.
        override: allow a resumed run to change any key of its recipe.
        hooks: pictures and figures.
        on_progress: called after every step.
        show_progress: a bar on stderr.

    Raises:
        RunError: the folder is locked or holds another run, or numbers stay non-finite.
        RecipeError: stages that cannot follow each other, found before anything is trained.
        CheckpointError: a stage's checkpoint is missing or broken.
    """
    folder = Path(run_folder)
    folders, hooks = stage_folders(recipe, folder), hooks or StageHooks()
    if any(checkpointing.found(part / "checkpoints") for part in folders) and not resume:
        raise RunError(f"{folder}: holds a run already; give --resume to go on, or choose another folder")
    check(recipe)
    results: list[RunResult] = []
    main = make_accelerator(recipe).is_main_process
    with run_lock(folder) if main else contextlib.nullcontext():
        if main:
            _keep_recipe(recipe, folder, override=override)
        base = origins.open_base(recipe)
        for place, section in enumerate(recipe.stages):
            stage_recipe = _stage_recipe(recipe, section)
            if resume and _is_done(folders[place], stage_recipe, folders[place + 1 :], override=override):
                continue
            stage = build.build_stage(recipe, place, base, folders)
            for line in memory_estimate(stage, recipe.data.batch_size):
                _log.info("%s: %s", section.name, line)
            result = run_task(
                stage.task,
                stage_recipe,
                base.dataset,
                run_folder=folders[place],
                resume=resume,
                override=override,
                sampler=hooks.sampler(stage, base, stage_recipe),
                metrics=hooks.metrics(stage, base, stage_recipe),
                on_progress=on_progress,
                show_progress=show_progress,
            )
            results.append(result)
            if result.stopped not in ("images", "hours"):
                return DistillationResult(folder, tuple(results), False, result.stopped)
            if main:
                done = {
                    "images_seen": result.images_seen,
                    "stopped": result.stopped,
                    "contract": json.loads(stage.contract.to_json()),
                }
                atomic.write_text(folders[place] / DONE, json.dumps(done, indent=1) + "\n")
    return DistillationResult(folder, tuple(results), True, results[-1].stopped if results else "images")


def _is_done(folder: Path, recipe: StageRecipe, later: Sequence[Path], *, override: bool) -> bool:
    """Whether a stage has reached the stop that its recipe names now.

    Raises:
        RunError: it would have to be trained on, or was trained by another recipe, and later stages started
            from what it was.
    """
    done, before = folder / DONE, folder / "recipe.yaml"
    if not done.is_file():
        return False
    old = parse_as(StageRecipe, before.read_text(encoding="utf-8"), source=str(before))
    changes = check_resume(old, recipe, override=override)
    end = json.loads(done.read_text(encoding="utf-8"))
    # A clock that has run out does not start again, unless the recipe names another time.
    timed_out = end["stopped"] == "hours" and old.stop.hours == recipe.stop.hours
    reached = timed_out or end["images_seen"] >= recipe.stop.images
    finished = reached and not (override and changes)
    begun = [other.name for other in later if checkpointing.found(other / "checkpoints")]
    if not finished and begun:
        raise RunError(
            f"{folder}: changed after {begun[0]} had started from it; use the old recipe, "
            "or another run folder"
        )
    return finished


def check(recipe: DistillationRecipe) -> None:
    """Refuse what cannot work before anything is loaded or trained.

    Raises:
        RecipeError: naming stage and key.
    """
    from fewstep.distillation.checks import check_recipe

    check_recipe(recipe)


def memory_estimate(stage: build.Stage, batch_size: int) -> list[str]:
    """Lines that say what the networks of a stage need: weights, gradients, two moments and an average.

    Activations depend on the network and are not in it.
    """
    lines, total = [], 0
    for name, role in stage.task.roles.items():
        size = sum(p.numel() * p.element_size() for p in role.module.parameters())
        trained = sum(p.numel() * p.element_size() for p in role.weights.parameters())
        copies = 0 if role.optimiser is None else 3 + (role.ema is not None)
        total += size + copies * trained
        what = "frozen" if role.optimiser is None else f"{trained / 4e6:.1f} M trained"
        lines.append(f"{name}: {(size + copies * trained) / 2**20:.0f} MiB ({what})")
    lines.append(f"{total / 2**20:.0f} MiB in all, and activations of {batch_size} samples")
    return lines


def _stage_recipe(recipe: DistillationRecipe, section: StageSection) -> StageRecipe:
    return StageRecipe(
        kind="stage",
        seed=recipe.seed,
        data=recipe.data,
        stop=section.stop,
        samples=recipe.samples,
        runtime=recipe.runtime,
        teacher=recipe.teacher,
        stage=section,
    )


def _keep_recipe(recipe: DistillationRecipe, folder: Path, *, override: bool) -> None:
    file = folder / "recipe.yaml"
    if file.is_file():
        before = parse_as(DistillationRecipe, file.read_text(encoding="utf-8"), source=str(file))
        # Stages compare as a whole here; what may change in one is decided by its own run folder.
        same = before.model_copy(update={"stages": recipe.stages})
        for change in check_resume(same, recipe, override=override):
            _log.warning("recipe changed: %s", change)
    atomic.write_text(file, dump_recipe(recipe))


def student(
    recipe: DistillationRecipe, run_folder: Path, *, stage: str | None = None
) -> tuple[nn.Module, SamplingContract]:
    """The trained network of a stage (the last one) and its contract; arguments as `distill`.

    Raises:
        RunError: the stage has not reached its stop.
    """
    names = [section.name for section in recipe.stages]
    place = len(names) - 1 if stage is None else names.index(stage)
    folders = stage_folders(recipe, run_folder)
    done = folders[place] / DONE
    if not done.is_file():
        raise RunError(f"{folders[place]}: this stage is not finished; go on with --resume")
    base = origins.open_base(recipe)
    network = origins.result(recipe, place, base, folders).eval()
    values: Mapping[str, Any] = json.loads(done.read_text("utf-8"))
    with torch.no_grad():
        return network, SamplingContract.from_json(json.dumps(values["contract"]))
