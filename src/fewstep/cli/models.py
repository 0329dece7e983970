"""``fewstep models``: what ``--model`` takes on this machine, and fetching more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli import choices, output
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.registry import ModelEntry


ACTIONS = ("list", "download")


def command(
    action: Annotated[str, typer.Argument(metavar="list|download", help="What to do.")] = "list",
    repository: Annotated[
        str | None,
        typer.Argument(metavar="OWNER/NAME[@REVISION]", help="What to download from the Hugging Face hub."),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that can be used here: the names that generate --model takes. Or download one.

    They are looked for in the folders of --models-dir, of the variable FEWSTEP_MODELS, in the package, and in
    the user's data folder. The one that is used when none is named is marked with a star. Students are listed
    with the step counts that they draw in. Weight files that are no models, such as adapters, are listed as
    what they are. A download goes into the user's data folder; nothing else of fewstep downloads a model.
    """
    choices.one_of("ACTION", action, ACTIONS)
    if action == "download":
        _download(repository, models_dir or [], file, as_json=as_json)
        return
    for option, value in (("OWNER/NAME", repository), ("--file", file)):
        if value is not None:
            raise UsageError(f"{option} is {value!r}: it is for fewstep models download")
    found, others = known(models_dir or []), other_files(models_dir or [])
    if as_json:
        output.result_json({"models": found, "others": others}, indent=2)
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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        output.result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not found:
        output.note("no model found: run fewstep doctor")


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


def _download(repository: str | None, folders: list[Path], file: str | None, *, as_json: bool) -> None:
    from fewstep.engine import registry
    from fewstep.models import hub

    if repository is None:
        raise UsageError("fewstep models download: give owner/name or owner/name@revision")
    reference = hub.read_reference(repository)

    def announce(files: Sequence[hub.RemoteFile], commit: str) -> None:
        size = sum(one.size for one in files) / 1e6
        output.note(f"{reference.repository} at commit {commit}: {len(files)} files, {size:.1f} MB")

    into = folders[0] if folders else registry.user_folder()
    path = hub.download(reference, into, file=file, announce=announce)
    if as_json:
        output.result_json({"path": str(path)})
    else:
        output.result(str(path))


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


def student_facts(contract: SamplingContract) -> dict[str, Any]:
    """Return what a person wants to know of a student: its method, and how it draws."""
    return {
        "method": contract.method,
        "steps": list(contract.allowed_steps or (contract.num_inference_steps,)),
        "solver": contract.solver,
    }


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
