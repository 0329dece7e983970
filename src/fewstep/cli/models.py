"""``fewstep models``: what ``--model`` takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import output


def command(
    models_dir: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", metavar="DIR", help="Look for models here too; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that can be used here: the names that generate --model takes.

    They are looked for in the folders of --models-dir, of the variable FEWSTEP_MODELS, in the package, and in
    the user's data folder. The one that is used when none is named is marked with a star.
    """
    found = known(models_dir or [])
    if as_json:
        output.result_json({"models": found}, indent=2)
        return
    rows = [("", "name", "kind", "MB", "from", "folder")]
    rows += [
        (
            "*" if model["default"] else "",
            model["name"],
            model["kind"],
            f"{model['bytes'] / 1e6:.1f}",
            model["origin"],
            model["folder"],
        )
        for model in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        output.result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        output.note("no model found: run fewstep doctor")


def known(folders: list[Path]) -> list[dict[str, Any]]:
    """Return every model in the order of search, as JSON-able facts."""
    from fewstep.engine import registry
    from fewstep.errors import NotFoundError

    try:
        default = registry.find(extra=folders)
    except NotFoundError:
        default = None
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "bytes": entry.size,
            "origin": entry.origin,
            "folder": str(entry.folder),
            "default": entry == default,
        }
        for entry in registry.models(folders)
    ]
