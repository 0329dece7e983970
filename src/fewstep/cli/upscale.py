"""``fewstep upscale``: pictures, larger and cleaner, from the options to files on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from fewstep.cli import choices, output
from fewstep.prompt import containers

FORMATS = ("auto", *containers.FORMATS)

# Headings of the help.
_SIZE = "Size"
_RESTORE = "Drawing anew"
_FILES = "Files"


def command(
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PICTURES...", help="Images, folders of images, or patterns such as '*.jpg'."),
    ] = None,
    upscaler: Annotated[
        str, typer.Option("--upscaler", metavar="NAME|FILE", help="See --list; a file needs spandrel.")
    ] = "auto",
    upscaler_2: Annotated[
        str, typer.Option("--upscaler-2", metavar="NAME|FILE", help="Blended over the first.")
    ] = "none",
    visibility: Annotated[
        float | None, typer.Option("--visibility", help="Of the second, 0 to 1; 0.5.")
    ] = None,
    noise: Annotated[
        int | None, typer.Option("--noise", metavar="-1..3", help="What waifu2x removes; -1 nothing.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", help="Times the size; 4.", rich_help_panel=_SIZE)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH", help="Size in place of a factor.", rich_help_panel=_SIZE),
    ] = None,
    crop: Annotated[
        bool,
        typer.Option(
            "--crop/--no-crop", help="Cut to --size, or let one side be larger.", rich_help_panel=_SIZE
        ),
    ] = True,
    restore: Annotated[
        float | None,
        typer.Option(
            "--restore",
            metavar="STRENGTH",
            help="Draw the picture anew at this strength, such as 0.2.",
            rich_help_panel=_RESTORE,
        ),
    ] = None,
    restore_at: Annotated[
        str,
        typer.Option(
            "--restore-at",
            metavar="auto|whole|tiles",
            help="Whole before enlarging, or in tiles after.",
            rich_help_panel=_RESTORE,
        ),
    ] = "auto",
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="What the picture shows.", rich_help_panel=_RESTORE)
    ] = None,
    negative: Annotated[
        str, typer.Option("--negative", help="What it does not show.", rich_help_panel=_RESTORE)
    ] = "",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="See: fewstep models.", rich_help_panel=_RESTORE),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", metavar="NAME|none", help="Who draws.", rich_help_panel=_RESTORE),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Denoising steps.", rich_help_panel=_RESTORE)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise.", rich_help_panel=_RESTORE)] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the results.", rich_help_panel=_FILES)
    ] = Path("outputs/upscaled"),
    image_format: Annotated[
        str,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="auto: that of the picture.", rich_help_panel=_FILES
        ),
    ] = "auto",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Make again what was made before.", rich_help_panel=_FILES),
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads; all.", rich_help_panel=_FILES)
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print a JSON record per image, not its path.", rich_help_panel=_FILES),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no notes on stderr.", rich_help_panel=_FILES)
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="Print the upscalers and exit.")] = False,
) -> None:
    """Make pictures larger or cleaner, and print the path of each file.

    Nothing is overwritten unless asked for. A picture that cannot be used is said and the rest goes on.
    """
    from fewstep.cli import upscale_files
    from fewstep.engine.upscaling import catalogue, enlarge

    if show_list:
        upscale_files.show(as_json=as_json)
        return
    choices.one_of("--format", image_format, FORMATS)
    choices.one_of("--restore-at", restore_at, ("auto", "whole", "tiles"))
    if threads is not None and threads < 1:
        from fewstep.errors import UsageError

        raise UsageError(f"--threads is {threads}: give 1 or more")
    if noise is not None:
        upscaler = catalogue.with_noise("waifu2x-cunet" if upscaler == "auto" else upscaler, noise)
    # Shells take a minus for an option, so the second upscaler's share has a default that depends on it.
    share = (0.0 if upscaler_2 == "none" else 0.5) if visibility is None else visibility
    names, others = upscale_files.opened([upscaler, upscaler_2])
    options = enlarge.Extras(
        upscaler=names[0], upscaler_2=names[1], visibility=share, scale=scale,
        size=None if size is None else choices.size("--size", size), crop=crop,
    )  # fmt: skip
    enlarge.check(options, others)
    sources = upscale_files.expanded(pictures or [])
    drawn = upscale_files.restoration(
        restore, restore_at, model=model, prompt=prompt, negative_prompt=choices.text("--negative", negative),
        student=student, num_inference_steps=steps, seed=seed,
    )  # fmt: skip
    upscale_files.run(
        sources,
        upscale_files.Order(
            options=options, others=others, restoration=drawn, out=out, threads=threads, overwrite=overwrite,
            image_format=cast("containers.Format | None", None if image_format == "auto" else image_format),
            as_json=as_json, quiet=quiet,
        ),
    )  # fmt: skip
    if upscaler == "auto" and not quiet and catalogue.resolve("auto") == "lanczos":
        output.note(f"enlarged by lanczos alone; for networks install: {catalogue.INSTALL}")
