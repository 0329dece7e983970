"""The options that `fewstep.cli.txt2img` and `fewstep.cli.img2img` share, named as in CompVis' scripts.

Underscores stay as they are there; the two names with a hyphen are also taken with an underscore. A value
that is not given and has no default here comes from the model, see `fewstep.cli.compvis`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SAME = "Same as in CompVis' script"
ADDED = "Additional"

EXAMPLE = "a red apple, noto style, on a sky blue background"
"""What is drawn without a prompt: one that the bundled model knows, which does not know the scripts' own."""

Prompt = Annotated[
    str,
    typer.Option("--prompt", metavar="TEXT", help="What to draw.", rich_help_panel=SAME),
]
Outdir = Annotated[
    Path,
    typer.Option(
        "--outdir", metavar="DIR", help="Images go to DIR/samples, the grid to DIR.", rich_help_panel=SAME
    ),
]
SkipGrid = Annotated[bool, typer.Option("--skip_grid", help="Save no grid.", rich_help_panel=SAME)]
SkipSave = Annotated[bool, typer.Option("--skip_save", help="Save no single images.", rich_help_panel=SAME)]
DdimSteps = Annotated[
    int | None,
    typer.Option(
        "--ddim_steps",
        "--steps",
        help="Sampling steps, with every sampler.  [default: 50 for Stable Diffusion, else the model's own]",
        rich_help_panel=SAME,
    ),
]
Plms = Annotated[bool, typer.Option("--plms", help="Sample with PLMS.", rich_help_panel=SAME)]
DpmSolver = Annotated[
    bool,
    typer.Option(
        "--dpm_solver", help="Sample with DPM-Solver++(2M); goes before --plms.", rich_help_panel=SAME
    ),
]
AddedDpmSolver = Annotated[
    bool,
    typer.Option(
        "--dpm_solver", help="Sample with DPM-Solver++(2M); goes before --plms.", rich_help_panel=ADDED
    ),
]
FixedCode = Annotated[
    bool,
    typer.Option(
        "--fixed_code",
        help="Start every iteration and every batch of prompts from the same noise.",
        rich_help_panel=SAME,
    ),
]
DdimEta = Annotated[
    float | None,
    typer.Option(
        "--ddim_eta", help="Noise added by DDIM, 0 to 1; the other samplers need 0.", rich_help_panel=SAME
    ),
]
NIter = Annotated[
    int, typer.Option("--n_iter", help="How often all prompts are drawn.", rich_help_panel=SAME)
]
Channels = Annotated[
    int | None,
    typer.Option("--C", help="Latent channels; only checked against the model.", rich_help_panel=SAME),
]
Downscale = Annotated[
    int | None,
    typer.Option(
        "--f", help="Pixels per latent cell and side; only checked against the model.", rich_help_panel=SAME
    ),
]
NSamples = Annotated[
    int,
    typer.Option(
        "--n_samples",
        help="Images of the prompt in one iteration; with --from-file, lines in one batch.",
        rich_help_panel=SAME,
    ),
]
NRows = Annotated[
    int,
    typer.Option(
        "--n_rows", help="Images in a row of the grid; 0 for as many as --n_samples.", rich_help_panel=SAME
    ),
]
FromFile = Annotated[
    Path | None,
    typer.Option(
        "--from-file",
        "--from_file",
        metavar="FILE",
        help="Prompts, one a line; each is drawn once in an iteration.",
        rich_help_panel=SAME,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="YAML",
        help="A config of CompVis; only checked against the model.",
        rich_help_panel=SAME,
    ),
]
Ckpt = Annotated[
    str | None,
    typer.Option(
        "--ckpt",
        "--model",
        metavar="PATH|NAME",
        help="A .safetensors file, a pipeline folder, a bundle, or a name of fewstep models.  [default: the "
        "bundled model]",
        rich_help_panel=SAME,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Image i of all images is drawn from seed + i.", rich_help_panel=SAME)
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="full|autocast",
        help="autocast: as the model runs best; full: 32-bit floats, said if the model has none.",
        rich_help_panel=SAME,
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        "--student",
        metavar="NAME|none",
        help="Who draws; default a student made for --ddim_steps, if any and if no sampler, eta or scale "
        "is given.",
        rich_help_panel=ADDED,
    ),
]
Emphasis = Annotated[
    str,
    typer.Option(
        "--emphasis",
        metavar="original|no_norm|ignore|none",
        help="How weights in the prompt are applied.",
        rich_help_panel=ADDED,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="NAME[:W[:TEXTW]]", help="An adapter; may be repeated.", rich_help_panel=ADDED
    ),
]
LorasDir = Annotated[
    list[Path] | None,
    typer.Option("--loras-dir", metavar="DIR", help="More adapters; may be repeated.", rich_help_panel=ADDED),
]
EmbeddingsDir = Annotated[
    list[Path] | None,
    typer.Option(
        "--embeddings-dir", metavar="DIR", help="More embeddings; may be repeated.", rich_help_panel=ADDED
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="No progress and no notes on stderr.", rich_help_panel=ADDED)
]
