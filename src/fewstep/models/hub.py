"""Downloading a model from the Hugging Face hub, when the operator of this machine asks for it.

Only ``fewstep models download`` comes here; drawing and serving never do. The revision is resolved to a
commit once, and everything is taken from that commit: a repository that changes meanwhile changes nothing.
Only weights in safetensors, their JSON and text files are taken, by an allow-list. What is not complete lies
in a hidden folder, in which the next attempt goes on; the model's name appears with the last file.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from fewstep.checkpoint import atomic
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.safetensors import check_content, sha256_file
from fewstep.errors import CheckpointError, DependencyError, NotFoundError, OutputError, UsageError
from fewstep.models import families

ORIGIN = "fewstep-origin.json"
"""Beside what was downloaded: repository, revision, commit, files."""

_SUFFIXES = (".safetensors", ".json", ".txt")
_ALSO = frozenset({"spiece.model"})
"""T5's vocabulary, a table of sentencepiece."""
_MAX_TEXT = 50_000_000
"""Bytes of a file that is not weights."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema)[.-]")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a repository at one commit."""

    name: str
    size: int
    sha256: str | None = None
    """Where the hub knows it: of large files."""


class Hub(Protocol):
    """What is asked of a hub; both may raise OSError or NotFoundError."""

    def files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that a revision is now, and the files of that commit."""

    def fetch(self, repository: str, commit: str, name: str, folder: Path) -> None:
        """Put one file of a commit under its name into a folder, going on where an attempt stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """``owner/name[@revision]``."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """Of the model here."""
        return self.repository.partition("/")[2]


def read_reference(text: str) -> Reference:
    """Read ``owner/name[@revision]``.

    Raises:
        UsageError: another form.
    """
    repository, at, revision = text.partition("@")
    good = _REPOSITORY.fullmatch(repository) and ".." not in text
    if not good or (at and not _REVISION.fullmatch(revision)):
        raise UsageError(f"{text!r:.200} is no repository: give owner/name or owner/name@revision")
    return Reference(repository=repository, revision=revision or "main")


def download(
    reference: Reference,
    models: Path,
    *,
    file: str | None = None,
    hub: Hub | None = None,
    announce: Callable[[Sequence[RemoteFile], str], None] | None = None,
) -> Path:
    """Download a model into a folder of models; a second call goes on where the first was stopped.

    Args:
        reference: what to download.
        models: the folder of models.
        file: only this file of the repository; needed where it holds several and is no pipeline folder.
        hub: where from; None is the Hugging Face hub.
        announce: told once of the files and the commit, before any is fetched.

    Returns:
        The new folder or file.

    Raises:
        UsageError: it is not clear which file is meant.
        NotFoundError: no such repository, revision or file.
        CheckpointError: what came is not what the hub said, or no safetensors.
        DependencyError: huggingface_hub is not installed.
        OutputError: the model exists already; the connection failed; the disk is full.
    """
    source = _HuggingFace() if hub is None else hub
    partial = models / f".{reference.name}.partial"
    commit = _begun(partial, reference)
    with _told(reference):
        now, there = source.files(reference.repository, commit or reference.revision)
    if not _COMMIT.fullmatch(now) or (commit is not None and now != commit):
        raise CheckpointError(f"{reference.repository}: the hub names no commit for {reference.revision!r}")
    chosen = _chosen(reference, there, file)
    single = chosen[0].name if file is not None or len(chosen) == 1 else None
    final = models / (reference.name if single is None else PurePosixPath(single).name)
    if final.exists():
        raise OutputError(f"{final}: exists already; remove it, or give another folder with --models-dir")
    if announce is not None:
        announce(chosen, now)
    origin = {
        "repository": reference.repository,
        "revision": reference.revision,
        "commit": now,
        "files": {one.name: one.size for one in chosen},
    }
    text = json.dumps(origin, indent=2, sort_keys=True) + "\n"
    atomic.write_text(partial / ORIGIN, text)
    for one in chosen:
        with _told(reference):
            source.fetch(reference.repository, now, one.name, partial)
        _check(partial, one)
    if single is None:
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        atomic.rename_folder(partial, final)
    else:
        atomic.write_text(models / f"{final.stem}.{ORIGIN}", text)
        atomic.rename_file(partial / single, final)
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _begun(partial: Path, reference: Reference) -> str | None:
    """The commit of an attempt that was stopped; what is of another one is removed."""
    try:
        origin = json.loads((partial / ORIGIN).read_text(encoding="utf-8"))
        asked = (origin["repository"], origin["revision"])
        if asked == (reference.repository, reference.revision) and _COMMIT.fullmatch(origin["commit"]):
            return str(origin["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(partial, ignore_errors=True)
    return None


def _chosen(reference: Reference, there: Sequence[RemoteFile], file: str | None) -> list[RemoteFile]:
    """The files to fetch."""
    allowed = {one.name: one for one in there if _allowed(one)}
    if file is not None:
        if file not in allowed or not file.endswith(".safetensors"):
            listed = ", ".join(sorted(name for name in allowed if name.endswith(".safetensors"))[:20])
            raise NotFoundError(
                f"{reference.repository}: no weight file {file!r:.120} to be had; there are: "
                f"{listed or 'none'}"
            )
        return [allowed[file]]
    if "model_index.json" in allowed:
        return _pipeline(list(allowed.values()))
    weights = [one for name, one in allowed.items() if name.endswith(".safetensors")]
    if len(weights) == 1:
        return weights
    if not weights:
        raise NotFoundError(
            f"{reference.repository}: holds no safetensors; a repository of pickles is not downloaded"
        )
    names = ", ".join(one.name for one in weights[:20])
    raise UsageError(
        f"{reference.repository}: no pipeline folder, but {len(weights)} weight files; give one with "
        f"--file: {shown(names, 800)}"
    )


def _allowed(one: RemoteFile) -> bool:
    path = PurePosixPath(one.name)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in one.name
    visible = not any(part.startswith(".") for part in path.parts)
    known = path.suffix in _SUFFIXES or path.name in _ALSO
    small = path.suffix == ".safetensors" or one.size <= _MAX_TEXT
    return plain and visible and known and small and one.name.isprintable() and len(path.parts) <= 3


def _pipeline(there: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Files of a pipeline folder: of the parts that are loaded, in half precision where there is that."""
    parts = {part for family in families.FAMILIES for part in family.parts}
    chosen = [one for one in there if one.name in ("model_index.json", "fewstep.json")]
    for part in sorted(parts):
        inside = [one for one in there if one.name.startswith(f"{part}/") and one.name.count("/") == 1]
        weights = [one for one in inside if _is_weights(one.name)]
        half = [one for one in weights if ".fp16" in one.name]
        plain = [one for one in weights if not _VARIANT.search(one.name)]
        chosen += [one for one in inside if not _is_weights(one.name)] + (half or plain)
    return chosen


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") or ".safetensors.index." in name


