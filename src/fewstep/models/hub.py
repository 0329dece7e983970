"""Downloading a model from the Hugging Face hub, when the operator of this machine asks for it.

Only ``fewstep models download`` comes here; drawing and serving never do. The revision is resolved to a
commit once, and everything is taken from that commit: a repository that changes meanwhile changes nothing.
Only weights in safetensors, their JSON and text files are taken, by an allow-list. What is not complete lies
in a hidden folder, in which the next attempt goes on, in the middle of a file too; the model's name appears
with the last file. Every file is compared with the size and hash that the hub gave for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from fewstep.checkpoint import atomic, header, locking
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.safetensors import sha256_file
from fewstep.errors import CheckpointError, DependencyError, NotFoundError, OutputError
from fewstep.models.hub_files import Reference, RemoteFile, choose, read_reference

__all__ = [
    "ORIGIN",
    "Downloaded",
    "Hub",
    "HuggingFace",
    "Reference",
    "RemoteFile",
    "download",
    "read_reference",
]

ORIGIN = "fewstep-origin.json"
"""Beside what was downloaded: repository, revision, commit, files."""

_GROWING = ".incomplete"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Downloaded:
    """What a download made."""

    path: Path
    """The model's folder or file."""
    commit: str
    files: tuple[str, ...]
    """Every file that was written for it, below the folder, or beside the file."""


OnBytes = Callable[[int, int], None]
"""Called with how many bytes are here and how many there are in all."""


class Hub(Protocol):
    """What is asked of a hub; both may raise OSError or NotFoundError."""

    def files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that a revision is now, and the files of that commit."""

    def fetch(
        self, repository: str, commit: str, wanted: RemoteFile, path: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """Complete one file of a commit; ``path`` holds what came before, ``on_bytes`` is told its size."""


def download(
    reference: Reference,
    models: Path,
    *,
    file: str | None = None,
    hub: Hub | None = None,
    announce: Callable[[Sequence[RemoteFile], str], None] | None = None,
    on_bytes: OnBytes | None = None,
) -> Downloaded:
    """Download a model into a folder of models; a second call goes on where the first was stopped.

    Args:
        reference: what to download.
        models: the folder of models.
        file: only this file of the repository; needed where it holds several and is no pipeline folder.
        hub: where from; None is the Hugging Face hub.
        announce: told once of the files and the commit, before any is fetched.
        on_bytes: told how far it is.

    Returns:
        The new folder or file, and what was written for it.

    Raises:
        UsageError: it is not clear which file is meant.
        NotFoundError: no such repository, revision or file.
        CheckpointError: what came is not what the hub said, or no safetensors.
        DependencyError: huggingface_hub is not installed.
        OutputError: the model exists already, or is being downloaded; the connection failed; no space.
    """
    source = HuggingFace() if hub is None else hub
    partial = models / f".{reference.name}.partial"
    with _alone(models, reference):
        commit = _begun(partial, reference)
        with _told(reference):
            now, there = source.files(reference.repository, commit or reference.revision)
        if not _COMMIT.fullmatch(now) or (commit is not None and now != commit):
            raise CheckpointError(
                f"{reference.repository}: the hub names no commit for {reference.revision!r}"
            )
        chosen = choose(reference, there, file)
        single = chosen[0].name if file is not None or len(chosen) == 1 else None
        final = models / (reference.name if single is None else PurePosixPath(single).name)
        if final.exists():
            raise OutputError(
                f"{final}: exists already; name it with fewstep models add, delete it, or give --models-dir"
            )
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
        _check_space(partial, chosen)
        _fetch(source, reference, now, chosen, partial, on_bytes)
        if single is None:
            atomic.rename_folder(partial, final)
            return Downloaded(path=final, commit=now, files=(*(one.name for one in chosen), ORIGIN))
        beside = models / f"{final.stem}.{ORIGIN}"
        atomic.write_text(beside, text)
        atomic.rename_file(partial / single, final)
        shutil.rmtree(partial, ignore_errors=True)
        return Downloaded(path=final, commit=now, files=(final.name, beside.name))


def _fetch(
    source: Hub,
    reference: Reference,
    commit: str,
    chosen: Sequence[RemoteFile],
    partial: Path,
    on_bytes: OnBytes | None,
) -> None:
    """Fetch every file that is not here yet, and check it."""
    total, before = sum(one.size for one in chosen), 0

    def tell(here: int) -> None:
        if on_bytes is not None:
            on_bytes(min(before + here, total), total)

    for one in chosen:
        path, growing = partial / one.name, partial / f"{one.name}{_GROWING}"
        if not path.is_file():
            growing.parent.mkdir(parents=True, exist_ok=True)
            if growing.exists() and growing.stat().st_size > one.size:
                growing.unlink()
            with _told(reference):
                source.fetch(reference.repository, commit, one, growing, tell)
            _check(growing, one)
            atomic.rename_file(growing, path)
        before += one.size
        tell(0)


def _check_space(partial: Path, chosen: Sequence[RemoteFile]) -> None:
    """Refuse what the disk has no room for, before the first byte."""
    there = (partial / f"{one.name}{end}" for one in chosen for end in ("", _GROWING))
    here = sum(path.stat().st_size for path in there if path.is_file())
    need, free = sum(one.size for one in chosen) - here, shutil.disk_usage(partial).free
    if need > free:
        raise OutputError(
            f"{partial.parent}: {need / 1e6:.0f} MB are to come and {free / 1e6:.0f} MB are free; free some "
            "space, or give another folder with --models-dir"
        )


@contextlib.contextmanager
def _alone(models: Path, reference: Reference) -> Iterator[None]:
    """One download of a name at a time: two would write into the same files."""
    path = models / f".{reference.name}.lock"
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = locking.acquire(path)
    except TimeoutError:
        raise OutputError(
            f"{models}: {reference.name} is being downloaded by another fewstep; wait for it"
        ) from None
    except OSError as error:
        raise OutputError(f"{models}: cannot be written ({error}); give another with --models-dir") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # while it is held: a later one makes its own
            path.unlink()
        lock.release()


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


def _check(path: Path, one: RemoteFile) -> None:
    """Refuse a file that is not what the hub said."""
    size = path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    wrong = size != one.size or (one.sha256 is not None and sha256_file(path) != one.sha256)
    if not wrong and one.sha256 is None and one.blob is not None:
        wrong = _git_blob(path, size) != one.blob
    if wrong:
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{shown(one.name)}: came broken ({size} of {one.size} bytes); run it again")
    if one.name.endswith(".safetensors"):
        try:
            header.read(path)
        except CheckpointError:
            path.unlink(missing_ok=True)
            raise


def _git_blob(path: Path, size: int) -> str:
    """Git's name of a file's content: the SHA-1 of its length and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


