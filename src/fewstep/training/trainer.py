"""Training runs: from a recipe and a folder to weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from fewstep.checkpoint import atomic, safetensors
from fewstep.errors import NotFoundError, RecipeError, RunError
from fewstep.models.attention import unfused
from fewstep.models.ema import Ema
from fewstep.training import checkpointing
from fewstep.training.datasets import open_dataset
from fewstep.training.feed import Dataset, Plan, feed
from fewstep.training.guards import NonFiniteGuard
from fewstep.training.lock import run_lock
from fewstep.training.logs import Bar, Logger, Loggers, Progress, ProgressFile, TensorBoard
from fewstep.training.loop import Hooks, Loop, Metric, Sampler
from fewstep.training.recipe import AdapterRecipe, Recipe, check_resume, dump_recipe, parse_as
from fewstep.training.sections import AutoencoderRecipe, EvaluatorRecipe, LoopRecipe
from fewstep.training.signals import StopSignals
from fewstep.training.state import RoleState, RunState, environment, make_optimiser
from fewstep.training.task import Role, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("fewstep.training")


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        run_folder: where everything is.
        checkpoint: the newest checkpoint.
        images_seen: images seen in all.
        steps: optimiser steps in all.
        stopped: "images", "hours" or the name of the signal that stopped it.
        images_per_second: rate of this process, start-up and saving included.
        skipped: optimiser steps skipped for non-finite numbers, by role.
        values: the last logged values.
        main_process: False in the other processes of a run on many; they have nothing to write.
    """

    run_folder: Path
    checkpoint: Path
    images_seen: int
    steps: int
    stopped: str
    images_per_second: float
    skipped: Mapping[str, int]
    values: Mapping[str, float]
    main_process: bool = True


def train(
    recipe: Recipe,
    *,
    run_folder: str | Path,
    resume: bool = False,
    override: bool = False,
    strict: bool = False,
    dataset: Dataset | None = None,
    sampler: Sampler | None = None,
    metrics: Sequence[Metric] = (),
    on_progress: Callable[[Progress], None] | None = None,
    loggers: Sequence[Logger] | None = None,
    show_progress: bool = True,
) -> RunResult:
    """Train what the recipe describes, or go on with it.

    Args:
        recipe: from `fewstep.training.recipe.load_recipe`.
        run_folder: made when it is not there; locked while the run lasts.
        resume: go on from the newest complete checkpoint; starts anew when there is none.
        override: allow a resumed run to change any key of its recipe.
        strict: stop at a broken newest checkpoint instead of falling back.
        dataset: the samples; opened from ``recipe.data`` when not given. Adapters open their own.
        sampler: draws the sample grids.
        metrics: measured at the same moments as samples.
        on_progress: called after every step in the main process.
        loggers: instead of progress.jsonl and TensorBoard.
        show_progress: a bar on stderr, or log lines when that is no terminal.

    Raises:
        RunError: the folder is locked or holds another run, the recipe changed, numbers stay non-finite.
        RecipeError: sizes that do not divide, or data that the recipe's source cannot open.
        CheckpointError: nothing complete to resume from.
        DataError: a sample cannot be loaded.
        OutputError: the last checkpoint could not be written.
    """
    task: Task
    if isinstance(recipe, AdapterRecipe):
        from fewstep.training.adapter_run import prepare

        prepared = prepare(recipe, Path(run_folder))
        task, dataset = prepared.task, prepared.pictures if dataset is None else dataset
        sampler = prepared.sampler if sampler is None else sampler
    else:
        resumed = resume and bool(checkpointing.found(Path(run_folder) / "checkpoints"))
        task = make_task(recipe, initial=not resumed)
        dataset = open_dataset(recipe.data) if dataset is None else dataset
    return run_task(
        task,
        recipe,
        dataset,
        run_folder=Path(run_folder),
        resume=resume,
        override=override,
        strict=strict,
        sampler=sampler,
        metrics=metrics,
        on_progress=on_progress,
        loggers=loggers,
        show_progress=show_progress,
    )


