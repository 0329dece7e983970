"""``fewstep merge``: checkpoints of one family mixed into one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewstep.cli import output
from fewstep.cli.choices import one_of
from fewstep.cli.convert import PRECISIONS
from fewstep.cli.progress import progress
from fewstep.errors import CheckpointError, NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.checkpoint.half import Precision
    from fewstep.checkpoint.merging.plan import Mode
    from fewstep.checkpoint.merging.writing import Contract
    from fewstep.diffusion.contract import SamplingContract

FEW_STEP = "make-few-step"
MODES = ("weighted-sum", "add-difference", "no-interpolation", "slerp", FEW_STEP)


def command(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="A [B] [C]", help="Safetensors files or pipeline folders of one family."),
    ],
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            metavar="|".join(MODES),
            help="(1-M)A + MB; A + M(B-C); A alone; the turn from A to B; or a fine-tune A made few-step by "
            "a distilled model B of the base C.",
        ),
    ] = "weighted-sum",
    ratio: Annotated[
        float | None,
        typer.Option("--ratio", "-M", help="The multiplier M; default 0.5, and 1 for make-few-step."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            "--blocks",
            metavar="WEIGHTS",
            help="M by block of the U-Net: IN00=0.2,IN04-IN08=0.5,M00=1,OUT00=0,BASE=0.3,VAE=0, or a number "
            "for every block in that order.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="What to write; default A1111's name for the merge, in this folder."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="|".join(PRECISIONS), help="Type of the weights; default as A's."),
    ] = None,
    vae: Annotated[
        Path | None,
        typer.Option("--vae", metavar="MODEL", help="Bake in the autoencoder of this file or folder."),
    ] = None,
    discard: Annotated[
        str | None,
        typer.Option(
            "--discard",
            metavar="REGEX",
            help="Leave out the weights in whose name this is found, such as '^model_ema'.",
        ),
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option(
            "--contract",
            metavar="FILE",
            help="The fewstep.json by which the result is sampled; default A's, or B's for make-few-step.",
        ),
    ] = None,
    copy_metadata: Annotated[
        bool, typer.Option("--copy-metadata", help="Keep all texts in the headers of A, B and C.")
    ] = False,
    metadata: Annotated[
        str | None,
        typer.Option("--metadata", metavar="JSON", help="Further texts for the header, a JSON object."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the output in the place of an old one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress and no remarks.")] = False,
) -> None:
    """Merge checkpoints of one family into one, and print the path of what was made.

    The result has the form of A: one file, or a pipeline folder. Arithmetic is in float32, tensor by tensor,
    in bounded memory; the recipe and the family tree stand in its header, as A1111's web UI writes them. The
    output appears when it is complete.
    """
    one_of("--mode", mode, MODES)
    if dtype is not None:
        one_of("--dtype", dtype, PRECISIONS)
    from fewstep.checkpoint.merging.run import Options, merge
    from fewstep.cli.libraries import quiet_libraries

    quiet_libraries()
    given = ratio if ratio is not None else 1.0 if mode == FEW_STEP else 0.5
    options = Options(
        mode=cast("Mode", mode),
        multiplier=given,
        blocks=blocks,
        dtype=cast("Precision | None", dtype),
        vae=vae,
        discard=discard,
        contract=_contract(contract, mode, models),
        copy_metadata=copy_metadata,
        metadata=_texts(metadata),
        replace=replace,
    )
    with progress("MB", quiet=quiet) as report:
        made, remarks = merge(models, out, options, on_progress=report)
    for remark in remarks if not quiet else []:
        output.note(remark)
    output.result(str(made))


def _contract(path: Path | None, mode: str, models: list[Path]) -> Contract | None:
    """How the result is sampled, when that is not as A is."""
    from fewstep.checkpoint.merging.writing import Contract
    from fewstep.diffusion.contract import SamplingContract

    if path is not None:
        try:
            found = SamplingContract.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFoundError(f"--contract {path}: no such file; check the path") from None
        except (OSError, UnicodeDecodeError, CheckpointError) as error:
            raise CheckpointError(f"--contract {path}: {error}; give a fewstep.json") from error
    elif mode == FEW_STEP and len(models) == 3:  # otherwise the merge says what is missing
        found = _of_distilled(models[1])
    else:
        return None
    # the weights are no longer those that an adapter was made for
    found = dataclasses.replace(found, base_hash=None)
    return Contract(text=found.to_json(), scheduler=found.scheduler_config())


def _of_distilled(path: Path) -> SamplingContract:
    """How a distilled model is sampled, by what it says of itself or by what it is known to be."""
    from fewstep.models.recognise import Unclear, recognise

    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder; check the path")
    found = recognise(path)
    if found is None or isinstance(found, Unclear):
        why = found.why if found is not None else f"{path} has no sampling contract and no published name"
        raise CheckpointError(
            f"B: {why}; say by --contract FILE how it is sampled (guide: merging), or give it its published "
            "name"
        )
    if found.kind == "lora":
        raise CheckpointError(
            f"{path}: an adapter, which makes A few-step when it is drawn with (--lora); as B give a model"
        )
    if found.contract.guidance == "embedded":
        raise UsageError(
            f"{path}: is told the guidance scale by a layer that A has not; give a model that was distilled "
            "with guidance taken in"
        )
    return found.contract


def _texts(text: str | None) -> dict[str, str]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise UsageError('--metadata is no JSON object of texts; give one such as \'{"author": "me"}\'')
    return value
