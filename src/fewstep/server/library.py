"""The models of a server: which may be taken away, how others come, and merges that are looked at first.

Models belong to nobody: whoever may draw sees all of them. So requests change them only on a server that is
its user's own, or where the operator has said so (`fewstep.server.settings.ServerSettings.managed`), and a
path of the machine is taken on a server of its user alone. A merge that is not kept yet is an exception: it
is kept or discarded by whoever ordered it.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fewstep.checkpoint import atomic
from fewstep.errors import CheckpointError, ConflictError, EngineError, Forbidden, NotFoundError, UsageError
from fewstep.server import workplan
from fewstep.server.workplan import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fewstep.engine.registry import ModelEntry
    from fewstep.server.pool import Pool
    from fewstep.server.schemas.work import WorkBody
    from fewstep.server.settings import ServerSettings

Removable = Literal["files", "downloaded", "name"]
DRAFT_SECONDS = 86_400.0
"""After which a merge that nobody kept is deleted."""
_DRAFT = workplan.drafts("")


def is_draft(settings: ServerSettings, entry: ModelEntry) -> bool:
    """Whether a model is a merge that is neither kept nor discarded yet."""
    return entry.name.startswith(_DRAFT) and entry.folder.parent == workplan.models_folder(settings)


def kinds(settings: ServerSettings) -> dict[str, list[str]]:
    """Kinds of the models by name; of several, the first is drawn with, and only others may be merged."""
    from fewstep.engine import registry

    found: dict[str, list[str]] = {}
    for kind in ("bundle", "pipeline", "checkpoint"):
        for entry in registry.models((*settings.models_dirs, workplan.models_folder(settings))):
            if entry.kind == kind:
                found.setdefault(entry.name, []).append(kind)
    return found


def removable(settings: ServerSettings, entry: ModelEntry) -> Removable | None:
    """What a request may take away of a model: see `fewstep.server.schemas.native.ModelView`."""
    from fewstep.engine import registry

    if entry.folder.parent == workplan.models_folder(settings):
        return "files"
    if entry.origin != registry.NAMED:
        return None
    given = registry.named().get(entry.name)
    return None if given is None else "name" if given.origin is None else "downloaded"


def check_managed(settings: ServerSettings) -> None:
    """Refuse what changes the models of a server whose operator has not allowed it.

    Raises:
        Forbidden: says how it is done.
    """
    if not settings.managed:
        raise Forbidden(
            "models of this server are its operator's: start it with --manage-models, or use fewstep models "
            "on its machine"
        )


def check_name_free(settings: ServerSettings, name: str) -> None:
    """Refuse the name of a model that there is.

    Raises:
        ConflictError: says which.
    """
    from fewstep.engine import registry

    folder = workplan.models_folder(settings)
    taken = (folder / name).exists() or (folder / (name + SUFFIX)).exists()
    if taken or any(entry.name == name for entry in registry.models((*settings.models_dirs, folder))):
        raise ConflictError(f"name: there is a model called {name!r} already; give another")


def add(settings: ServerSettings, pool: Pool, name: str, text: str) -> ModelEntry:
    """Give a name to a file or folder of this machine, as ``fewstep models add`` does. Reads all weights.

    Raises:
        Forbidden: the server is not its user's own.
        UsageError: a name that cannot be or is taken, a relative path, or nothing to draw with.
        NotFoundError, CheckpointError: of the path.
        OutputError: the names cannot be written.
    """
    from fewstep.engine import names, naming, registry

    if not settings.private:
        raise Forbidden(
            "path: this server has keys or is called from elsewhere, and takes none; use fewstep models add "
            "on its machine"
        )
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # no home
        path = path.expanduser()
    if not path.is_absolute() or "\0" in text:
        raise UsageError(f"path {text!r:.100} is relative: give the whole one, from the root of the disk")
    folders = (*settings.models_dirs, workplan.models_folder(settings))
    model = naming.examined(names.check_name(name), path, folders, replace=False)
    if model.kind not in ("bundle", "pipeline", "checkpoint"):
        raise UsageError(
            f"path {path.name!r:.100} is a {model.kind} and no whole model, so nothing is drawn with it "
            "alone; adapters belong into the folder of adapters"
        )
    names.add(model)
    pool.refresh()
    return registry.find(model.name, extra=folders)


def remove(
    settings: ServerSettings, pool: Pool, name: str, *, files: bool, waiting: Iterable[WorkBody]
) -> bool:
    """Forget a model that was named, or delete one that was made or downloaded here.

    Args:
        settings: of the server.
        pool: lets go of it.
        name: of the model.
        files: whether its files are to be deleted; those of one that was named stay unless fewstep
            downloaded them.
        waiting: orders of long work that have not ended.

    Returns:
        Whether files were deleted.

    Raises:
        Forbidden: the operator has not allowed it.
        NotFoundError: there is none of this name.
        ConflictError: it is not this server's to take away, or somebody needs it.
        OutputError: it cannot be deleted.
    """
    from fewstep.engine import names, registry

    check_managed(settings)
    entry = next((one for one in pool.models() if one.name == name), None)
    if entry is None:
        raise NotFoundError(f"model {name!r:.100}: not found; list the models to see which there are")
    how = removable(settings, entry)
    if how is None:
        raise ConflictError(
            f"model {name!r} lies in a folder of the operator or in the package: it is not taken away here"
        )
    if any(name in named(body) for body in waiting):
        raise ConflictError(f"model {name!r} is needed by work that has not ended: wait for it or cancel it")
    if name == pool.default:
        raise ConflictError(
            f"model {name!r} is what this server draws with: choose another with --model first"
        )
    if how == "files" and not files:
        raise ConflictError(
            f"model {name!r} is found in its folder: without its files it cannot be forgotten"
        )
    release(pool, name)
    deleted = how != "name" and files
    if how == "files":
        _delete(entry.folder)
    else:
        if deleted:
            names.delete_files(registry.named()[name])
        names.remove(name)
    pool.refresh()
    return deleted


def named(body: WorkBody) -> set[str]:
    """Names of the models that an order of long work needs."""
    found = {getattr(body, field, None) for field in ("model", "vae")}
    found |= set(getattr(body, "models", ()))
    found |= {one.model for one in getattr(body, "students", ())}
    return {name for name in found if name is not None}


def release(pool: Pool, name: str) -> None:
    """Let go of a model that is about to change or to go."""
    if pool.loaded() == name:
        pool.unload()
    pool.refresh()


def draft(settings: ServerSettings, job_id: str) -> Path:
    """Where the merge of a job is, until it is kept.

    Raises:
        NotFoundError: it was kept or discarded, or is too old.
    """
    folder, name = workplan.models_folder(settings), workplan.drafts(job_id)
    for path in (folder / name, folder / (name + SUFFIX)):
        if path.exists():
            return path
    raise NotFoundError(
        "this job has no merge to keep any more: it was kept, discarded, or is older than a day"
    )


def keep(settings: ServerSettings, pool: Pool, job_id: str, name: str) -> None:
    """Give the merge of a job its name.

    Raises:
        NotFoundError: as `draft`.
        ConflictError: the name is taken; the merge stays.
        OutputError: it cannot be renamed.
    """
    path = draft(settings, job_id)
    check_name_free(settings, name)
    release(pool, path.name.removesuffix(SUFFIX))
    if path.is_dir():
        atomic.rename_folder(path, path.with_name(name))
    else:
        atomic.rename_file(path, path.with_name(name + SUFFIX))
    pool.refresh()


def discard(settings: ServerSettings, pool: Pool, job_id: str) -> None:
    """Delete the merge of a job; raises as `draft`, and OutputError."""
    path = draft(settings, job_id)
    release(pool, path.name.removesuffix(SUFFIX))
    _delete(path)
    pool.refresh()


def sweep_drafts(settings: ServerSettings, *, older_than: float = DRAFT_SECONDS) -> int:
    """Delete merges that nobody kept; return how many."""
    gone = 0
    for path in workplan.models_folder(settings).glob(f"{_DRAFT}*"):
        if time.time() - path.stat().st_mtime > older_than:
            _delete(path)
            gone += 1
    return gone


def publish_download(settings: ServerSettings, work: Path) -> dict[str, str]:
    """Bring what was downloaded into a job's folder to where it is found by name; the job's result.

    Raises:
        CheckpointError: it is nothing to draw with; it is deleted.
        ConflictError: the name was taken meanwhile; it is deleted.
        EngineError: there is nothing.
        OutputError: it cannot be written.
    """
    from fewstep.engine import registry
    from fewstep.models.hub import ORIGIN

    found = [
        path for path in work.iterdir() if not path.name.startswith(".") and not path.name.endswith(ORIGIN)
    ]
    if len(found) != 1:
        raise EngineError("the download ended well and left nothing, a bug of fewstep; see its log")
    path = found[0]
    name = path.name.removesuffix(SUFFIX)
    try:
        kind = registry.identify(path)[0]
        if kind not in ("bundle", "pipeline", "checkpoint", "lora"):
            raise CheckpointError(
                f"{name!r} is a {kind} and neither a whole model nor an adapter: download it with fewstep "
                "models download, and give it to --unet or --vae"
            )
        if kind == "lora":
            place = workplan.loras_folder(settings) / path.name
            if place.exists():
                raise ConflictError(f"name: there is an adapter called {name!r} already; remove it first")
        else:
            place = workplan.models_folder(settings) / path.name
            check_name_free(settings, name)
    except (CheckpointError, ConflictError):
        atomic.remove_folder(work)
        raise
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        atomic.rename_folder(path, place)
    else:
        atomic.rename_file(path, place)
    return {"lora" if kind == "lora" else "model": name}


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        atomic.remove_folder(path)
    else:
        path.unlink(missing_ok=True)
