"""``fewstep generate``: from the options to files on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fewstep.cli import choices, output
from fewstep.cli.interrupts import cancellable
from fewstep.cli.progress import progress
from fewstep.cli.sources import open_model as open_engine
from fewstep.errors import UsageError
from fewstep.prompt import containers
from fewstep.prompt.attention import EMPHASIS_MODES, EmphasisMode

if TYPE_CHECKING:
    from fewstep.engine.engine import Engine, StepReport
    from fewstep.engine.request import GenerateRequest, GenerateResult

ENGINES = ("auto", "openvino", "torch")

# Headings of the help.
_PICTURES = "Pictures to start from"
_SECOND = "Second pass and variations"
_PROMPTS = "Prompts"
_MODELS = "Models"
_FILES = "Files"


def command(
    prompt: Annotated[str, typer.Argument(help="What to draw; behind -- when it begins with a dash.")],
    negative: Annotated[str, typer.Option("--negative", help="What should not be in the image.")] = "",
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="N|NAME",
            help="Of a model that draws classes; PROMPT is '' then.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="See: fewstep models.", rich_help_panel=_MODELS),
    ] = None,
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
            "--student",
            metavar="NAME|none",
            help="Who draws; default a student made for --steps, if any.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i is drawn from seed + i.")] = 0,
    n: Annotated[int, typer.Option("--n", help="Number of images.")] = 1,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels before upscaling.")
    ] = None,
    clip_skip: Annotated[
        int,
        typer.Option(
            "--clip-skip", help="Last layers of CLIP to leave out; 0 for none.", rich_help_panel=_PROMPTS
        ),
    ] = 0,
    image: Annotated[
        Path | None,
        typer.Option("--image", metavar="FILE", help="Start from this image.", rich_help_panel=_PICTURES),
    ] = None,
    image_guidance: Annotated[
        float | None,
        typer.Option(
            "--image-guidance",
            help="How closely an instruct model keeps to --image.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", help="How much of --image may change, 0 to 1.", rich_help_panel=_PICTURES),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            help="Draw only what is white here; as large as --image.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    masked_content: Annotated[
        str | None,
        typer.Option(
            "--masked-content",
            metavar="fill|original|latent_noise|latent_nothing",
            help="What is under the mask at first; makes strength 0.75.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    mask_blur: Annotated[
        int | None,
        typer.Option(
            "--mask-blur", metavar="PIXELS", help="Soft edge of the mask.", rich_help_panel=_PICTURES
        ),
    ] = None,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="Draw what is black in --mask.", rich_help_panel=_PICTURES)
    ] = False,
    only_masked: Annotated[
        bool,
        typer.Option(
            "--only-masked",
            help="Draw the part around the mask alone, as large as --size.",
            rich_help_panel=_PICTURES,
        ),
    ] = False,
    padding: Annotated[
        int | None,
        typer.Option("--padding", metavar="PIXELS", help="Around that part; 32.", rich_help_panel=_PICTURES),
    ] = None,
    outpaint: Annotated[
        str | None,
        typer.Option(
            "--outpaint",
            metavar="L,R,T,B",
            help="Extend --image by pixels: left,right,top,bottom.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    hires: Annotated[
        str | None,
        typer.Option(
            "--hires",
            metavar="SCALE|WxH",
            help="Draw again, larger, from what was drawn.",
            rich_help_panel=_SECOND,
        ),
    ] = None,
    hires_steps: Annotated[
        int | None,
        typer.Option("--hires-steps", help="Of the second pass; as --steps.", rich_help_panel=_SECOND),
    ] = None,
    hires_strength: Annotated[
        float | None,
        typer.Option("--hires-strength", help="Share of them that is run; 0.5.", rich_help_panel=_SECOND),
    ] = None,
    hires_upscaler: Annotated[
        str | None,
        typer.Option(
            "--hires-upscaler",
            metavar="auto|latent|lanczos|nearest|NAME",
            help="Between the two.",
            rich_help_panel=_SECOND,
        ),
    ] = None,
    variation_seed: Annotated[
        int | None,
        typer.Option(
            "--variation-seed", help="Vary towards this seed's image; --seed + 1.", rich_help_panel=_SECOND
        ),
    ] = None,
    variation_strength: Annotated[
        float | None, typer.Option("--variation-strength", help="How far, 0 to 1.", rich_help_panel=_SECOND)
    ] = None,
    seed_resize: Annotated[
        str | None,
        typer.Option(
            "--seed-resize",
            metavar="WxH",
            help="Keep what the seed draws at this size.",
            rich_help_panel=_SECOND,
        ),
    ] = None,
    vae_tiling: Annotated[
        bool | None,
        typer.Option(
            "--vae-tiling/--no-vae-tiling",
            help="Encode and decode in tiles; default for large images.",
            rich_help_panel=_SECOND,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME|DIR",
            help="ControlNet or T2I-adapter; may be repeated.",
            rich_help_panel=_PICTURES,
        ),
    ] = None,
    control_image: Annotated[
        list[Path] | None,
        typer.Option("--control-image", metavar="FILE", help="What it is shown.", rich_help_panel=_PICTURES),
    ] = None,
    control_scale: Annotated[
        list[float] | None,
        typer.Option("--control-scale", help="How strongly it steers; 1.", rich_help_panel=_PICTURES),
    ] = None,
    emphasis: Annotated[
        str,
        typer.Option(
            "--emphasis",
            metavar="original|no_norm|ignore|none",
            help="How weights in the prompt are applied.",
            rich_help_panel=_PROMPTS,
        ),
    ] = "original",
    style: Annotated[
        list[str] | None,
        typer.Option(
            "--style",
            metavar="NAME",
            help="Put a style of --styles in; may be repeated.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    styles: Annotated[
        Path | None,
        typer.Option(
            "--styles",
            metavar="FILE",
            help="CSV file: name,prompt,negative_prompt.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    wildcards: Annotated[
        Path | None,
        typer.Option(
            "--wildcards",
            metavar="DIR",
            help="Its NAME.txt are the lines of __NAME__.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    upscale: Annotated[
        str,
        typer.Option(
            "--upscale",
            metavar="auto|none|NAME",
            help="auto: 4 times, where ncnn is installed.",
            rich_help_panel=_FILES,
        ),
    ] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            "--engine", metavar="|".join(ENGINES), help="See: fewstep doctor.", rich_help_panel=_MODELS
        ),
    ] = "auto",
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir", metavar="DIR", help="More models; may be repeated.", rich_help_panel=_MODELS
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="PATH",
            help="A model's file or folder, in place of --model.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    unet: Annotated[
        Path | None,
        typer.Option(
            "--unet",
            metavar="PATH",
            help="A U-Net or transformer in place of the model's.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option(
            "--vae",
            metavar="PATH",
            help="An autoencoder or TAESD in place of the model's.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora", metavar="NAME[:W[:TEXTW]]", help="An adapter; may be repeated.", rich_help_panel=_MODELS
        ),
    ] = None,
    loras_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--loras-dir", metavar="DIR", help="More adapters; may be repeated.", rich_help_panel=_MODELS
        ),
    ] = None,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(
            "--embedding",
            metavar="FILE",
            help="An embedding that the prompt names; may be repeated.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    embeddings_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--embeddings-dir",
            metavar="DIR",
            help="More embeddings; may be repeated.",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    insist: Annotated[
        bool,
        typer.Option(
            "--insist", help="Use settings that do not fit a model of few steps.", rich_help_panel=_MODELS
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the images.", rich_help_panel=_FILES)
    ] = Path("outputs"),
    image_format: Annotated[
        str,
        typer.Option(
            "--format", metavar="|".join(containers.FORMATS), help="File format.", rich_help_panel=_FILES
        ),
    ] = "png",
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON record per image, not its path.", rich_help_panel=_FILES),
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="One by one: bit for bit as single images.", rich_help_panel=_FILES
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no notes on stderr.", rich_help_panel=_FILES)
    ] = False,
) -> None:
    """Draw images from a prompt, or change an image, and print the path of each file.

    What is not given is taken from the model. The same seed and settings give the same file, byte for byte.
    """
    choices.one_of("--engine", engine, ENGINES)
    choices.one_of("--format", image_format, containers.FORMATS)
    choices.one_of("--emphasis", emphasis, EMPHASIS_MODES)
    width, height = choices.size("--size", size) if size is not None else (None, None)
    from fewstep.cli import modes, pictures, sources, templates
    from fewstep.engine import finished
    from fewstep.engine import upscale as upscaling
    from fewstep.engine.request import resolve

    upscaling.check_name(upscale)
    prompt = modes.class_prompt(prompt, class_name)
    extended = modes.outpaint(outpaint)
    second = modes.hires(hires, hires_steps, hires_strength, hires_upscaler)
    seed_size = choices.size("--seed-resize", seed_resize) if seed_resize is not None else None
    steered = modes.controls(control or [], control_image or [], control_scale or [], models_dir or [])
    wanted = templates.texts(
        choices.text("PROMPT", prompt), choices.text("--negative", negative), seed=seed, n=n,
        styles=style or [], styles_file=styles, wildcards=wildcards,
    )  # fmt: skip
    output.show_logs(quiet=quiet)
    used = sources.adapters(lora or [])
    parts = {
        "checkpoint": checkpoint, "unet": unet, "vae": vae, "loras": loras_dir,
        "embeddings": embeddings_dir, "embedding_files": embedding,
    }  # fmt: skip
    given = {name: value for name, value in parts.items() if value}
    drawing = open_engine(model, engine, models_dir or [], **cast(Any, given))
    if class_name is not None and not drawing.info.classes:
        raise UsageError(f"--class is {class_name!r}: {drawing.info.name} draws a text, leave --class out")
    order = functools.partial(
        resolve,
        drawing.info,
        num_inference_steps=steps,
        guidance_scale=guidance,
        guidance_rescale=guidance_rescale,
        solver=solver,
        clip_skip=clip_skip,
        image_guidance_scale=image_guidance,
        width=width,
        height=height,
        init_image=_read("image", image),
        strength=strength,
        mask=_read("mask", mask),
        deterministic=deterministic,
        student=student,
        masked_content=masked_content,
        mask_blur=mask_blur,
        only_masked=only_masked,
        padding=padding,
        invert_mask=invert_mask,
        outpaint=extended,
        hires=second,
        variation_strength=variation_strength,
        seed_resize=seed_size,
        tiling=vae_tiling,
        control=steered,
        adapters=used,
        insist=insist,
        emphasis=cast(EmphasisMode, emphasis),
    )
    requests = [
        order(
            prompt=text.prompt,
            negative_prompt=text.negative_prompt,
            seed=seed + text.first,
            n=text.count,
            variation_seed=None if variation_seed is None else variation_seed + text.first,
        )
        for text in wanted
    ]
    request = requests[0]
    if request.student is not None and student is None and not quiet:
        output.note(f"drawn by student {request.student}; for the base model give --student none")
    with output.numbers(out, n) as numbers, cancellable() as cancelled:
        results = _draw(drawing, requests, quiet=quiet, cancelled=cancelled)
        said = [warning for text in wanted for warning in text.warnings]
        said += [warning for result in results for warning in result.warnings]
        for warning in () if quiet else dict.fromkeys(said):
            output.note(f"warning: {warning}")
        images = [(which, index) for which, one in enumerate(requests) for index in range(one.n)]
        for (which, index), number in zip(images, numbers, strict=True):
            request, result = requests[which], results[which]
            picture = finished.finish(
                request, result, index, upscale, cancelled=cancelled, further=wanted[which].further
            )
            if picture.warning is not None and number == numbers[0] and not quiet:
                output.note(picture.warning)
            path = pictures.save(picture, out, number, cast(containers.Format, image_format))
            if as_json:
                output.result_json(pictures.report(picture, path, n, result))
            else:
                output.result(str(path))


def _draw(
    drawing: Engine, requests: Sequence[GenerateRequest], *, quiet: bool, cancelled: Callable[[], bool]
) -> list[GenerateResult]:
    """Draw one request after the other, with one progress bar for all."""
    results = []
    with progress("step", quiet=quiet) as report:
        for before, request in enumerate(requests):

            def on_step(step: StepReport, before: int = before) -> None:
                # Several requests are of one image each, and so have the same number of steps.
                report(before * step.total + step.index + 1, len(requests) * step.total)

            results.append(drawing.generate(request, on_step=on_step, cancelled=cancelled))
    return results


def _read(kind: str, path: Path | None) -> Any:
    if path is None:
        return None
    from fewstep.data import images

    return images.open_mask(path) if kind == "mask" else images.open_image(path)
