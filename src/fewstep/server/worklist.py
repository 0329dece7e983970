"""What an order of long work means: which commands are run with which arguments, and what is left at the end.

An order holds names. They are looked up here, and only folders and files that were found go into a command:
a text of a caller is never part of a path. Options have values of a closed kind; what is free text (a
trigger) is the value of one option, see `fewstep.cli.child`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.engine import registry
from fewstep.errors import TooLarge, UsageError
from fewstep.server import distilling, media
from fewstep.server.schemas import work
from fewstep.server.workplan import SUFFIX, Command, Find, Plan, Product, Run, drafts, given, setting

if TYPE_CHECKING:
    from fewstep.server.history import History
    from fewstep.server.settings import Limits, ServerSettings


def plan(
    body: work.WorkBody,
    run: Run,
    *,
    find: Find,
    dataset: Callable[[str], Path],
    threads: int | None = None,
    resume: bool = False,
) -> Plan:
    """The commands of an order.

    Args:
        body: the order.
        run: folder of its job.
        find: looks up models.
        dataset: looks up datasets of the caller.
        threads: of orders that say nothing of them.
        resume: go on with what is in the folder.

    Raises:
        NotFoundError: a name that is not known.
        UsageError: something that cannot be done with what was found.
    """
    if isinstance(body, work.TrainBody):
        return _train(body, run, find, dataset(body.dataset), threads, resume)
    if isinstance(body, work.DistillBody):
        if body.recipe is not None:
            return distilling.by_recipe(body, run, body.recipe, threads, resume)
        assert body.dataset is not None
        return distilling.by_method(body, run, find, dataset(body.dataset), threads, resume)
    if isinstance(body, work.ExportBody):
        return _export(body, run, find)
    if isinstance(body, work.EvaluateBody):
        return _evaluate(body, run, find)
    if isinstance(body, work.MergeBody):
        return _merge(body, run, find)
    if isinstance(body, work.DownloadBody):
        return _download(body, run)
    return _upscale(body, run, find, threads)


def _train(
    body: work.TrainBody, run: Run, find: Find, pictures: Path, threads: int | None, resume: bool
) -> Plan:
    kinds: tuple[registry.Kind, ...] = ("pipeline", "checkpoint")
    if body.what == "dreambooth" or body.student is not None:
        kinds = ("pipeline",)  # what a single file becomes is a denoiser, and no model that draws by itself
    model = find(body.model, kinds)
    file = body.name if body.what == "dreambooth" else body.name + SUFFIX
    options = [
        ("model", str(model.folder)), ("run", str(run.work)), ("out", str(run.made / file)),
        *given(trigger=body.trigger, minutes=body.minutes, images=body.images, rank=body.rank),
        *setting("seed", body.seed), *setting("optimiser.learning_rate", body.learning_rate),
        *setting("data.batch_size", body.batch_size),
        *setting("runtime.log_images", _every(body)), *_samples(body),
        *setting("runtime.mixed_precision", body.precision),
        *setting("runtime.threads", body.threads or threads), *setting("base.student", body.student),
    ]  # fmt: skip
    command = Command("train", tuple(options), ("resume",) if resume else (), (body.what, str(pictures)))
    product: Product = "model"
    if body.what != "dreambooth":
        product = "lora" if body.what == "lora" else "embedding"
    return Plan(commands=(command,), product=product, name=body.name, made=run.made / file, published=file)


def _every(body: work.TrainBody) -> int:
    """Images after which a training says how far it is: every 25 steps, fifty times in a short one."""
    every = 25 * (body.batch_size or 1)
    return every if body.images is None else max(1, min(every, body.images // 50))


def _samples(body: work.TrainBody) -> list[tuple[str, str]]:
    """When sample grids are drawn; as the command chooses where the order does not say."""
    if body.grids is None:
        return []
    if body.grids == 0:
        return [("set", "samples.every_images=null")]
    assert body.images is not None  # checked by the order
    return setting("samples.every_images", max(1, body.images // body.grids))


def _export(body: work.ExportBody, run: Run, find: Find) -> Plan:
    pipeline = find(body.model, ("pipeline",))
    names = [one.name for one in body.students]
    if len(set(names)) < len(names):
        raise UsageError("students: a name is given twice; give each student its own")
    students = [("student", f"{one.name}={find(one.model, ('pipeline',)).folder}") for one in body.students]
    options = (
        ("out", str(run.made / body.name)), ("name", body.name), ("precision", body.precision), *students
    )  # fmt: skip
    return Plan(
        commands=(Command("export", options, (), (str(pipeline.folder),)),), product="model", name=body.name,
        made=run.made / body.name, published=body.name,
    )  # fmt: skip


def _evaluate(body: work.EvaluateBody, run: Run, find: Find) -> Plan:
    kinds: tuple[registry.Kind, ...] = ("bundle", "pipeline", "checkpoint")
    models = [find(name, kinds).name for name in body.models]
    options = [
        *(("prompts", name) for name in body.prompts),
        *given(
            n=body.n, steps=body.num_inference_steps, guidance=body.guidance_scale, solver=body.solver,
            student=body.student, seed=body.seed, diversity=body.diversity, out=run.work,
        ),
        *given(**{"guidance-rescale": body.guidance_rescale}),
    ]  # fmt: skip
    flags = ("json", "compare") if body.compare else ("json",)
    return Plan(commands=(Command("evaluate", tuple(options), flags, tuple(models)),), product="report")


def _merge(body: work.MergeBody, run: Run, find: Find) -> Plan:
    models = [find(name, ("checkpoint", "pipeline")) for name in body.models]
    name = drafts(run.folder.name) if body.draft else body.name
    file = name + (SUFFIX if models[0].kind == "checkpoint" else "")
    options = given(
        mode=body.mode, ratio=body.ratio, blocks=body.blocks, dtype=body.dtype, out=run.made / file,
        vae=None if body.vae is None else find(body.vae, ("checkpoint", "pipeline")).folder,
    )  # fmt: skip
    command = Command("merge", tuple(options), (), tuple(str(one.folder) for one in models))
    return Plan(commands=(command,), product="model", name=name, made=run.made / file, published=file)


def _download(body: work.DownloadBody, run: Run) -> Plan:
    """Into the folder of the job, where a download that was stopped goes on; from there it is published."""
    reference = body.repository + (f"@{body.revision}" if body.revision else "")
    options = (("models-dir", str(run.work)), *given(file=body.file))
    command = Command("models", options, ("unnamed",), ("download", reference))
    name = body.repository if body.file is None else body.file
    return Plan(
        commands=(command,), product="download", name=name.rpartition("/")[2].removesuffix(SUFFIX),
        made=run.work,
    )  # fmt: skip


def _upscale(body: work.EnlargeBody, run: Run, find: Find, threads: int | None) -> Plan:
    first, second = upscalers(body)
    size = None if body.width is None else f"{body.width}x{body.height}"
    options = given(
        upscaler=first, scale=body.scale, size=size, threads=body.threads or threads, out=run.made,
        format="png",
    )  # fmt: skip
    if second != "none":
        options += given(**{"upscaler-2": second, "visibility": body.visibility})
    if (anew := body.restore) is not None:
        drawn_by = None if anew.model is None else find(anew.model, ("bundle", "pipeline", "checkpoint")).name
        options += given(
            restore=anew.strength, prompt=anew.prompt, negative=anew.negative_prompt or None, model=drawn_by,
            student=anew.student, steps=anew.num_inference_steps, seed=anew.seed,
            **{"restore-at": anew.at},
        )  # fmt: skip
    flags = ("json", "overwrite") if body.crop else ("json", "overwrite", "no-crop")
    return Plan(
        commands=(Command("upscale", tuple(options), flags, (str(run.inputs),)),), product="pictures",
        made=run.made,
    )  # fmt: skip


def upscalers(body: work.EnlargeBody) -> tuple[str, str]:
    """The two upscalers of an order; the second may be ``none``.

    Raises:
        UsageError: unknown, or a level of noise for one that has none.
        DependencyError: not installed.
    """
    from fewstep.engine.upscaling import catalogue

    first = body.upscaler
    if body.noise is not None:
        first = catalogue.with_noise("waifu2x-cunet" if first == "auto" else first, body.noise)
    if first != "none":
        first = catalogue.resolve(first)
    elif body.restore is None:
        raise UsageError("upscaler is none and nothing is to be restored: ask for one of the two")
    blended = body.upscaler_2 != "none" and body.visibility > 0
    return first, catalogue.resolve(body.upscaler_2) if blended else "none"


def check_size(body: work.EnlargeBody, width: int, height: int, limits: Limits) -> None:
    """Refuse a picture that would become too large.

    Raises:
        TooLarge: says how large it may be.
    """
    pixels = width * height * (4.0 if body.scale is None else body.scale) ** 2
    if body.width is not None and body.height is not None:
        # without cropping one side may be larger
        factor = max(body.width / width, body.height / height)
        pixels = body.width * body.height if body.crop else width * height * factor**2
    if pixels > limits.max_output:
        raise TooLarge(
            f"a picture of {width}x{height} would have {pixels:.0f} pixels: this server makes at most "
            f"{limits.max_output}; ask for less"
        )


def pictures(body: work.WorkBody, owner: str, history: History, settings: ServerSettings) -> dict[str, bytes]:
    """The files that an order enlarges, by the names that they get in the folder of its job.

    Raises:
        NotFoundError: a picture that this owner does not have.
        UsageError, DataError: one that cannot be read.
        TooLarge: one that is too large, or would become so.
    """
    if not isinstance(body, work.EnlargeBody):
        return {}
    files: dict[str, bytes] = {}
    limits, sees = settings.limits, owner if settings.keys else None
    sent = (
        {"image": body.image}
        if body.image is not None
        else {f"file-{number:02}": file for number, file in enumerate(body.files, 1)}
    )
    for name, text in sent.items():
        pixels = media.decode_text(text, what=name, limits=limits, allow_urls=settings.allow_urls)
        check_size(body, pixels.shape[1], pixels.shape[0], limits)
        files[f"{name}.png"] = media.encode(pixels, kind="png")
    for image_id in body.images:
        kept = history.get(image_id, sees)
        check_size(body, kept.width, kept.height, limits)
        files[image_id + history.path(image_id, sees).suffix] = history.open(image_id, sees)
    return files
