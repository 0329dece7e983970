"""``fewstep train lora FOLDER``, ``train embedding`` and ``train dreambooth``: a recipe without writing one.

Everything that is not given is chosen from the base model and the pictures, and said before training begins.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import output
from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import Cancelled, NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.training.adapter_base import TaughtModel
    from fewstep.training.adapter_sections import AdapterRecipe

KINDS = {"lora": "lora", "embedding": "textual_inversion", "dreambooth": "dreambooth"}
"""Word on the command line -> kind of recipe."""

RUNS = Path("runs")
_FEW, _MANY = 1_500, 6_000
"""Images on large models, and on small ones, whose batches are larger."""
_SMALL = 128 * 128  # pixels; a model that draws no larger pictures learns on a CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the command line said; None is what is chosen."""

    kind: str
    folder: Path
    model: str | None = None
    trigger: str | None = None
    out: Path | None = None
    minutes: float | None = None
    images: int | None = None
    rank: int | None = None
    models_dir: tuple[Path, ...] = ()
    run: Path | None = None
    settings: tuple[str, ...] = ()


def run(asked: Asked, *, resume: bool, override: bool, dry_run: bool, quiet: bool) -> None:
    """Train, and print the path of the file that is left.

    Raises:
        UsageError, NotFoundError, CheckpointError, DataError, OutputError, RunError: see `fewstep train`.
        Cancelled: after Ctrl-C; the file is written from what was learnt so far.
    """
    quiet_libraries(offline=False)
    from fewstep.training.adapter_base import open_base
    from fewstep.training.adapter_run import prepare
    from fewstep.training.adapter_sections import Base
    from fewstep.training.products import finish
    from fewstep.training.recipe import dump_recipe, parse_recipe
    from fewstep.training.trainer import run_task

    out = asked.out
    name = _name(asked)
    if asked.kind != "dreambooth":
        out = out if out is not None else Path(f"{name}.safetensors")
        if out.suffix != ".safetensors":
            raise UsageError(f"--out is {out}: give a name that ends in .safetensors")
    else:
        out = out if out is not None else Path(name)
    base = _base_path(asked)
    model = open_base(Base(path=str(base)))
    values = _chosen(asked, name, base, model)
    recipe: Any = parse_recipe(_yaml(values), asked.settings, source=f"train {asked.kind}")
    if dry_run:
        output.result(dump_recipe(recipe).rstrip())
        return
    folder = asked.run or RUNS / asked.kind / name
    _check_out(out, folder, resume=resume)
    for line in _said(recipe, model, folder):
        output.note(line)
    if recipe.base != Base(path=str(base)):
        model = open_base(recipe.base)
    from fewstep.cli.progress import progress

    with progress("encoding", quiet=quiet) as report:
        prepared = prepare(recipe, folder, model=model, report=lambda _, done, total: report(done, total))
    done = run_task(
        prepared.task,
        recipe,
        prepared.pictures,
        run_folder=folder,
        resume=resume,
        override=override,
        sampler=prepared.sampler,
        show_progress=not quiet,
    )
    if not done.main_process:
        return
    output.note(f"{done.images_seen} images in {done.steps} steps, {done.images_per_second:.1f} images/s")
    made = finish(folder)
    assert made is not None
    _deliver(made, out)
    output.note(f"use it with: {use(recipe, model, out)}")
    output.result(str(out))
    if done.stopped == "SIGINT":
        raise Cancelled(f"everything is saved; go on with the same command and --resume, in {folder}")


def use(recipe: AdapterRecipe, model: TaughtModel, out: Path) -> str:
    """The command that draws with what was learnt."""
    prompt = recipe.samples.prompts[0] if recipe.samples.prompts else (recipe.pictures.trigger or "a picture")
    base = model.opened
    where = ["--checkpoint", recipe.base.path]
    if recipe.kind == "lora":
        options = [*where, "--loras-dir", str(out.parent)]
        return shlex.join(["fewstep", "generate", f"{prompt} <lora:{out.stem}:1>", *options])
    if recipe.kind == "dreambooth":
        own = ["--checkpoint", str(out)] if base.folder is not None else [*where, "--unet", str(out)]
        return shlex.join(["fewstep", "generate", prompt, *own])
    word = recipe.pictures.trigger
    assert word is not None
    if any("CLIP" in base.parts[part].class_name for part in base.text_parts):
        # an embedding is called by the name of its file
        options = [*where, "--embeddings-dir", str(out.parent)]
        return shlex.join(["fewstep", "generate", prompt.replace(word, out.stem), *options])
    return f"pipe.load_textual_inversion({str(out)!r}, token={word!r}) in diffusers"


def _name(asked: Asked) -> str:
    from fewstep.training.adapter_sections import NAME

    if asked.out is not None:
        name = asked.out.stem if asked.out.suffix == ".safetensors" else asked.out.name
        if NAME.fullmatch(name) is None:
            raise UsageError(f"--out is {asked.out}: name the file with letters, digits and . _ - only")
        return name
    if asked.kind == "embedding" and asked.trigger is not None and NAME.fullmatch(asked.trigger):
        return asked.trigger
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", asked.folder.resolve().name).strip("-.")[:90] or asked.kind
    return f"{found}-word" if asked.kind == "embedding" else found


