"""What callers have set, by the name of their key, in one JSON file that is replaced as a whole.

Several servers may share the file: a change is made under a lock, to what stands in the file then.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewstep.checkpoint import atomic, locking
from fewstep.errors import OutputError

_log = logging.getLogger("fewstep.server")

_VERSION = 1
_MAX_BYTES = 10_000_000
_LOCK_SECONDS = 10.0
BROKEN = ".broken"
"""Added to the name of a file that cannot be read, when another takes its place."""


class Owned:
    """See the module. Safe to use from several threads.

    Args:
        path: the file; it and its folder are made with the first change. None keeps everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._memory: dict[str, dict[str, Any]] = {}
        self._stamp: tuple[int, int] | None = None
        self._warned: tuple[int, int] | None = None

    def get(self, owner: str) -> dict[str, Any]:
        """What an owner has set; nothing where the file cannot be read, which the log says once."""
        with self._lock:
            self._read()
            return dict(self._memory.get(owner, {}))

    def change(self, owner: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        """Put what ``change`` makes of an owner's values in their place, and return it.

        Raises:
            OutputError: the file cannot be written, or somebody else holds its lock; nothing is changed.
            Whatever ``change`` raises.
        """
        with self._lock:
            if self._path is None:
                made = dict(change(dict(self._memory.get(owner, {}))))
                self._memory[owner] = made
                return dict(made)
            return self._changed(self._path, owner, change)

    def _changed(
        self, path: Path, owner: str, change: Callable[[dict[str, Any]], Mapping[str, Any]]
    ) -> dict[str, Any]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = locking.acquire(path.with_suffix(".lock"), timeout=_LOCK_SECONDS)
        except TimeoutError:
            raise OutputError(f"{path}: another server holds its lock; try again") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be locked ({error.strerror}); check its folder") from error
        try:
            self._read()
            made = dict(change(dict(self._memory.get(owner, {}))))
            whole = {**self._memory, owner: made}
            if self._warned is not None and self._warned == _stamp(path):
                atomic.rename_file(path, path.with_name(path.name + BROKEN))
            text = json.dumps({"version": _VERSION, "owners": whole}, indent=1, sort_keys=True)
            atomic.write_text(path, text + "\n")
            self._memory, self._stamp = whole, _stamp(path)
            return dict(made)
        finally:
            lock.release()

    def _read(self) -> None:
        """Bring the memory to what the file says, if that has changed."""
        if self._path is None:
            return
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp, self._memory = stamp, {}
        if stamp is None:
            return
        try:
            with self._path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            content = json.loads(data)
            owners = content["owners"]
            if content["version"] != _VERSION or not all(isinstance(one, dict) for one in owners.values()):
                raise ValueError("of another version")
            self._memory = dict(owners)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._warned = stamp
            _log.warning(
                "%s cannot be read (%s): everything has its default; the next change makes it anew and keeps "
                "this one beside it",
                self._path.name, type(error).__name__,
            )  # fmt: skip


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when the file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino
