"""Compiled networks on disk, so that a second process starts in a fraction of a second.

One file per network, shape and circumstances. The name is a hash of everything that the content depends on,
so a file is never out of date, only unused; the oldest go when the folder grows past `LIMIT` bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

from fewstep.checkpoint import atomic
from fewstep.errors import OutputError

LIMIT = 2_000_000_000
"""Bytes that the cache may take."""

_log = logging.getLogger("fewstep")
_warned: set[Path] = set()


def folder() -> Path:
    """The cache folder: ``FEWSTEP_CACHE``, else ``fewstep`` in the user's cache folder. Not made here."""
    chosen = os.environ.get("FEWSTEP_CACHE")
    if chosen:
        return Path(chosen)
    # Imported late: an import costs 20 ms, which the usual Linux case does not need.
    import platformdirs

    return Path(platformdirs.user_cache_dir("fewstep", appauthor=False))


def path(*circumstances: str) -> Path:
    """The file of one compiled network.

    Args:
        circumstances: everything that the content depends on, in a fixed order: weights hash, shapes,
        settings,
            library version, CPU.
    """
    key = hashlib.sha256("\0".join(circumstances).encode()).hexdigest()[:32]
    return folder() / "compiled" / f"{key}.blob"


def store(file: Path, data: bytes) -> None:
    """Write a compiled network; when that is not possible, say so once and go on without."""
    try:
        atomic.write_bytes(file, data)
        _make_room(file)
    except OutputError as error:
        if file.parent not in _warned:
            _warned.add(file.parent)
            _log.warning("compiled networks are not kept, every start will take longer: %s", error)


def drop(file: Path) -> None:
    """Remove a file that cannot be used."""
    with contextlib.suppress(OSError):
        file.unlink()


def cpu_identity() -> str:
    """What compiled code depends on of this CPU: model and instruction sets, as far as the system tells."""
    wanted = ("model name", "flags", "Features", "CPU part")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
        found = [line for line in lines if line.split("\t", 1)[0].strip(" :") in wanted]
        if found:
            return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]
    import platform

    return f"{platform.machine()} {platform.processor()}"


def _make_room(newest: Path) -> None:
    with contextlib.suppress(OSError):
        files = sorted(newest.parent.glob("*.blob"), key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > LIMIT and file != newest:
                drop(file)
