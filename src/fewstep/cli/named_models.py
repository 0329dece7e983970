"""``fewstep models add``, ``show``, ``remove`` and ``download``: models by names that the operator gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import output
from fewstep.cli.progress import progress
from fewstep.errors import CheckpointError, NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.engine.names import NamedModel


def add(name: str, path: Path, folders: Sequence[Path], *, replace: bool, as_json: bool) -> None:
    """Give a name to a file or folder, wherever it lies."""
    from fewstep.engine import names, naming

    model = naming.examined(names.check_name(name), path, folders, replace=replace)
    names.add(model, replace=replace)
    _told(model, as_json=as_json)


def show(name: str, folders: Sequence[Path], *, as_json: bool) -> None:
    """Say what a model is: kind, family, prediction type, contract, size, hash."""
    from fewstep.cli import info
    from fewstep.engine import registry

    given = registry.named().get(name)
    if given is not None and given.path.exists():
        path, origin = given.path, registry.NAMED
    else:
        entry = registry.find(name, extra=folders)
        path, origin = entry.folder, entry.origin
    facts: dict[str, Any] = {"name": name, "from": origin, **info.facts(path, with_hash=True)}
    if given is not None and path == given.path:
        if facts.get("hash") not in (None, given.hash):
            facts["changed"] = f"its hash was {given.hash} when it was named"
        if given.origin is not None:
            facts["downloaded"] = {"repository": given.origin.repository, "commit": given.origin.commit}
    if as_json:
        output.result_json(facts, indent=2)
    else:
        info.print_facts(facts)


def remove(name: str, *, delete: bool, as_json: bool) -> None:
    """Forget a name; delete its files only when fewstep downloaded them and ``delete`` is given."""
    from fewstep.engine import names, registry

    models = names.read()
    if name not in models:
        try:
            entry = registry.find(name)
        except NotFoundError:
            entry = None
        if entry is not None:
            raise UsageError(
                f"{name!r} is found in a folder ({entry.folder}) and not by a name that was given: move or "
                "delete it yourself"
            )
    left: list[Path] = []
    if delete and name in models:
        left = names.delete_files(models[name])  # first: what cannot be deleted keeps its name
    model = names.remove(name)
    if as_json:
        files = [str(path) for path in left] if delete else [str(model.path)]
        output.result_json({"name": name, "deleted": delete, "left": files})
        return
    if not delete:
        output.note(f"{name} is forgotten; {model.path} stays where it is")
    elif left:
        output.note(f"{name} is deleted; {model.path} holds what was not downloaded: {left[0].name} ...")
    else:
        output.note(f"{name} is deleted")
    output.result(str(model.path))


def download(
    text: str,
    folders: Sequence[Path],
    *,
    file: str | None,
    given: str | None,
    replace: bool,
    unnamed: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fetch a model from the hub and name it, unless it is found in its folder."""
    from fewstep.engine import names, naming
    from fewstep.models import hub

    reference = hub.read_reference(text)
    own = file.rpartition("/")[2].removesuffix(".safetensors") if file else reference.name
    wanted = None if given is None else names.check_name(given)
    if not unnamed:
        naming.free(wanted or own, folders, replace=replace)

    def announce(files: Sequence[hub.RemoteFile], commit: str) -> None:
        size = sum(one.size for one in files) / 1e6
        output.note(f"{reference.repository} at commit {commit}: {len(files)} files, {size:.1f} MB")

    into = folders[0] if folders else names.downloads() / reference.repository.partition("/")[0]
    with progress("MB", quiet=quiet) as report:
        made = hub.download(
            reference,
            into,
            file=file,
            announce=announce,
            on_bytes=lambda here, total: report(here // 1_000_000, -(-total // 1_000_000)),
        )
    if unnamed:
        if as_json:
            output.result_json({"path": str(made.path), "commit": made.commit})
        else:
            output.result(str(made.path))
        return
    origin = names.Origin(repository=reference.repository, commit=made.commit, files=made.files)
    name = wanted or (made.path.stem if made.path.is_file() else made.path.name)
    try:
        model = naming.examined(name, made.path, folders, replace=True, origin=origin)
    except CheckpointError as error:
        output.note(f"warning: {error}")
        output.note(f"{made.path} is downloaded and has no name, as it is nothing to draw with")
        output.result(str(made.path))
        return
    names.add(model, replace=replace)
    if model.kind == "lora":
        output.note(f"an adapter: --lora {made.path.stem} --loras-dir {made.path.parent}")
    _told(model, as_json=as_json)


def _told(model: NamedModel, *, as_json: bool) -> None:
    if as_json:
        facts = {"name": model.name, "path": str(model.path), "kind": model.kind, "family": model.family}
        output.result_json({**facts, "bytes": model.size, "hash": model.hash})
        return
    family = f", {model.family}" if model.family else ""
    output.note(f"{model.name}: {model.kind}{family}, {model.size / 1e6:.1f} MB, hash {model.hash[:10]}")
    output.result(str(model.path))
