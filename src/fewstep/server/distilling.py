"""Orders of distillations: a recipe that the server writes, from one of the package or from a method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.engine import registry
from fewstep.errors import NotFoundError, UsageError
from fewstep.server import methods
from fewstep.server.schemas import work
from fewstep.server.workplan import Command, Find, Plan, Run

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract

_CHECKPOINT_MINUTES = 5.0
_PROMPTS = 6


def by_recipe(body: work.DistillBody, run: Run, name: str, threads: int | None, resume: bool) -> Plan:
    """A recipe of the package, with what the order says otherwise."""
    import yaml

    values = yaml.safe_load(recipe_file(name).read_text(encoding="utf-8"))
    _override(values, body, threads)
    toy = "mixture" in values["teacher"]
    if toy and body.bundle is not None:
        raise UsageError("bundle: a toy recipe leaves a report and no model; leave bundle out")
    teacher = None if toy else str(values["teacher"]["pipeline"])
    return _distilled(body, run, values, resume=resume, toy=toy, teacher=teacher)


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
    assert body.method is not None
    values = methods.recipe(
        body.method, steps=body.steps, images=body.images, minutes=body.minutes, batch=body.batch_size or 8,
        guidance=_guidance(teacher), prompts=_prompts(pictures), grids=body.grids,
    )  # fmt: skip
    values["data"] = {"source": "cache", "path": str(latents), "batch_size": 8}
    values["teacher"] = {"pipeline": str(teacher.folder)}
    _override(values, body.model_copy(update={"images": None}), threads)
    return _distilled(
        body, run, values, resume=resume, toy=False, before=(encode,), teacher=str(teacher.folder)
    )


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
    teacher: str | None = None,
    before: tuple[Command, ...] = (),
) -> Plan:
    import yaml

    flags = ("resume",) if resume else ()
    command = Command("distill", (("run", str(run.work)),), flags, (str(run.recipe),))
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if toy:  # points in a plane: what is left is a table
        return Plan(commands=(*before, command), product="report", made=run.work / "report.json", recipe=text)
    student, commands = run.work / "student", (*before, command)
    if body.bundle is not None:
        assert teacher is not None
        options = (
            ("out", str(run.made / body.bundle)), ("name", body.bundle), 
            ("precision", body.bundle_precision or "int8"),
            ("student", f"{body.name}={student}"),
        )  # fmt: skip
        commands = (*commands, Command("export", options, (), (teacher,)))
    return Plan(
        commands=commands, product="model", name=body.name, made=student, recipe=text, published=body.name,
        bundle=body.bundle,
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


def _prompts(pictures: Path) -> list[str]:
    """Some captions of a dataset, for the grids that are drawn meanwhile."""
    texts = (path.read_text(encoding="utf-8").strip() for path in sorted(pictures.glob("*.txt")))
    return list(dict.fromkeys(text for text in texts if text))[:_PROMPTS]


def _guidance(model: registry.ModelEntry) -> float:
    """The scale that a teacher draws with; 1 where it has no guidance."""
    contract = _contract(model)
    return contract.guidance_scale if contract.guidance == "classifier_free" else 1.0


def _native_size(model: registry.ModelEntry) -> tuple[int, int]:
    width, height = _contract(model).native_sizes[0]
    return width, height


def _contract(model: registry.ModelEntry) -> SamplingContract:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.errors import CheckpointError

    try:
        contract = SamplingContract.from_json((model.folder / "fewstep.json").read_text(encoding="utf-8"))
        contract.native_sizes[0]
    except (OSError, ValueError, IndexError, CheckpointError):
        raise UsageError(
            f"model {model.name}: says nothing of how it is sampled (fewstep.json), so that it cannot teach; "
            "take another one"
        ) from None
    return contract
