"""Locks on files, held against other processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import FileLock


def acquire(path: Path, *, timeout: float = 0.0) -> FileLock:
    """Hold a lock; the operating system drops it when the process dies, so a left-over file blocks nobody.

    Args:
        path: of the lock's own file, in a folder that exists.
        timeout: seconds to wait for another holder.

    Returns:
        The lock; ``release()`` ends it.

    Raises:
        TimeoutError: another process holds it.
        OSError: the file cannot be made, or the file system knows no locks.
    """
    from filelock import FileLock

    lock = FileLock(path, timeout=timeout, mode=0o644)
    try:
        # filelock.Timeout is a TimeoutError
        lock.acquire()
    except NotImplementedError as error:  # what filelock says of such a file system
        raise OSError(str(error)) from error
    return lock
