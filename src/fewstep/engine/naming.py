"""What is looked into before a model is given a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewstep.checkpoint import bundle, safetensors
from fewstep.engine import names, registry
from fewstep.engine.names import NamedModel, Origin
from fewstep.errors import UsageError


def examined(
    name: str, path: Path, folders: Sequence[Path], *, replace: bool, origin: Origin | None = None
) -> NamedModel:
    """A model with its kind, family and hash, for `fewstep.engine.names.add`. Reads all of its weights.

    Args:
        name: that it is to have, checked already.
        path: its file or folder.
        folders: in which models are found by names of their own.
        replace: whether a name that was given before may be given anew.
        origin: of a download, whose name was found free before.

    Raises:
        UsageError: a model has the name.
        NotFoundError, CheckpointError: as `fewstep.engine.registry.identify`.
    """
    kind, family, size = registry.identify(path)
    if origin is None:
        free(name, folders, replace=replace, path=path)
    if kind == "bundle":
        digest = bundle.open_bundle(path).hash
    elif path.is_dir():
        digest = safetensors.folder_hash(path)
    else:
        digest = safetensors.sha256_file(path)
    return names.NamedModel(
        name=name, path=path.absolute(), kind=kind, family=family, hash=digest, size=size, origin=origin
    )


def free(name: str, folders: Sequence[Path], *, replace: bool, path: Path | None = None) -> None:
    """Refuse a name that another model has.

    A name that would hide a model that is found in a folder is refused in any case.

    Args:
        name: that is wanted.
        folders: in which models are found by names of their own.
        replace: whether a name that was given before may be given anew.
        path: of the model that is to have it: what is found there may have it already.

    Raises:
        UsageError: says who has it.
    """
    for entry in registry.models(folders):
        if entry.name != name or (entry.origin == registry.NAMED and replace):
            continue
        if path is not None and entry.folder.absolute() == path.absolute():
            continue
        raise UsageError(
            f"{name!r} is the name of {entry.folder} already ({entry.origin}); give another name"
        )
