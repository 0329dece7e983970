"""``fewstep export``: a pipeline folder becomes a runtime bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from fewstep.cli import output
from fewstep.cli.choices import one_of
from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import NotFoundError, UsageError

PRECISIONS = ("int8", "fp16")


def command(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline folder in the diffusers layout.")],
    out: Annotated[Path, typer.Option("--out", metavar="BUNDLE", help="Folder of the new bundle.")],
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="|".join(PRECISIONS),
            help="int8 computes in 8 bits where the error stays small, fp16 in float32.",
        ),
    ] = "int8",
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; default the pipeline folder's.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts that int8 is calibrated on, one a line."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the bundle in the place of an old one.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Turn a pipeline folder into a runtime bundle that needs no PyTorch, and print its path.

    The bundle appears when it is complete: an interrupted export leaves nothing under its name.
    """
    one_of("--precision", precision, PRECISIONS)
    calibration = _lines(prompts) if prompts is not None else None
    quiet_libraries()
    from fewstep.models.export import Precision, export

    done = export(
        pipeline,
        out,
        precision=cast(Precision, precision),
        name=name,
        calibration_prompts=calibration,
        replace=replace,
        on_stage=None if quiet else lambda stage: output.note(f"{stage} ..."),
    )
    if not quiet:
        for part, report in done.parts.items():
            output.note(
                f"{part}: {report.precision}, {report.size / 1e6:.1f} MB, error {report.relative_error:.4f}"
            )
        output.note(f"{done.size / 1e6:.1f} MB in all, model hash {done.hash[:10]}")
    output.result(str(done.folder))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; check --prompts") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}); give one prompt a line") from None
    found = [line for line in lines if line]
    if not found:
        raise UsageError(f"{path}: no prompt in it; give one prompt a line")
    return found
