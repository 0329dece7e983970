"""``fewstep models``: what ``--model`` takes on this machine, names for what lies elsewhere, downloads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import choices, output
from fewstep.cli.info_folders import student_facts
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.registry import ModelEntry


ACTIONS = ("list", "add", "show", "remove", "download")
_OPTIONS = {
    "list": frozenset({"--models-dir"}),
    "add": frozenset({"--models-dir", "NAME", "PATH", "--replace"}),
    "show": frozenset({"--models-dir", "NAME"}),
    "remove": frozenset({"NAME", "--delete"}),
    "download": frozenset({"--models-dir", "NAME", "--file", "--name", "--unnamed", "--replace", "--quiet"}),
}
"""What each action takes."""


def command(
    action: Annotated[
        str, typer.Argument(metavar="|".join(ACTIONS), help="What to do; list without any.")
    ] = "list",
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|OWNER/NAME[@REVISION]",
            help="Name of a model; of a download the repository on the Hugging Face hub.",
        ),
    ] = None,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="File or folder that add gives the name to.")
    ] = None,
    models_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--models-dir",
            metavar="DIR",
            help="Look for models here too; may be repeated. A download goes to the first.",
        ),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="Download only this file of the repository.")
    ] = None,
    given: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of what is downloaded; default its own."),
    ] = None,
    unnamed: Annotated[
        bool,
        typer.Option("--unnamed", help="Give it no name: it is found in the folder of --models-dir."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give the name to this model, though another has it.")
    ] = False,
    delete: Annotated[
        bool,
        typer.Option("--delete", help="Delete the files too, if fewstep downloaded them."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List, name, show, forget and download models: the names are what generate --model takes.

    Models are looked for in the folders of --models-dir, of the variable FEWSTEP_MODELS, in the package, in
    the user's data folder, and under the names that add and download gave. The one that is used when none is
    named is marked with a star. Students are listed with the step counts that they draw in. Weight files that
    are no models, such as adapters, are listed as what they are.

    add NAME PATH gives a name to a file or folder, wherever it lies; the name is a key and no path. show NAME
    says what a model is. remove NAME forgets a name that was given; files are deleted only with --delete, and
    only those that fewstep downloaded. download OWNER/NAME fetches a model from the Hugging Face hub; nothing
    else of fewstep downloads one.
    """
    choices.one_of("ACTION", action, ACTIONS)
    for option, value in (
        ("NAME", name),
        ("PATH", path),
        ("--models-dir", models_dir),
        ("--file", file),
        ("--name", given),
        ("--unnamed", unnamed),
        ("--replace", replace),
        ("--delete", delete),
        ("--quiet", quiet),
    ):
        if value and option not in _OPTIONS[action]:
            takers = " and ".join(other for other in ACTIONS if option in _OPTIONS[other])
            raise UsageError(f"{option} is {str(value)!r}: it is for fewstep models {takers}")
    folders = models_dir or []
    if action == "list":
        _list(folders, as_json=as_json)
        return
    from fewstep.cli import named_models

    if name is None:
        example = {"add": "NAME PATH", "download": "owner/name or owner/name@revision"}.get(action, "NAME")
        raise UsageError(f"fewstep models {action}: give {example}")
    match action:
        case "add":
            if path is None:
                raise UsageError(f"fewstep models add {name}: give the PATH of its file or folder too")
            named_models.add(name, path, folders, replace=replace, as_json=as_json)
        case "show":
            named_models.show(name, folders, as_json=as_json)
        case "remove":
            named_models.remove(name, delete=delete, as_json=as_json)
        case "download":
            if unnamed and (given is not None or replace or not folders):
                raise UsageError("--unnamed: give --models-dir with it, and neither --name nor --replace")
            named_models.download(
                name, folders, file=file, given=given, replace=replace, unnamed=unnamed, quiet=quiet,
                as_json=as_json,
            )  # fmt: skip


def _list(folders: list[Path], *, as_json: bool) -> None:
    output.show_logs(quiet=True)  # a broken list of names is said there
    found, others, gone = known(folders), other_files(folders), missing()
    if as_json:
        output.result_json({"models": found, "others": others, "missing": gone}, indent=2)
        return
    rows = [("", "name", "kind", "MB", "students", "from", "folder")]
    rows += [
        (
            "*" if model["default"] else "",
            model["name"],
            model["kind"],
            f"{model['bytes'] / 1e6:.1f}",
            students_line(model),
            model["origin"],
            model["folder"],
        )
        for model in found
    ]
    rows += [
        ("-", one["name"], one["kind"], f"{one['bytes'] / 1e6:.1f}", "", one["origin"], one["path"])
        for one in others
    ]
    rows += [("?", one["name"], one["kind"], "", "", "not there", one["path"]) for one in gone]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        output.result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        output.note("no model found: run fewstep doctor")


def missing() -> list[dict[str, Any]]:
    """Return every name whose file or folder is no longer there, as JSON-able facts."""
    from fewstep.engine import registry

    return [
        {"name": model.name, "kind": model.kind, "path": str(model.path)}
        for model in registry.named().values()
        if not model.path.exists()
    ]


def other_files(folders: list[Path]) -> list[dict[str, Any]]:
    """Return every weight file among the models that is none, as JSON-able facts."""
    from fewstep.engine import registry

    return [
        {
            "name": one.name,
            "kind": one.what,
            "bytes": one.size,
            "origin": one.origin,
            "path": str(one.path),
        }
        for one in registry.others(folders)
    ]


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
            "students": _students(entry),
            "default": entry == default,
        }
        for entry in registry.models(folders)
    ]


def students_line(model: dict[str, Any]) -> str:
    """Return the students of one of `known` and their step counts as text, empty without any."""
    return "; ".join(
        f"{student['name']} {','.join(map(str, student['steps']))}" for student in model["students"]
    )


def _students(entry: ModelEntry) -> list[dict[str, Any]]:
    """The students of a model; none of one that cannot be read, of which doctor and info say why."""
    from fewstep.errors import FewstepError

    try:
        if entry.kind == "bundle":
            from fewstep.checkpoint.bundle import open_bundle
            from fewstep.engine.backends.openvino import model_info

            contracts = {s.name: s.contract for s in model_info(open_bundle(entry.folder)).students}
        elif entry.kind == "checkpoint":
            return []
        else:
            from fewstep.models.load import student_contracts

            contracts = student_contracts(entry.folder)
    except (FewstepError, OSError):
        return []
    return [{"name": name, **student_facts(contract)} for name, contract in contracts.items()]
