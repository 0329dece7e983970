"""``fewstep txt2img``: the command line of CompVis' ``scripts/txt2img.py``, drawn by this engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import compvis_options as options
from fewstep.errors import UsageError


def command(
    prompt: options.Prompt = options.EXAMPLE,
    outdir: options.Outdir = Path("outputs/txt2img-samples"),
    skip_grid: options.SkipGrid = False,
    skip_save: options.SkipSave = False,
    ddim_steps: options.DdimSteps = None,
    plms: options.Plms = False,
    dpm_solver: options.DpmSolver = False,
    laion400m: Annotated[
        bool,
        typer.Option(
            "--laion400m", help="Refused: that model is not to be had here.", rich_help_panel=options.SAME
        ),
    ] = False,
    fixed_code: options.FixedCode = False,
    ddim_eta: options.DdimEta = None,
    n_iter: options.NIter = 2,
    height: Annotated[
        int | None,
        typer.Option(
            "--H",
            help="Height in pixels.  [default: 512 for Stable Diffusion, else the model's own]",
            rich_help_panel=options.SAME,
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--W", help="Width in pixels; default as --H.", rich_help_panel=options.SAME),
    ] = None,
    channels: options.Channels = None,
    downscale: options.Downscale = None,
    n_samples: options.NSamples = 3,
    n_rows: options.NRows = 0,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            help="Guidance scale; 1 skips the pass without prompt.  [default: 7.5 for Stable Diffusion, else "
            "the model's own]",
            rich_help_panel=options.SAME,
        ),
    ] = None,
    from_file: options.FromFile = None,
    config: options.Config = None,
    ckpt: options.Ckpt = None,
    seed: options.Seed = 42,
    precision: options.Precision = "autocast",
    student: options.Student = None,
    emphasis: options.Emphasis = "original",
    lora: options.Lora = None,
    loras_dir: options.LorasDir = None,
    embeddings_dir: options.EmbeddingsDir = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw images with the options of CompVis' scripts/txt2img.py, and print the path of each file.

    Every file carries its settings and its own seed. Nothing is checked for offence and no watermark is
    added. What differs from the script, option by option: docs/guides/txt2img.md.
    """
    if laion400m:
        raise UsageError(
            "--laion400m: the checkpoint of LAION-400M and its config are not distributed with fewstep; "
            "leave it out for the bundled model, or give another one with --ckpt PATH (see: fewstep models)"
        )
    from fewstep.cli import compvis, compvis_order

    compvis.run(
        compvis_order.Order(
            task="txt2img", prompt=prompt, from_file=from_file, outdir=outdir, skip_grid=skip_grid,
            skip_save=skip_save, ddim_steps=ddim_steps, plms=plms, dpm_solver=dpm_solver, ddim_eta=ddim_eta,
            fixed_code=fixed_code, n_iter=n_iter, n_samples=n_samples, n_rows=n_rows, width=width,
            height=height, channels=channels, downscale=downscale, scale=scale, config=config, ckpt=ckpt,
            seed=seed, precision=precision, student=student, emphasis=emphasis, lora=tuple(lora or ()),
            loras_dir=tuple(loras_dir or ()), embeddings_dir=tuple(embeddings_dir or ()), quiet=quiet,
        )
    )  # fmt: skip
