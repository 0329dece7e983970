"""Files and folders that appear under their final name completely, or not at all.

Every writer of fewstep goes through this module: data is written to a temporary sibling, flushed to the
disk, renamed over the final name, and then the parent folder is flushed, so that after a kill or a power cut
the final name holds either the old content or the new one. This is the only module that calls ``os.replace``
and ``os.fsync``.

Temporary names start with a dot and end in ``.tmp-<pid>-<random>``; `sweep` removes what a dead process left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fewstep.errors import FewstepError, OutputError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<kind>tmp|was)-(?P<pid>\d+)-[0-9a-f]{8}$")
_STALE_SECONDS = 3600.0
_active: set[Path] = set()


def write_bytes(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write ``data`` to ``path`` atomically and durably; parent folders are made.

    Raises:
        OutputError: the folder is not writable, the disk is full, or the name is taken by a folder.
    """
    with file(path) as temporary:
        _write_all(temporary, memoryview(data))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, line ends as they are, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append one line to a log file with a single write; not atomic against a power cut, and not flushed.

    Raises:
        OutputError: the file cannot be opened or written.
    """
    final = Path(path)
    with _as_output_error(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            final, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            os.write(descriptor, (line.rstrip("\n") + "\n").encode("utf-8"))
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write; at exit it is flushed and renamed to ``path``, on error removed.

    For writers that take a path (safetensors, Pillow). An existing file is replaced.

    Raises:
        OutputError: an operating system error inside the block or during the rename.
    """
    final = Path(path)
    temporary = _temporary(final)
    with _as_output_error(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            raise OutputError(f"{final}: a folder has this name; choose another file name")
        try:
            yield temporary
            _fsync_path(temporary)
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            _active.discard(temporary)
        _fsync_path(final.parent)


@contextlib.contextmanager
def folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; at exit it is flushed file by file and renamed to ``path``, on error removed.

    With ``replace`` an existing folder is moved aside first and removed afterwards. Two renames cannot be one
    step: a kill between them leaves the old folder under its aside name, and `sweep` moves it back.

    Raises:
        OutputError: ``path`` exists and ``replace`` is false, or an operating system error.
    """
    final = Path(path)
    temporary = _temporary(final)
    with _as_output_error(final):
        if final.exists() and not (replace and final.is_dir()):
            raise OutputError(f"{final}: exists already; remove it or choose another folder")
        final.parent.mkdir(parents=True, exist_ok=True)
        aside: Path | None = None
        try:
            temporary.mkdir()
            yield temporary
            _fsync_tree(temporary)
            if final.exists():
                aside = _temporary(final, kind="was")
                os.replace(final, aside)
            os.replace(temporary, final)
        except BaseException:
            if aside is not None and aside.exists() and not final.exists():
                with contextlib.suppress(OSError):
                    os.replace(aside, final)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            _active.discard(temporary)
            if aside is not None:
                _active.discard(aside)
        _fsync_path(final.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Remove a folder so that it never exists half-removed under its own name; a missing folder is fine.

    Raises:
        OutputError: it cannot be renamed away.
    """
    final = Path(path)
    if not final.exists():
        return
    doomed = _temporary(final)
    try:
        with _as_output_error(final):
            os.replace(final, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    finally:
        _active.discard(doomed)


def rename_folder(path: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Give a folder another name in the same parent; a folder that has that name already is removed first.

    Raises:
        OutputError: it cannot be renamed.
    """
    remove_folder(new)
    with _as_output_error(Path(path)):
        os.replace(path, new)
        _fsync_path(Path(new).parent)


def rename_file(path: str | os.PathLike[str], new: str | os.PathLike[str]) -> None:
    """Give a file that is complete another name on the same disk, durably; an old file there is replaced.

    Raises:
        OutputError: it cannot be renamed.
    """
    with _as_output_error(Path(new)):
        _fsync_path(Path(path))
        os.replace(path, new)
        _fsync_path(Path(new).parent)


def sweep(parent: str | os.PathLike[str], *, all_processes: bool = False) -> list[Path]:
    """Remove the temporaries that dead processes left in ``parent`` (not in its sub-folders).

    A folder that was moved aside by an interrupted replacement is moved back when its name is free.

    Args:
        parent: folder to look in; may be missing.
        all_processes: also remove those of living processes: for a caller that holds a lock on ``parent``.

    Returns:
        The paths that were removed or moved back.
    """
    root = Path(parent)
    if not root.is_dir():
        return []
    gone: list[Path] = []
    for entry in sorted(root.iterdir()):
        match = _TEMPORARY.match(entry.name)
        if match is None or entry in _active:
            continue
        if not all_processes and _in_use(int(match["pid"]), entry):
            continue
        final = root / match["name"]
        with contextlib.suppress(OSError):
            if match["kind"] == "was" and not final.exists():
                os.replace(entry, final)
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            gone.append(entry)
    return gone


def _temporary(final: Path, kind: str = "tmp") -> Path:
    path = final.parent / f".{final.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    _active.add(path)
    return path


def _in_use(pid: int, entry: Path) -> bool:
    if pid == os.getpid():
        # Containers give every restart the same pid: what this process did not make itself is a left-over.
        return False
    if os.name == "nt":
        # os.kill(pid, 0) ends the process on Windows, so age has to do.
        with contextlib.suppress(OSError):
            return time.time() - entry.stat().st_mtime < _STALE_SECONDS
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _write_all(path: Path, data: memoryview) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        data = data.cast("B")
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _fsync_path(path: Path) -> None:
    if path.is_dir():
        if os.name == "nt":  # a folder cannot be opened for flushing there
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(root: Path) -> None:
    for current, _, names in os.walk(root, topdown=False):
        for name in sorted(names):
            _fsync_path(Path(current, name))
        _fsync_path(Path(current))


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FewstepError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); free some space or choose another place"
        ) from error