def _base_path(asked: Asked) -> Path:
    """The folder or file of the model: a path, or a name of those that training can open."""
    from fewstep.engine import registry

    checkout = Path(__file__).resolve().parents[3]
    beside = (checkout / "weights",) if (checkout / "pyproject.toml").is_file() else ()
    name = registry.DEFAULT if asked.model is None else asked.model
    try:
        return registry.find(name, kind=("pipeline", "checkpoint"), extra=(*asked.models_dir, *beside)).folder
    except NotFoundError:
        if asked.model is not None and Path(asked.model).expanduser().exists():
            return Path(asked.model).expanduser()
        bundles = [entry.name for entry in registry.models(asked.models_dir) if entry.kind == "bundle"]
        if name not in bundles:
            raise
        raise NotFoundError(
            f"model {name!r}: only its runtime bundle is here, which cannot be taught; get its pipeline "
            "folder and name it with --model, or its parent with --models-dir"
        ) from None


def _chosen(asked: Asked, name: str, base: Path, model: TaughtModel) -> dict[str, Any]:
    """The recipe that suits a model and a folder."""
    width, height = model.native_size
    small = width * height <= _SMALL
    images = asked.images or (_MANY if small else _FEW)
    if asked.minutes is not None:
        if not asked.minutes > 0:
            raise UsageError(f"--minutes is {asked.minutes}: give a number above 0")
        images = asked.images or 10_000_000
    batch = 8 if small else 1
    # of a run by the clock it is not known how far it will come
    every = max(batch, images // 4) if asked.minutes is None else (2_000 if small else 250)
    trigger = asked.trigger
    if asked.kind == "embedding" and trigger is None:
        trigger = name
    contract = model.contract
    values: dict[str, Any] = {
        "kind": KINDS[asked.kind],
        "name": name,
        "base": {"path": str(base)},
        "data": {"source": "folder", "path": str(asked.folder), "batch_size": batch},
        "pictures": {"mirror": True, "trigger": trigger},
        "optimiser": {"learning_rate": _rate(asked.kind, small=small)},
        "schedule": {"kind": "constant", "warmup_images": 20 * batch},
        "stop": {"images": images, "hours": None if asked.minutes is None else asked.minutes / 60},
        "samples": {
            "every_images": every,
            "num_inference_steps": contract.num_inference_steps,
            "guidance_scale": max(contract.guidance_scale, 0.0),
            "guidance_rescale": contract.guidance_rescale,
            "prompts": list(_prompts(asked.folder, trigger)),
        },
        "runtime": {
            "gradient_checkpointing": not small,
            "checkpoint_minutes": 5.0,
            "log_images": 25 * batch,
        },
    }
    if asked.minutes is None:
        values["schedule"]["kind"] = "wsd"
    else:
        # the rate cannot come down before an end that is not known in images: an average does the same
        values["ema"] = {"half_life_images": 50 * batch}
    if asked.kind == "lora":
        rank = asked.rank or 16
        values["lora"] = {"rank": rank}
    elif asked.rank is not None:
        raise UsageError("--rank: only a LoRA has one; leave it out")
    return values


def _rate(kind: str, *, small: bool) -> float:
    if kind == "lora":
        return 1e-3 if small else 1e-4
    if kind == "embedding":
        return 5e-3
    return 1e-4 if small else 2e-6


def _prompts(folder: Path, trigger: str | None) -> tuple[str, ...]:
    """Some captions for sample grids; what is wrong with a folder is said when it is opened for training."""
    from fewstep.data.sources.folder import FolderSource
    from fewstep.errors import DataError
    from fewstep.training.adapter_previews import default_prompts

    source = FolderSource(folder, caption=trigger)
    captions = []
    for index in range(len(source)):
        try:
            text = " ".join(source.caption(index).split())
        except DataError:
            continue
        if text:
            captions.append(text if trigger is None or trigger in text else f"{trigger}, {text}")
    return default_prompts(captions)


def _said(recipe: AdapterRecipe, model: TaughtModel, folder: Path) -> list[str]:
    from fewstep.training.adapter_data import size

    width, height = size(recipe.pictures, model)
    opened, stop = model.opened, recipe.stop
    until = f"{stop.images} images" if stop.hours is None else f"{60 * stop.hours:g} minutes"
    what = {"lora": "a LoRA", "textual_inversion": "a word", "dreambooth": "all weights"}[recipe.kind]
    more = f" of rank {recipe.lora.rank}" if recipe.kind == "lora" else ""  # type: ignore[attr-defined]
    lines = [
        f"teaches {what}{more} to {opened.name} ({opened.family.title}) from {recipe.data.path}",
        f"pictures are cut to {width}x{height}, {recipe.data.batch_size} a step, for {until}, at learning "
        f"rate {recipe.optimiser.learning_rate:g}; other choices: --set KEY=VALUE (all keys: --dry-run)",
        f"sample grids and checkpoints are in {folder}",
    ]
    if model.contract.method != "base":
        few = f"{opened.name} draws in few steps and is taught at its own times"
        lines.insert(1, f"{few}; what its base is taught is for the base and for all its students")
    if recipe.pictures.trigger is not None:
        lines.insert(1, f"prompts call it with {recipe.pictures.trigger!r}")
    return lines


def _check_out(out: Path, folder: Path, *, resume: bool) -> None:
    from fewstep.errors import OutputError

    if out.exists() and not resume:
        raise OutputError(f"{out}: exists already; choose another name with --out, or go on with --resume")
    parent = out.resolve().parent
    if not parent.is_dir():
        raise OutputError(f"{out}: no folder {parent}; make it, or choose another place with --out")


def _deliver(made: Path, out: Path) -> None:
    import shutil

    from fewstep.checkpoint import atomic

    if made.resolve() == out.resolve():
        return
    if made.is_dir():
        with atomic.folder(out, replace=True) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
        return
    with atomic.file(out) as temporary:
        shutil.copyfile(made, temporary)


def _yaml(values: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text
