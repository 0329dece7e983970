"""``fewstep data``: training data made ready on disk, a recipe's or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fewstep.cli import choices, output
from fewstep.cli.installed import require
from fewstep.cli.libraries import quiet_libraries
from fewstep.cli.progress import progress
from fewstep.errors import UsageError

STYLES = "styles"
RECIPES = ("emoji-128", STYLES)
PICTURES = 40
CACHE = Path(".cache")


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            help="emoji-128; styles, the sets of its style adapters; or your own images: a folder, a .csv or "
            ".jsonl table, .tar shards."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default .cache/emoji-128/drawings, .cache/styles."),
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
    selection: Annotated[
        Path | None,
        typer.Option(
            "--selection", metavar="FILE", help="Which drawings are encoded; default emoji-128's data.yaml."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="DIR", help="Own images: folder with text_encoder and tokenizer."),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Own images: pixels that they are brought to.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", help=f"styles: pictures of each style; default {PICTURES}.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="styles: the objects that are never trained, instead.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a set that was built from something else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Prepare training data, and print its folder.

    Fetches the openly licensed emoji packages and renders their drawings; with --autoencoder also writes the
    text encoder and the cache of latents and embeddings beside them. What is there is kept.

    Styles are folders of pictures with captions beside them, made from the same drawings in a way that no
    emoji set has: what fewstep train lora learns a style from. All six, or those of --style.

    Own images are encoded into a cache for the data section of a denoiser recipe (source: cache).
    """
    if Path(recipe).exists():
        _own(Path(recipe), out, autoencoder, text, size, quiet)
        return
    choices.one_of("RECIPE", recipe, RECIPES)
    if recipe == STYLES:
        _styles(
            out or CACHE / (f"{STYLES}-held-out" if held_out else STYLES),
            packages,
            styles,
            n,
            held_out,
            replace,
            quiet,
        )
        return
    if n is not None or held_out:
        raise UsageError(f"{recipe}: --n and --held-out belong to 'fewstep data {STYLES}'; leave them out")
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
            selection=preparation.load_selection(selection),
            on_progress=lambda _, done, total: report(done, total),
        )
    output.note(f"{len(cache)} compositions, {len(cache.captions)} captions, key {cache.key[:10]}")
    output.result(str(beside / "latents"))


def _styles(
    out: Path,
    packages: Path | None,
    names: list[str] | None,
    n: int | None,
    held_out: bool,
    replace: bool,
    quiet: bool,
) -> None:
    """Write the sets of the style adapters."""
    require("train", "resvg_py", "drawing the styles")
    require("train", "scipy", "drawing the styles")
    from fewstep.data import emoji_sets, style_sets

    sets = style_sets.load_sets()
    chosen = tuple(names) if names else tuple(sets.styles)
    emoji_sets.check_known("style", chosen, tuple(sets.styles))
    output.show_logs(quiet=quiet)
    if packages is None:
        wanted = tuple(dict.fromkeys(sets.styles[name].drawings for name in chosen))
        packages = emoji_sets.fetch_packages(CACHE / "npm", wanted)
    with progress("pictures", quiet=quiet) as report:
        folders = style_sets.write_sets(
            out,
            sets,
            packages,
            styles=chosen,
            held_out=held_out,
            n=n if n is not None or held_out else PICTURES,
            replace=replace,
            on_progress=report,
        )
    for folder in folders.values():
        output.result(str(folder))


def _own(
    path: Path, out: Path | None, autoencoder: Path | None, text: Path | None, size: str | None, quiet: bool
) -> None:
    """Encode an image-text set."""
    if out is None or autoencoder is None or text is None or size is None:
        raise UsageError(
            f"{path}: own images need --out, --autoencoder, --text and --size WxH; give all four"
        )
    width, height = choices.size("--size", size)
    require("train", "torch", "encoding the images")
    quiet_libraries()
    from fewstep.data import preparation
    from fewstep.data.image_text import ImageText
    from fewstep.training.datasets import open_dataset
    from fewstep.training.sections import Data

    output.show_logs(quiet=quiet)
    section = Data(source=_source(path), path=str(path), options={"width": width, "height": height})
    samples = open_dataset(section)
    assert isinstance(samples, ImageText)
    with progress("encoded", quiet=quiet) as report:
        cache = preparation.encode(
            out,
            samples,
            autoencoder=autoencoder,
            text_folder=text,
            on_progress=lambda _, done, total: report(done, total),
        )
    bad = len(samples.bad.reasons)
    output.note(f"{len(cache)} images, {len(cache.captions)} captions, {bad} bad ones left out")
    output.result(str(out))


def _source(path: Path) -> Literal["folder", "table", "webdataset", "huggingface"]:
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            return "huggingface"
        return "webdataset" if any(path.glob("*.tar")) else "folder"
    if path.suffix.lower() in {".csv", ".tsv", ".jsonl", ".ndjson"}:
        return "table"
    if path.suffix.lower() == ".tar":
        return "webdataset"
    raise UsageError(
        f"{path}: not a set of images; give a folder, a .csv, .tsv or .jsonl table, or .tar shards"
    )
