"""``fewstep convert``: weight files become pipeline folders, folders files, pickles safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fewstep.cli import output
from fewstep.cli.choices import one_of
from fewstep.cli.progress import progress

if TYPE_CHECKING:
    from fewstep.checkpoint.adapters.writing import WriteStyle
    from fewstep.checkpoint.half import Precision
    from fewstep.checkpoint.part_configs import Family

PRECISIONS = ("fp32", "fp16", "bf16")
PREDICTIONS = ("epsilon", "v_prediction")
LORA_NAMES = ("diffusers", "kohya", "kohya-compvis")


def command(
    source: Annotated[Path, typer.Argument(help="Safetensors file, pickle checkpoint or pipeline folder.")],
    out: Annotated[
        Path, typer.Option("--out", help="What to write: a file if it ends in .safetensors, else a folder.")
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="|".join(PRECISIONS), help="Type of the weights; default as they are."
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="File or folder of the same family that gives what SOURCE has not, as for a bare U-Net.",
        ),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option("--vae", metavar="FILE", help="Take the autoencoder from this file.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="FOLDER",
            help="Pipeline folder whose tokenizers to copy, or one with vocab.json and merges.txt; default "
            "CLIP's own, which the package has.",
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            help="sd1, sd2, sdxl, sd3, pixart-alpha or pixart-sigma; needed for an autoencoder alone.",
        ),
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            "--prediction-type",
            metavar="|".join(PREDICTIONS),
            help="What the denoiser predicts, where the file does not say; needed for most files of sd2.",
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of a full training checkpoint.")
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read a pickle (.ckpt, .pt, .pth, .bin) in a restricted process; --out is a .safetensors.",
        ),
    ] = False,
    lora_names: Annotated[
        str | None,
        typer.Option(
            "--lora-names",
            metavar="|".join(LORA_NAMES),
            help="Write a LoRA under these names: diffusers is peft's too, kohya what web UIs read, "
            "kohya-compvis the same with the block names that trainers of SDXL use.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the output in the place of an old one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no remarks.")] = False,
) -> None:
    """Convert weight files and pipeline folders, and print the path of what was made.

    A single file of Stable Diffusion 1, 2, XL or 3 becomes a folder in the diffusers layout, such a folder
    one file, a safetensors file another type, a LoRA one of other names, and a pickle a safetensors file. How
    a model is sampled (fewstep's contract) goes with it. The output appears when it is complete.
    """
    if dtype is not None:
        one_of("--dtype", dtype, PRECISIONS)
    if prediction_type is not None:
        one_of("--prediction-type", prediction_type, PREDICTIONS)
    from fewstep.checkpoint.conversion import Options, convert
    from fewstep.checkpoint.part_configs import FAMILIES
    from fewstep.cli.libraries import quiet_libraries

    if family is not None:
        one_of("--family", family, FAMILIES)
    if lora_names is not None:
        one_of("--lora-names", lora_names, LORA_NAMES)
    quiet_libraries()
    options = Options(
        dtype=cast("Precision | None", dtype),
        family=cast("Family | None", family),
        prediction_type=prediction_type,
        base=base,
        vae=vae,
        tokenizer=tokenizer,
        vocabulary=_clip_vocabulary,
        ema=ema,
        allow_pickle=allow_pickle,
        names=cast("WriteStyle | None", lora_names),
        scheduler=_scheduler,
        replace=replace,
    )
    with progress("tensors", quiet=quiet) as report:
        remarks = convert(source, out, options, on_tensor=report)
    for remark in remarks if not quiet else []:
        output.note(remark)
    output.result(str(out))


def _clip_vocabulary() -> dict[str, bytes]:
    from fewstep.models.clip_tokenizer import files

    return files()


def _scheduler(contract: str) -> dict[str, Any] | None:
    """What plain diffusers samples with as a contract says; None where it has nothing for it."""
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.diffusion.scheduler_config import scheduler_config
    from fewstep.errors import CheckpointError, UsageError

    try:
        told = SamplingContract.from_json(contract)
    except RecursionError:
        raise CheckpointError("it is nested endlessly") from None
    try:
        return scheduler_config(told)
    except UsageError:
        return None