class HuggingFace:
    """The hub, by its own library; with the operator's login there, if any.

    Args:
        endpoint: address of another hub; the library's when None.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def files(self, repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
        """See `Hub.files`."""
        library = _library()
        errors: Any = library.errors
        try:
            api = library.HfApi(endpoint=self._endpoint)
            info = api.model_info(repository, revision=revision, files_metadata=True)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFoundError(
                f"{repository}@{revision}: not found on the hub, or not open to you; check the name"
            ) from error
        except Exception as error:  # its HTTP library's own, and whatever lies below
            raise OSError(f"{type(error).__name__}: {error}") from error
        found = [
            RemoteFile(
                name=one.rfilename,
                size=int(one.size or 0),
                sha256=one.lfs.sha256 if one.lfs else None,
                blob=None if one.lfs else one.blob_id,
            )
            for one in info.siblings or []
        ]
        return str(info.sha), found

    def fetch(
        self, repository: str, commit: str, wanted: RemoteFile, path: Path, on_bytes: Callable[[int], None]
    ) -> None:
        """See `Hub.fetch`."""
        library = _library()
        url = library.hf_hub_url(repository, wanted.name, revision=commit, endpoint=self._endpoint)
        headers = library.utils.build_hf_headers(library_name="fewstep")
        with path.open("ab") as opened:
            file = _Growing(opened, on_bytes)
            try:
                # A large file lies on another host, which must not see the operator's login.
                there = library.get_hf_file_metadata(url, headers=headers, endpoint=self._endpoint)
                if urlsplit(there.location).netloc != urlsplit(url).netloc:
                    headers.pop("authorization", None)
                if opened.tell() < wanted.size:
                    library.file_download.http_get(
                        there.location,
                        file,
                        resume_size=opened.tell(),
                        headers=headers,
                        expected_size=wanted.size,
                    )
            except OSError:
                raise
            except Exception as error:
                raise OSError(f"{type(error).__name__}: {error}") from error


class _Growing:
    """A file that says how long it is while it is written; what `http_get` needs of one."""

    def __init__(self, file: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._file, self._on_bytes = file, on_bytes
        self.name = file.name
        on_bytes(file.tell())

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._on_bytes(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ImportError:
        raise DependencyError(
            "downloading needs huggingface_hub, which is not installed; install it with: pip install "
            "'fewstep[torch]'"
        ) from None
    # Its own bar would stand beside ours.
    library: Any = huggingface_hub
    library.utils.disable_progress_bars()
    return library