def make_task(recipe: Recipe, *, initial: bool = True) -> Task:
    """Build a recipe's networks, with initial weights that follow from its seed, or from ``init_from``.

    Without ``initial`` the file of ``init_from`` is not read: a resumed run has its weights elsewhere.
    """
    assert not isinstance(recipe, AdapterRecipe), "those need a run folder: fewstep.training.adapter_run"
    torch.manual_seed(recipe.seed)
    task: Task
    if isinstance(recipe, AutoencoderRecipe):
        from fewstep.training.autoencoder import AutoencoderTask

        task = AutoencoderTask(recipe)
    elif isinstance(recipe, EvaluatorRecipe):
        from fewstep.training.evaluator import EvaluatorTask

        task = EvaluatorTask(recipe)
    else:
        from fewstep.training.denoiser import DenoiserTask

        task = DenoiserTask(recipe)
    if initial and recipe.init_from is not None:
        source = _weights_file(Path(recipe.init_from).expanduser(), recipe.kind)
        checkpointing.copy_into(task.roles[recipe.kind].weights, safetensors.load_torch(source), source)
    return task


def run_task(
    task: Task,
    recipe: LoopRecipe,
    dataset: Dataset,
    *,
    run_folder: Path,
    resume: bool = False,
    override: bool = False,
    strict: bool = False,
    sampler: Sampler | None = None,
    metrics: Sequence[Metric] = (),
    on_progress: Callable[[Progress], None] | None = None,
    loggers: Sequence[Logger] | None = None,
    show_progress: bool = True,
) -> RunResult:
    """Run any task; arguments and errors as `train`. Distillation calls this with tasks of its own."""
    runtime = recipe.runtime
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    accelerator = make_accelerator(recipe)
    plan = _plan(recipe, accelerator)
    main = accelerator.is_main_process
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        if main:
            stack.enter_context(run_lock(run_folder))
        accelerator.wait_for_everyone()
        checkpoint = _prepare_folder(
            recipe, run_folder, resume=resume, override=override, strict=strict, main=main
        )
        accelerator.wait_for_everyone()
        state = make_state(task, recipe, accelerator)
        fingerprint = dataset.fingerprint()
        if checkpoint is not None:
            _check_data(checkpoint, fingerprint, override=override)
            _check_environment(checkpoint)
            state.restore(checkpoint)
            _log.info("resumed %s at %d images", run_folder, state.images_seen)
        if loggers is None and main:
            loggers = [
                ProgressFile(run_folder / "progress.jsonl", state.images_seen),
                TensorBoard(run_folder / "logs"),
            ]
        all_loggers = Loggers(loggers or ())
        stack.callback(all_loggers.close)
        bar = stack.enter_context(Bar(recipe.stop.images, show=show_progress and main))
        rates: list[float] = [0.0]

        def progressed(progress: Progress) -> None:
            rates[0] = progress.images_per_second
            bar(progress)
            if on_progress is not None:
                on_progress(progress)

        hooks = Hooks(
            loggers=all_loggers,
            on_progress=progressed,
            sampler=sampler,
            metrics=metrics,
            received_signal=lambda: signals.received,
        )
        batches = feed(
            dataset,
            task.draw,
            plan,
            start=state.images_seen,
            prefetch=runtime.prefetch,
            timeout=runtime.prefetch_timeout,
        )
        stack.callback(cast(Any, batches).close)
        extra = {"kind": recipe.kind, "data": fingerprint, "fewstep": _version()}
        stopped = Loop(task, recipe, state, run_folder, accelerator, hooks).run(batches, extra)
    newest = checkpointing.found(run_folder / "checkpoints")[-1]
    return RunResult(
        run_folder=run_folder,
        checkpoint=newest,
        images_seen=state.images_seen,
        steps=state.steps,
        stopped=stopped,
        images_per_second=rates[0],
        skipped={name: role.guard.skipped for name, role in state.roles.items()},
        values=state.values,
        main_process=main,
    )


