"""``fewstep data``: the drawing set of a recipe, built on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewstep.cli import output
from fewstep.cli.choices import one_of
from fewstep.cli.installed import require
from fewstep.cli.progress import progress

RECIPES = ("emoji-128",)
CACHE = Path(".cache")


def command(
    recipe: Annotated[str, typer.Argument(help="Name of the recipe folder: emoji-128.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Default .cache/RECIPE/drawings.")
    ] = None,
    packages: Annotated[
        Path | None,
        typer.Option("--packages", metavar="DIR", help="Folder of npm packages; default: fetched."),
    ] = None,
    styles: Annotated[
        list[str] | None, typer.Option("--style", help="Take only this style; may be repeated.")
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(
            "--autoencoder",
            metavar="DIR",
            help="A trained autoencoder (vae folder): encode the drawings and captions of data.yaml as well.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a set that was built from something else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Prepare the training data of a recipe, and print its folder.

    Fetches the openly licensed emoji packages and renders their drawings; with --autoencoder also writes the
    text encoder and the cache of latents and embeddings beside them. What is there is kept.
    """
    one_of("RECIPE", recipe, RECIPES)
    require("train", "resvg_py", "rendering the drawings")
    from fewstep.data import emoji, emoji_sets

    chosen = tuple(styles) if styles else emoji_sets.STYLES
    emoji_sets.check_known("style", chosen, emoji_sets.STYLES)
    output.show_logs(quiet=quiet)
    if packages is None:
        packages = emoji_sets.fetch_packages(CACHE / "npm", chosen)
    with progress("drawings", quiet=quiet) as report:
        drawings = emoji.build_drawings(
            out or CACHE / recipe / "drawings", packages, styles=chosen, replace=replace, on_progress=report
        )
    output.note(f"{len(drawings.items)} drawings, fingerprint {drawings.fingerprint[:10]}")
    if autoencoder is None:
        output.result(str(drawings.folder))
        return
    require("train", "torch", "encoding the drawings")
    from fewstep.data import preparation

    beside = drawings.folder.parent
    preparation.text_encoder(beside / "text", drawings, package_cache=CACHE)
    with progress("encoded", quiet=quiet) as report:
        cache = preparation.latents(
            beside / "latents",
            drawings,
            autoencoder=autoencoder,
            text_folder=beside / "text",
            selection=preparation.load_selection(),
            on_progress=lambda _, done, total: report(done, total),
        )
    output.note(f"{len(cache)} compositions, {len(cache.captions)} captions, key {cache.key[:10]}")
    output.result(str(beside / "latents"))
