"""``fewstep export``: a pipeline folder becomes a runtime bundle, and a bundle gets students."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fewstep.cli import output
from fewstep.cli.choices import one_of
from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.models.export_parts import Precision

PRECISIONS = ("int8", "fp16")


def command(
    pipeline: Annotated[
        Path | None, typer.Argument(help="Pipeline folder in the diffusers layout.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="BUNDLE", help="Folder of the new bundle.")
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="NAME=FOLDER",
            help="A student that a distillation left in FOLDER; may be repeated.",
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="BUNDLE", help="Add --student to this bundle; in place of PIPELINE."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="|".join(PRECISIONS),
            help="int8 computes in 8 bits where the error stays small, fp16 in float32; default int8, or "
            "what --into has.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; default the pipeline folder's.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts that int8 is calibrated on, one a line."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Put the bundle in the place of an old one; with --into, the student."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Turn a pipeline folder into a runtime bundle that needs no PyTorch, and print its path.

    The bundle appears when it is complete: an interrupted export leaves nothing under its name. With --into
    a bundle gets one more student, or stays as it was.
    """
    if precision is not None:
        one_of("--precision", precision, PRECISIONS)
    students = _students(student or [])
    _check_target(pipeline, out, into, name, students)
    calibration = _lines(prompts) if prompts is not None else None
    quiet_libraries()
    from fewstep.models import export as exporter

    say = None if quiet else lambda stage: output.note(f"{stage} ...")
    chosen = cast("Precision | None", precision)
    if into is not None:
        done = exporter.add_students(
            into,
            students,
            precision=chosen,
            calibration_prompts=calibration,
            replace=replace,
            on_stage=say,
        )
    else:
        assert pipeline is not None
        assert out is not None
        done = exporter.export(
            pipeline,
            out,
            precision=chosen or "int8",
            name=name,
            calibration_prompts=calibration,
            students=students,
            replace=replace,
            on_stage=say,
        )
    if not quiet:
        for part, report in done.parts.items():
            output.note(
                f"{part}: {report.precision}, {report.size / 1e6:.1f} MB, error {report.relative_error:.4f}"
            )
        output.note(f"{done.size / 1e6:.1f} MB in all, model hash {done.hash[:10]}")
    output.result(str(done.folder))


def _students(given: Sequence[str]) -> dict[str, Path]:
    """Read NAME=FOLDER; what a name may be, and whether the folder is there, the exporter says."""
    found: dict[str, Path] = {}
    for text in given:
        name, sign, folder = text.partition("=")
        if not (sign and name and folder):
            raise UsageError(f"--student is {text!r}: give NAME=FOLDER, such as four=runs/flash/student")
        if name in found:
            raise UsageError(f"--student names {name!r} twice: give each student a name of its own")
        found[name] = Path(folder)
    return found


def _check_target(
    pipeline: Path | None, out: Path | None, into: Path | None, name: str | None, students: dict[str, Path]
) -> None:
    """Refuse all but PIPELINE with --out, and --into with --student."""
    if into is None:
        missing = "PIPELINE" if pipeline is None else "--out" if out is None else None
        if missing is not None:
            raise UsageError(f"{missing} is missing: give PIPELINE and --out, or --into and --student")
        return
    given = {"PIPELINE": pipeline, "--out": out, "--name": name}
    for label, value in given.items():
        if value is not None:
            raise UsageError(f"--into adds to a bundle that is there already: leave {label} out")
    if not students:
        raise UsageError("--into is given without --student: give --student NAME=FOLDER")


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