def make_accelerator(recipe: LoopRecipe) -> Accelerator:
    """The processes and devices of this run, as `accelerate launch` or `torchrun` set them up.

    Raises:
        RunError: a sharded set-up (FSDP, DeepSpeed), whose state our checkpoints do not hold.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedType

    if is_initialized() and AcceleratorState().mixed_precision != recipe.runtime.mixed_precision:
        # An earlier run of this process chose another precision; accelerate has no public way to change it.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=recipe.runtime.device == "cpu" or None,
        mixed_precision=recipe.runtime.mixed_precision,
        step_scheduler_with_optimizer=False,
    )
    plain = {
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    }
    if accelerator.distributed_type not in plain:
        kind = str(accelerator.distributed_type.value)
        raise RunError(
            f"accelerate is set to {kind}: sharded training is not supported; use plain data parallel"
        )
    return accelerator


def make_state(task: Task, recipe: LoopRecipe, accelerator: Accelerator) -> RunState:
    """Place every role on its device, with optimiser, average and guard."""
    roles = {name: _role_state(name, role, recipe, accelerator) for name, role in task.roles.items()}
    return RunState(roles=roles, scaler=accelerator.scaler)


def _role_state(name: str, role: Role, recipe: LoopRecipe, accelerator: Accelerator) -> RoleState:
    runtime = recipe.runtime
    guard = NonFiniteGuard(runtime.max_nonfinite)
    role.module.to(accelerator.device)
    if accelerator.device.type == "cpu" and runtime.mixed_precision == "bf16":
        unfused(role.module)
    if runtime.channels_last:
        role.weights.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if role.optimiser is None:
        role.module.requires_grad_(False).eval()
        return RoleState(name, role, role.module, None, None, guard)
    role.module.train()
    if runtime.gradient_checkpointing:
        enable = getattr(role.weights, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()
    if runtime.compile:
        role.module.compile()
    optimiser = make_optimiser(role.optimiser, list(role.weights.parameters()))
    module = accelerator.prepare_model(role.module)
    ema = Ema(role.weights) if role.ema is not None else None
    return RoleState(name, role, module, optimiser, ema, guard)


def _plan(recipe: LoopRecipe, accelerator: Accelerator) -> Plan:
    size, parts, world = recipe.data.batch_size, recipe.runtime.accumulation, accelerator.num_processes
    if size % (parts * world):
        raise RecipeError(
            f"data.batch_size is {size}: not a multiple of {world} process(es) times runtime.accumulation "
            f"{parts}; use {-(-size // (parts * world)) * parts * world}"
        )
    return Plan(recipe.seed, size, parts, accelerator.process_index, world)


def _prepare_folder(
    recipe: LoopRecipe, run_folder: Path, *, resume: bool, override: bool, strict: bool, main: bool
) -> checkpointing.Checkpoint | None:
    checkpoints, recipe_file = run_folder / "checkpoints", run_folder / "recipe.yaml"
    if checkpointing.found(checkpoints) and not resume:
        raise RunError(f"{run_folder}: holds a run already; give --resume to go on, or choose another folder")
    if main:
        for folder in (run_folder, checkpoints, run_folder / "samples", run_folder / "diagnostics"):
            atomic.sweep(folder, all_processes=True)
    checkpoint = checkpointing.latest(checkpoints, strict=strict) if resume else None
    if checkpoint is not None and main:
        # Broken ones would stand in the way when the run gets there again; they are kept to be looked at.
        for folder in checkpointing.found(checkpoints):
            if folder.name > checkpoint.folder.name:
                atomic.rename_folder(folder, folder.with_name(f"{folder.name}.broken"))
    if checkpoint is not None and recipe_file.is_file():
        text = recipe_file.read_text(encoding="utf-8")
        before = parse_as(type(recipe), text, source=str(recipe_file))
        for change in check_resume(before, recipe, override=override):
            _log.warning("recipe changed: %s", change)
    if main:
        atomic.write_text(recipe_file, dump_recipe(recipe))
    return checkpoint


def _check_data(checkpoint: checkpointing.Checkpoint, fingerprint: str, *, override: bool) -> None:
    before = checkpoint.manifest.get("data")
    if before != fingerprint and not override:
        raise RunError(
            f"the data changed since this run began (fingerprint {before} -> {fingerprint}); "
            "use the old data, or give --override to continue with the new"
        )


def _check_environment(checkpoint: checkpointing.Checkpoint) -> None:
    before, now = checkpoint.manifest.get("environment", {}), environment()
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        _log.warning("not bit-equal to an uninterrupted run from here on: %s", ", ".join(changed))


def _weights_file(path: Path, role: str) -> Path:
    if path.is_file():
        return path
    if (path / "checkpoints").is_dir():
        return checkpointing.weights(path, role)
    # diffusers pipeline folders keep each part in its own folder
    for folder in (path, path / {"denoiser": "unet", "autoencoder": "vae"}.get(role, role)):
        file = folder / "diffusion_pytorch_model.safetensors"
        if file.is_file():
            return file
    raise NotFoundError(f"init_from {path}: no weights here; give a safetensors file, a model or run folder")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "unknown"