def _check(folder: Path, one: RemoteFile) -> None:
    """Refuse a file that is not what the hub said."""
    path = folder / one.name
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    wrong = size != one.size or (one.sha256 is not None and sha256_file(path) != one.sha256)
    if wrong:
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{shown(one.name)}: came broken ({size} of {one.size} bytes); run it again")
    if path.suffix == ".safetensors":
        check_content(path)


@contextlib.contextmanager
def _told(reference: Reference) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        reason = shown(" ".join(str(error).split()), 300)
        raise OutputError(
            f"{reference.repository}: cannot be downloaded ({reason}); run it again, it goes on where it "
            "stopped"
        ) from error


class _HuggingFace:
    """The hub, by its own library; with the operator's login there, if any."""

    def files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        library = _library()
        errors: Any = library.errors
        try:
            info = library.HfApi().model_info(repository, revision=revision, files_metadata=True)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFoundError(
                f"{repository}@{revision}: not found on the hub, or not open to you; check the name"
            ) from error
        except Exception as error:  # its HTTP library's own, and whatever lies below
            raise OSError(f"{type(error).__name__}: {error}") from error
        found = [
            RemoteFile(
                name=one.rfilename, size=int(one.size or 0), sha256=one.lfs.sha256 if one.lfs else None
            )
            for one in info.siblings or []
        ]
        return str(info.sha), found

    def fetch(self, repository: str, commit: str, name: str, folder: Path) -> None:
        library = _library()
        try:
            library.hf_hub_download(repository, name, revision=commit, local_dir=folder)
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise DependencyError(
            "downloading needs huggingface_hub, which is not installed; install it with: pip install "
            "'fewstep[torch]'"
        ) from None
    return huggingface_hub
