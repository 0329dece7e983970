"""One run folder, one run: a lock that says who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from fewstep.checkpoint import atomic, locking
from fewstep.errors import RunError


@contextlib.contextmanager
def run_lock(run_folder: Path) -> Iterator[None]:
    """Hold ``lock`` in the run folder for the length of a ``with`` block.

    The operating system drops the lock when the process dies, so a left-over file never blocks a later run;
    what stands in ``lock.json`` is only for the message.

    Raises:
        RunError: another process holds it; the message names its pid and host.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = locking.acquire(run_folder / "lock")
    except TimeoutError:
        raise RunError(f"{run_folder}: {_explain(run_folder)}") from None
    except OSError as error:
        raise RunError(f"{run_folder}: cannot be locked ({error}); choose a writable local folder") from error
    holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        atomic.write_text(run_folder / "lock.json", json.dumps(holder) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (run_folder / "lock.json").unlink()
        lock.release()


def _explain(run_folder: Path) -> str:
    try:
        holder = json.loads((run_folder / "lock.json").read_text(encoding="utf-8"))
        pid, host, since = int(holder["pid"]), str(holder["host"]), str(holder["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another run holds its lock; wait for it or choose another folder"
    message = f"a run with pid {pid} on host {host} holds its lock since {since}"
    if host != platform.node():
        stale = f"if that machine is gone, the lock is stale: delete {run_folder / 'lock'} and start again"
        return f"{message}; {stale}"
    return f"{message}; wait for it, stop it with: kill {pid}, or choose another folder"
