"""``fewstep img2img``: the command line of CompVis' ``scripts/img2img.py``, drawn by this engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import compvis_options as options


def command(
    init_img: Annotated[
        Path,
        typer.Option(
            "--init-img",
            "--init_img",
            metavar="FILE",
            help="The image to start from; it is shrunk to a size that the model can draw.",
            rich_help_panel=options.SAME,
        ),
    ],
    prompt: options.Prompt = options.EXAMPLE,
    outdir: options.Outdir = Path("outputs/img2img-samples"),
    skip_grid: options.SkipGrid = False,
    skip_save: options.SkipSave = False,
    ddim_steps: options.DdimSteps = None,
    plms: Annotated[
        bool,
        typer.Option(
            "--plms",
            help="Sample with PLMS; works here, where the script raises an error.",
            rich_help_panel=options.SAME,
        ),
    ] = False,
    fixed_code: options.FixedCode = False,
    ddim_eta: options.DdimEta = None,
    n_iter: options.NIter = 1,
    channels: options.Channels = None,
    downscale: options.Downscale = None,
    n_samples: options.NSamples = 2,
    n_rows: options.NRows = 0,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            help="Guidance scale; 1 skips the pass without prompt.  [default: 5 for Stable Diffusion, else "
            "the model's own]",
            rich_help_panel=options.SAME,
        ),
    ] = None,
    strength: Annotated[
        float,
        typer.Option(
            "--strength",
            help="How much of the image may change, 0 to 1; at least one step runs.",
            rich_help_panel=options.SAME,
        ),
    ] = 0.75,
    from_file: options.FromFile = None,
    config: options.Config = None,
    ckpt: options.Ckpt = None,
    seed: options.Seed = 42,
    precision: options.Precision = "autocast",
    dpm_solver: options.AddedDpmSolver = False,
    student: options.Student = None,
    emphasis: options.Emphasis = "original",
    lora: options.Lora = None,
    loras_dir: options.LorasDir = None,
    embeddings_dir: options.EmbeddingsDir = None,
    quiet: options.Quiet = False,
) -> None:
    """Change an image with the options of CompVis' scripts/img2img.py, and print the path of each file.

    Every file carries its settings and its own seed. Nothing is checked for offence and no watermark is
    added. What differs from the script, option by option: docs/guides/txt2img.md.
    """
    from fewstep.cli import compvis, compvis_order

    compvis.run(
        compvis_order.Order(
            task="img2img", prompt=prompt, from_file=from_file, outdir=outdir, skip_grid=skip_grid,
            skip_save=skip_save, ddim_steps=ddim_steps, plms=plms, dpm_solver=dpm_solver, ddim_eta=ddim_eta,
            fixed_code=fixed_code, n_iter=n_iter, n_samples=n_samples, n_rows=n_rows, channels=channels,
            downscale=downscale, scale=scale, init_img=init_img, strength=strength, config=config, ckpt=ckpt,
            seed=seed, precision=precision, student=student, emphasis=emphasis, lora=tuple(lora or ()),
            loras_dir=tuple(loras_dir or ()), embeddings_dir=tuple(embeddings_dir or ()), quiet=quiet,
        )
    )  # fmt: skip
