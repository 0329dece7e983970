"""Orders of distillations: a recipe that the server writes, from one of the package or from a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.engine import registry
from fewstep.errors import NotFoundError, UsageError
from fewstep.server.schemas import work
from fewstep.server.workplan import Command, Find, Plan, Run

_CHECKPOINT_MINUTES = 5.0


def by_recipe(body: work.DistillBody, run: Run, name: str, threads: int | None, resume: bool) -> Plan:
    """A recipe of the package, with what the order says otherwise."""
    import yaml

    values = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
    _override(values, body, threads)
    toy = "mixture" in values["teacher"]
    return _distilled(body, run, values, resume=resume, toy=toy)


def by_method(
    body: work.DistillBody, run: Run, find: Find, pictures: Path, threads: int | None, resume: bool
) -> Plan:
    """A method on a dataset: its pictures are encoded first, for the model that teaches."""
    teacher = find(body.model, ("pipeline",))
    width, height = _native_size(teacher)
    for part in ("vae", "text_encoder", "tokenizer"):
        if not (teacher.folder / part).is_dir() or (teacher.folder / "text_encoder_2").exists():
            raise UsageError(
                f"model {teacher.name}: distilling on a dataset is for models with an autoencoder and one "
                "text encoder; distil this one by a recipe of your own on the command line"
            )
    latents = run.folder / "latents"
    encode = Command(
        "data", (
            ("out", str(latents)), ("autoencoder", str(teacher.folder / "vae")),
            ("text", str(teacher.folder)), ("size", f"{width}x{height}"),
        ), (), (str(pictures),),
    )  # fmt: skip
    method: dict[str, Any] = {"method": body.method}
    if body.method == "lcm":
        method |= {"guidance": [2.0, 8.0], "num_steps": 16, "boundary_scaling": 0.0, "distance": "l2"}
    stage: dict[str, Any] = {
        "name": str(body.method), "teacher": "base", "methods": [method],
        "stop": {"images": body.images or 20_000}, "optimiser": {"learning_rate": 1e-4},
        "ema": {"half_life_images": 2000},
    }  # fmt: skip
    if body.method == "dmd2":
        method["guidance_scale"] = 2.0
        stage |= {"student_every": 5, "optimiser": {"learning_rate": 2e-5}}
    values = {
        "kind": "distillation", "seed": 0, "data": {"source": "cache", "path": str(latents), "batch_size": 8},
        "teacher": {"pipeline": str(teacher.folder)}, "stages": [stage],
    }  # fmt: skip
    _override(values, body, threads)
    return _distilled(body, run, values, resume=resume, toy=False, before=(encode,))


def _override(values: dict[str, Any], body: work.DistillBody, threads: int | None) -> None:
    """What an order may change in a recipe; everything else stays."""
    if body.seed is not None:
        values["seed"] = body.seed
    if body.batch_size is not None:
        values["data"]["batch_size"] = body.batch_size
    runtime = values.setdefault("runtime", {})
    runtime["checkpoint_minutes"] = min(float(runtime.get("checkpoint_minutes", 10.0)), _CHECKPOINT_MINUTES)
    for key, value in (("mixed_precision", body.precision), ("threads", body.threads or threads)):
        if value is not None:
            runtime[key] = value
    if body.images is not None:
        for stage in values["stages"]:
            stop = stage.setdefault("stop", {})
            stop["images"] = min(stop.get("images") or body.images, body.images)


def _distilled(
    body: work.DistillBody,
    run: Run,
    values: dict[str, Any],
    *,
    resume: bool,
    toy: bool,
    before: tuple[Command, ...] = (),
) -> Plan:
    import yaml

    flags = ("resume",) if resume else ()
    command = Command("distill", (("run", str(run.work)),), flags, (str(run.recipe),))
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if toy:  # points in a plane: what is left is a table
        return Plan(commands=(*before, command), product="report", made=run.work / "report.json", recipe=text)
    return Plan(
        commands=(*before, command), product="model", name=body.name, made=run.work / "student", recipe=text,
        published=body.name,
    )  # fmt: skip


def recipe_file(name: str) -> Path:
    """The distillation recipe of a name such as ``toys/lcm``.

    Raises:
        NotFoundError: there is none; the message lists the names.
    """
    from fewstep.data.backgrounds import recipe_folder

    root = recipe_folder("toys").parent
    known = {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
        if "\nkind: distillation\n" in f"\n{path.read_text(encoding='utf-8')}"
    }
    if name not in known:
        raise NotFoundError(f"recipe {name!r:.130}: not found; there are: {', '.join(known)}")
    return known[name]


def _native_size(model: registry.ModelEntry) -> tuple[int, int]:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.errors import CheckpointError

    try:
        contract = SamplingContract.from_json((model.folder / "fewstep.json").read_text(encoding="utf-8"))
        width, height = contract.native_sizes[0]
    except (OSError, ValueError, IndexError, CheckpointError):
        raise UsageError(
            f"model {model.name}: says nothing of how it is sampled (fewstep.json), so that it cannot teach; "
            "take another one"
        ) from None
    return width, height
