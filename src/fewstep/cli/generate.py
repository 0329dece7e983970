"""``fewstep generate``: from the options to files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fewstep.cli import choices, output
from fewstep.cli.interrupts import cancellable
from fewstep.cli.libraries import quiet_libraries
from fewstep.cli.progress import progress
from fewstep.errors import NotFoundError
from fewstep.prompt import containers

if TYPE_CHECKING:
    from fewstep.engine.engine import Engine

ENGINES = ("auto", "openvino", "torch")


def command(
    prompt: Annotated[str, typer.Argument(help="What to draw; behind -- when it begins with a dash.")],
    negative: Annotated[str, typer.Option("--negative", help="What should not be in the image.")] = "",
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="See: fewstep models.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale; 1 for none.")] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option("--guidance-rescale", help="0 to 1, against over-exposure."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", metavar="NAME", help="Such as ddim or dpmpp_2m.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student", metavar="NAME|none", help="Who draws; default a student made for --steps, if any."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i is drawn from seed + i.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 1,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels before upscaling.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Start from this image.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="How much of --image may change, 0 to 1."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="FILE", help="Draw only what is white here; as large as --image."),
    ] = None,
    upscale: Annotated[
        str,
        typer.Option("--upscale", metavar="auto|none|NAME", help="auto: 4 times, where ncnn is installed."),
    ] = "auto",
    engine: Annotated[
        str, typer.Option("--engine", metavar="|".join(ENGINES), help="See: fewstep doctor.")
    ] = "auto",
    models_dir: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", metavar="DIR", help="More models; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the images.")] = Path(
        "outputs"
    ),
    image_format: Annotated[
        str, typer.Option("--format", metavar="|".join(containers.FORMATS), help="File format.")
    ] = "png",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON record per image, not its path.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One by one: bit for bit as single images.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Draw images from a prompt, or change an image, and print the path of each file.

    What is not given is taken from the model. The same seed and settings give the same file, byte for byte.
    """
    choices.one_of("--engine", engine, ENGINES)
    choices.one_of("--format", image_format, containers.FORMATS)
    width, height = choices.size("--size", size) if size is not None else (None, None)
    from fewstep.cli import pictures
    from fewstep.engine import upscale as upscaling
    from fewstep.engine.request import resolve

    upscaling.check_name(upscale)
    output.show_logs(quiet=quiet)
    drawing = open_engine(model, engine, models_dir or [])
    request = resolve(
        drawing.info,
        prompt=choices.text("PROMPT", prompt),
        negative_prompt=choices.text("--negative", negative),
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=guidance_rescale,
        solver=solver,
        seed=seed,
        n=n,
        width=width,
        height=height,
        init_image=_read("image", image),
        strength=strength,
        mask=_read("mask", mask),
        deterministic=deterministic,
        student=student,
    )
    if request.student is not None and student is None and not quiet:
        output.note(f"drawn by student {request.student}; for the base model give --student none")
    with output.numbers(out, request.n) as numbers, cancellable() as cancelled:
        with progress("step", quiet=quiet) as report:
            result = drawing.generate(
                request, on_step=lambda step: report(step.index + 1, step.total), cancelled=cancelled
            )
        for warning in () if quiet else result.warnings:
            output.note(f"warning: {warning}")
        for index, number in enumerate(numbers):
            picture = pictures.finish(request, result, index, upscale, cancelled=cancelled)
            if picture.warning is not None and index == 0 and not quiet:
                output.note(picture.warning)
            path = pictures.save(picture, out, number, cast(containers.Format, image_format))
            if as_json:
                output.result_json(pictures.report(picture, path, request, result))
            else:
                output.result(str(path))


def open_engine(model: str | None, engine: str, folders: Sequence[Path]) -> Engine:
    """Open a model by name with the engine that was asked for.

    Raises:
        NotFoundError, CheckpointError, DependencyError, UsageError: as `fewstep.engine.engine.Engine`.
    """
    from fewstep.engine import registry
    from fewstep.engine.engine import Engine

    quiet_libraries()
    kinds: dict[str, registry.Kind | None] = {"auto": None, "openvino": "bundle", "torch": "pipeline"}
    try:
        entry = registry.find(model, kind=kinds[engine], extra=folders)
    except NotFoundError:
        # There may be one of the other kind: then the engine says that it cannot run it.
        entry = registry.find(model, extra=folders)
    return Engine(entry, engine)


def _read(kind: str, path: Path | None) -> Any:
    if path is None:
        return None
    from fewstep.data import images

    return images.open_mask(path) if kind == "mask" else images.open_image(path)
