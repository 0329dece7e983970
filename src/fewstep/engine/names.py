"""Names that the operator gave to models elsewhere: one file in the user's data folder.

``models.json`` maps a name to a file or folder, with its kind, family and hash when it was named. A name is a
key of that map and never becomes part of a path (ADR 12). Writers take a lock and replace the file as a
whole, so two commands at once lose nothing and a reader sees the old map or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.checkpoint import atomic, locking
from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

MAX_NAME = 100
_VERSION = 1
_MAX_BYTES = 10_000_000
_LOCK_SECONDS = 30.0
_FORBIDDEN = frozenset("/\\:")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where fewstep downloaded a model from, and which files it wrote for it."""

    repository: str
    commit: str
    files: tuple[str, ...]
    """Below the model's folder, or beside its file; ``/`` between folders."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    """A file or folder with a name.

    Attributes:
        path: absolute.
        kind: ``bundle``, ``pipeline``, or what `fewstep.checkpoint.detect` calls a file: ``checkpoint``,
            ``denoiser``, ``vae``, ``lora`` ...
        family: ``sd1``, ``sdxl`` ...; None where the content does not tell.
        hash: SHA-256 of the weights when it was named, see design "Hashes".
        size: bytes of all files then.
        origin: of a download.
    """

    name: str
    path: Path
    kind: str
    family: str | None = None
    hash: str
    size: int
    origin: Origin | None = field(default=None)


def check_name(text: str) -> str:
    """The name in Unicode's composed form, when it can be one.

    Raises:
        UsageError: empty, too long, with a slash, backslash, colon or control character, with ``..``, with
            spaces around it, or with a dot or hyphen first.
    """
    name = unicodedata.normalize("NFC", text)
    reason = None
    if not name or len(name) > MAX_NAME:
        reason = f"it has {len(name)} characters, 1 to {MAX_NAME} are allowed"
    elif set(name) & _FORBIDDEN or ".." in name:
        reason = "a name is no path: it has no slash, backslash, colon and no '..'"
    elif not name.isprintable():
        reason = "it has characters that do not print"
    elif name != name.strip() or name[0] in ".-":
        reason = "it begins with a dot, a hyphen or a space, or ends with a space"
    if reason is not None:
        raise UsageError(f"{shown(text)!r} is no name of a model ({reason}); give one such as my-model")
    return name


def file() -> Path:
    """Where the names are kept."""
    import platformdirs

    return Path(platformdirs.user_data_dir("fewstep", appauthor=False)) / "models.json"


def downloads() -> Path:
    """Where models are downloaded to; it is not searched for models, their names lead there."""
    return file().parent / "downloads"


def read() -> dict[str, NamedModel]:
    """All names; none where there is no file.

    Raises:
        CheckpointError: the file does not follow its form; the message says where.
    """
    path = file()
    try:
        with path.open("rb") as handle:
            data = handle.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        content = json.loads(data)
        if content["version"] != _VERSION:
            raise ValueError(f"version {content['version']!r}")
        return {name: _model(name, entry) for name, entry in content["models"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 200)
        raise CheckpointError(
            f"{path}: no list of models ({reason}); correct it, or remove it and name the models again"
        ) from None


def add(model: NamedModel, *, replace: bool = False) -> None:
    """Give a model its name.

    Raises:
        UsageError: the name is none, or taken and not ``replace``.
        CheckpointError: as `read`.
        OutputError: the list cannot be written, or somebody holds its lock.
    """
    check_name(model.name)
    with _changed() as models:
        old = models.get(model.name)
        if old is not None and not replace and old.path != model.path:
            raise UsageError(
                f"{model.name!r} is the name of {old.path} already; give another name, or --replace"
            )
        models[model.name] = model


def remove(name: str) -> NamedModel:
    """Forget a name; its files stay.

    Raises:
        NotFoundError: there is no such name; the message lists those that there are.
        CheckpointError, OutputError: as `add`.
    """
    with _changed() as models:
        if name not in models:
            there = ", ".join(models) or "none"
            raise NotFoundError(f"model {shown(name)!r}: no name that was given here; there are: {there}")
        return models.pop(name)


def delete_files(model: NamedModel) -> list[Path]:
    """Delete the files that fewstep downloaded for a model, and the folders that are empty then.

    Files that lie there besides stay, and so does all that a link leads to.

    Returns:
        What is left in the model's folder, at most 20 paths.

    Raises:
        UsageError: the model was not downloaded by fewstep.
        OutputError: a file cannot be deleted.
    """
    if model.origin is None:
        raise UsageError(
            f"{model.path} was not downloaded by fewstep and is not deleted; forget the name without "
            "--delete, and delete the files yourself"
        )
    whole = model.path.is_dir() and not model.path.is_symlink()
    root = model.path if whole else model.path.parent
    try:
        for path in (root / PurePosixPath(name) for name in model.origin.files):
            inside = path.parent.resolve().is_relative_to(root.resolve())
            if inside and (path.is_file() or path.is_symlink()):
                path.unlink()
        if not whole:
            return []
        for folder in sorted((p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
        others = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
        left = list(itertools.islice(others, 20))
        if not left:
            root.rmdir()
        return left
    except OSError as error:
        raise OutputError(
            f"{model.path}: cannot be deleted ({error.strerror}); delete it yourself"
        ) from error


@contextlib.contextmanager
def _changed() -> Iterator[dict[str, NamedModel]]:
    """The names under the lock; what the block leaves in the map is written."""
    path = file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = locking.acquire(path.with_suffix(".lock"), timeout=_LOCK_SECONDS)
    except TimeoutError:
        raise OutputError(f"{path}: another fewstep holds its lock; wait for it and try again") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be locked ({error}); make the folder writable") from error
    try:
        models = read()
        yield models
        content = {"version": _VERSION, "models": {name: _plain(models[name]) for name in sorted(models)}}
        atomic.write_text(path, json.dumps(content, indent=2) + "\n")
    finally:
        lock.release()


def _plain(model: NamedModel) -> dict[str, Any]:
    values = dataclasses.asdict(model)
    del values["name"]
    return {**values, "path": str(model.path)}


def _model(name: str, entry: Mapping[str, Any]) -> NamedModel:
    if check_name(name) != name:
        raise ValueError(f"{name!r} is not in composed form")
    path, family, origin = Path(entry["path"]), entry.get("family"), entry.get("origin")
    texts = [entry["kind"], entry["hash"], *([family] if family is not None else [])]
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= 200 for text in texts):
        raise ValueError(f"{name!r} has a kind, family or hash that is no text")
    if not path.is_absolute() or not _HASH.fullmatch(entry["hash"]) or type(entry["size"]) is not int:
        raise ValueError(f"{name!r} has no absolute path, SHA-256 and size")
    if origin is not None:
        origin = Origin(
            repository=_text(origin["repository"]),
            commit=_text(origin["commit"]),
            files=tuple(_relative(file) for file in origin["files"]),
        )
    return NamedModel(
        name=name,
        path=path,
        kind=entry["kind"],
        family=family,
        hash=entry["hash"],
        size=entry["size"],
        origin=origin,
    )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("an origin that is no text")
    return value


def _relative(value: object) -> str:
    """A file below the model's folder: what is deleted never lies elsewhere."""
    name = _text(value)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & {"\\", ":"} or not path.parts:
        raise ValueError(f"{shown(name)} is no file of the model")
    return name
