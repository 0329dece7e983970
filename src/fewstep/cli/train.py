"""``fewstep train``: runs a recipe, or shows what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import output
from fewstep.cli.installed import require
from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import Cancelled, UsageError

RUNS = Path("runs")


def command(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe, or a path that ends in .yaml.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest complete checkpoint of the run folder.")
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
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a damaged checkpoint instead of taking the one before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe with every default filled in, and stop.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train a model from a recipe, and print the path of the model it leaves, or of its newest checkpoint.

    The first Ctrl-C finishes the step, saves and stops; the second stops at once.
    """
    from fewstep.training.recipe import dump_recipe, load_recipe, recipe_names, recipe_schema

    if schema:
        output.result(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        known = ", ".join(recipe_names()) or "none here"
        raise UsageError(f"no recipe given; give a path that ends in .yaml, or one of: {known}")
    resolved = load_recipe(recipe, settings or [])
    if dry_run:
        output.result(dump_recipe(resolved).rstrip())
        return
    require("train", "torch", "training")
    require("train", "accelerate", "training")
    quiet_libraries(offline=False)
    from fewstep.training.previews import sampler_for
    from fewstep.training.products import finish
    from fewstep.training.trainer import train

    output.show_logs(quiet=quiet)
    done = train(
        resolved,
        run_folder=run or _run_folder(recipe),
        resume=resume,
        override=override,
        strict=strict,
        sampler=sampler_for(resolved),
        show_progress=not quiet,
    )
    if not done.main_process:
        return
    output.note(f"{done.images_seen} images in {done.steps} steps, {done.images_per_second:.1f} images/s")
    output.result(str(finish(done.run_folder) or done.checkpoint))
    if done.stopped == "SIGINT":
        raise Cancelled(f"everything is saved; go on with --resume --run {done.run_folder}")


def _run_folder(recipe: str) -> Path:
    """Return runs/NAME; of a path only the file name counts, so that runs stay in one place."""
    path = Path(recipe)
    return RUNS / (path.stem if path.suffix in {".yaml", ".yml"} else path)
