"""``fewstep distill``: runs a distillation recipe, or shows what it says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import output
from fewstep.cli.installed import require
from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import Cancelled, UsageError

if TYPE_CHECKING:
    from fewstep.distillation.products import Landing
    from fewstep.distillation.sections import DistillationRecipe

RUNS = Path("runs")


def command(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe, or a path that ends in .yaml.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip finished stages, go on from the newest checkpoint.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Run folder; default runs/RECIPE.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be repeated."),
    ] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Resume although the recipe or the data changed.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", metavar="PIPELINE", help="Write --student into this folder of the base at the end."
        ),
    ] = None,
    students: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="NAME=STAGE[:STEPS]",
            help="What --into gets of which stage, for all its step counts or for 1,2; may be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe with every default filled in, and stop.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Turn a teacher of many steps into a student of few, and print the folder of the student.

    With --into the base's folder gets students of the stages that --student names, and draws with them from
    then on (generate --steps N); an older one of the same name is replaced. Such a command may be repeated
    with --resume: what is trained is not trained again.

    The first Ctrl-C finishes the step, saves and stops; the second stops at once.
    """
    from fewstep.distillation.sections import DistillationRecipe
    from fewstep.training.recipe import dump_recipe, parse_as, read_recipe, recipe_names

    if schema:
        output.result(json.dumps(DistillationRecipe.model_json_schema(), indent=2))
        return
    if recipe is None:
        known = ", ".join(recipe_names(("distillation",))) or "none here"
        raise UsageError(f"no recipe given; give a path that ends in .yaml, or one of: {known}")
    text, source = read_recipe(recipe, ("distillation",))
    resolved = parse_as(DistillationRecipe, text, settings or [], source=source)
    from fewstep.distillation.checks import check_recipe

    check_recipe(resolved)
    named = _named(students or [], into)
    if dry_run:
        output.result(dump_recipe(resolved).rstrip())
        return
    require("train", "torch", "distillation")
    require("train", "accelerate", "distillation")
    quiet_libraries(offline=False)
    from fewstep.distillation.previews import GridHooks
    from fewstep.distillation.products import check_landing, finish, land
    from fewstep.distillation.run import distill

    output.show_logs(quiet=quiet)
    if into is not None:
        check_landing(resolved, named, into)
    path = Path(recipe)
    folder = run or RUNS / (path.stem if path.suffix in {".yaml", ".yml"} else path)
    done = distill(
        resolved,
        run_folder=folder,
        resume=resume,
        override=override,
        hooks=GridHooks(),
        show_progress=not quiet,
    )
    if done.stopped == "SIGINT":
        raise Cancelled(f"everything is saved; go on with --resume --run {folder}")
    if not done.finished:
        raise Cancelled(f"stopped by {done.stopped}; everything is saved; go on with --resume --run {folder}")
    if all(stage.main_process for stage in done.stages):
        if resolved.teacher.mixture is not None:
            for line in _report(resolved, folder).splitlines():
                output.note(line)
        output.result(str(finish(resolved, folder)))
        if into is not None:
            for landed in land(resolved, folder, named, into):
                output.result(str(landed))


def _named(given: Sequence[str], into: Path | None) -> dict[str, Landing]:
    """Read NAME=STAGE[:STEPS]."""
    from fewstep.distillation.products import Landing

    if (into is None) != (not given):
        missing = "--into" if into is None else "--student"
        raise UsageError(f"{missing} is missing: give --into PIPELINE and --student NAME=STAGE together")
    found: dict[str, Landing] = {}
    for text in given:
        name, _, made = text.partition("=")
        stage, colon, counts = made.partition(":")
        steps = tuple(int(count) if count.isdecimal() else 0 for count in counts.split(",")) if colon else ()
        if not (name and stage and all(steps)):
            raise UsageError(
                f"--student is {text!r}: give NAME=STAGE, such as four=unconditional-4, or "
                "NAME=STAGE:STEPS, such as one=flash:1"
            )
        if name in found:
            raise UsageError(f"--student names {name!r} twice: give each student a name of its own")
        found[name] = Landing(stage, steps)
    return found


def _report(recipe: DistillationRecipe, folder: Path) -> str:
    """Measure a toy's students, write report.json, report.md and points.png, and return the table."""
    from fewstep.checkpoint import atomic
    from fewstep.distillation.origins import make_mixture
    from fewstep.distillation.toys import NUDGE, draw_all
    from fewstep.evaluation import toyplots, toys

    drawings = draw_all(recipe, folder)
    assert recipe.teacher.mixture is not None
    mixture = make_mixture(recipe.teacher.mixture)
    measured = [
        (d.name, d.steps, toys.figures(d.points, d.moved, NUDGE, d.ends, d.data, mixture)) for d in drawings
    ]
    rows = [{"model": name, "steps": steps, **dataclasses.asdict(found)} for name, steps, found in measured]
    table = toys.table(measured)
    atomic.write_text(folder / "report.json", json.dumps(rows, indent=1) + "\n")
    atomic.write_text(folder / "report.md", table + "\n")
    panels = [(f"{d.name}\n{d.steps} steps", d.points, d.ends) for d in drawings]
    toyplots.scatter(panels, folder / "points.png", title="coloured by where the teacher takes the noise")
    return table
