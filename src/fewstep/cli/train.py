"""``fewstep train``: runs a recipe, or shows what it says; or makes one for a folder of pictures."""

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
ADAPTERS = ("lora", "embedding", "dreambooth")
"""What stands in a recipe's place where a folder of pictures follows; no recipe is called so."""

_ADAPTERS = "With lora, embedding or dreambooth"


def command(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Name of a recipe, a path that ends in .yaml, or lora, embedding or dreambooth.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Pictures with captions, after lora, embedding or dreambooth.", show_default=False
        ),
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
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="Model that is taught; a path too.", rich_help_panel=_ADAPTERS
        ),
    ] = None,
    trigger: Annotated[
        str | None,
        typer.Option(
            "--trigger",
            metavar="WORD",
            help="Word that calls what is learnt; put before captions.",
            rich_help_panel=_ADAPTERS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="What is left; default FOLDER's name.", rich_help_panel=_ADAPTERS
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Train for so long.", rich_help_panel=_ADAPTERS),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Train on so many images.", rich_help_panel=_ADAPTERS),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Of a LoRA; default 16.", rich_help_panel=_ADAPTERS),
    ] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir", metavar="DIR", help="More models; may be repeated.", rich_help_panel=_ADAPTERS
        ),
    ] = None,
) -> None:
    """Train a model from a recipe, and print the path of the model it leaves, or of its newest checkpoint.

    With lora, embedding or dreambooth and a folder of 5 to 50 pictures, teach a model what is on them. A
    picture's caption stands in a .txt file of its name.

    The first Ctrl-C finishes the step, saves and stops; the second stops at once.
    """
    from fewstep.training.recipe import dump_recipe, load_recipe, recipe_names, recipe_schema

    if schema:
        output.result(json.dumps(recipe_schema(), indent=2))
        return
    if recipe is None:
        known = ", ".join(recipe_names()) or "none here"
        raise UsageError(f"no recipe given; give a path that ends in .yaml, or one of: {known}")
    if recipe in ADAPTERS:
        if folder is None:
            raise UsageError(f"train {recipe}: no folder given; give one with 5 to 50 pictures")
        require("train", "torch", "training")
        require("train", "accelerate", "training")
        from fewstep.cli import train_lora

        output.show_logs(quiet=quiet)
        asked = train_lora.Asked(
            kind=recipe, folder=folder, model=model, trigger=trigger, out=out, minutes=minutes, images=images,
            rank=rank, models_dir=tuple(models_dir or ()), run=run, settings=tuple(settings or ()),
        )  # fmt: skip
        train_lora.run(asked, resume=resume, override=override, dry_run=dry_run, quiet=quiet)
        return
    _refuse_adapter_options(recipe, folder, model, trigger, out, minutes, images, rank, models_dir or None)
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


def _refuse_adapter_options(recipe: str, *given: object) -> None:
    if any(value is not None for value in given):
        raise UsageError(
            f"train {recipe}: a recipe says by itself what is trained on what; a folder, --model, --trigger, "
            "--out, --minutes, --images, --rank and --models-dir are for: fewstep train lora FOLDER"
        )


def _run_folder(recipe: str) -> Path:
    """Return runs/NAME; of a path only the file name counts, so that runs stay in one place."""
    path = Path(recipe)
    return RUNS / (path.stem if path.suffix in {".yaml", ".yml"} else path)
