"""One command in a process of its own: started, watched, stopped; and what an earlier server left running.

The command line is always the same three words and the path of a configuration file. No shell is used, so a
text of a caller is never anything but a string in that file (H20). What the process prints goes to files,
which cannot fill up as pipes do. It leads a session of its own, so that Ctrl-C in the server's terminal does
not reach it, and so that it can be killed with all that it has started. Its standard input is a pipe that
nobody writes: when this server is gone, however that came about, the pipe ends and the process stops itself
(`fewstep.cli.child`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from fewstep.checkpoint import atomic

_log = logging.getLogger("fewstep.server")

PASSED: Final = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "XDG_DATA_HOME", "XDG_CACHE_HOME",
    "FEWSTEP_LORAS", "FEWSTEP_EMBEDDINGS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
)  # fmt: skip
"""Variables of the environment that a process gets; keys of the server are in none of them."""
NETWORK: Final = (
    "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy",
    "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""Further ones of a process that downloads: which hub, as whom, by which way."""

STDOUT, STDERR, PROCESS = "stdout.txt", "stderr.txt", "process.json"
POLL: Final = 0.1
ORPHAN_SECONDS: Final = 35.0
"""For a process whose server is gone to stop by itself, before it is killed."""
_LINE: Final = 4096
_MOST: Final = 1 << 20
_COUNT: Final = re.compile(
    r"(?P<images>\d+) of (?P<all>\d+) images\b|(?:^|\s)(?P<done>\d+)/(?P<total>\d+)$", re.ASCII
)
_MODULE: Final = "fewstep.cli.child"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    """Its exit code; below 0 the signal that killed it."""
    stopped: bool
    """Whether it was told to stop."""
    error: str | None
    """The last line that says why, as it was printed."""


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a process, and how far it says that it is."""

    text: str
    done: int | None
    total: int | None


def command(config: Path) -> list[str]:
    """The whole command line."""
    return [sys.executable, "-m", _MODULE, str(config)]


def environment(
    models: str, source: Mapping[str, str] | None = None, *, network: bool = False
) -> dict[str, str]:
    """What a process gets to know: `PASSED`, where models are, and that it is not to use the network.

    Args:
        models: value of ``FEWSTEP_MODELS``.
        source: variables to take from; those of this process when left out.
        network: it may use the network, unless the operator's own variables say that nothing does.
    """
    given = os.environ if source is None else source
    kept = {name: given[name] for name in (*PASSED, *(NETWORK if network else ())) if name in given}
    if not network:
        kept.setdefault("HF_HUB_OFFLINE", "1")
    return {**kept, "FEWSTEP_MODELS": models, "PYTHONUNBUFFERED": "1"}


def run(
    config: Path,
    folder: Path,
    *,
    variables: Mapping[str, str],
    stop: Callable[[], bool],
    told: Callable[[Said], None],
    grace: float,
) -> Ended:
    """Run a configuration and wait for its end.

    Args:
        config: see `fewstep.cli.child`.
        folder: where its output goes, and a note of the process. What it says to stderr is added to what is
            there: several commands of one job have one log.
        variables: its environment.
        stop: asked now and then whether it is to stop: SIGINT, and SIGKILL after ``grace`` seconds.
        told: every line that it prints to stderr.
        grace: seconds.

    Raises:
        OSError: it cannot be started.
    """
    with (folder / STDOUT).open("wb") as out, (folder / STDERR).open("ab") as err:
        begin = err.tell()
        process = subprocess.Popen(  # noqa: S603
            command(config), stdin=subprocess.PIPE, stdout=out, stderr=err, env=dict(variables), shell=False,
            close_fds=True, start_new_session=True,
        )  # fmt: skip
    try:
        _note(folder, process.pid)
        lines = _Lines(folder / STDERR, begin, told)
        asked: float | None = None
        killed = False
        while not _over(process):
            lines.read()
            now = time.monotonic()
            if asked is None and stop():
                asked = now
                process.send_signal(signal.SIGINT)
            elif asked is not None and not killed and now - asked > grace:
                killed = True
                _log.warning("process %d does not stop within %g s and is killed", process.pid, grace)
                kill(process.pid)
            time.sleep(POLL)
        # Before its number is free for others: all that it has started goes with it.
        kill(process.pid)
        code = process.wait()
        lines.read(last=True)
        return Ended(code, asked is not None, lines.error)
    finally:
        if process.poll() is None:  # something failed here: nothing may be left running
            kill(process.pid)
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(OSError):
            (folder / PROCESS).unlink(missing_ok=True)


def kill(leader: int) -> None:
    """Kill a process that leads a session, with all that it has started; one that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def stop_orphans(runs: Path, seconds: float = ORPHAN_SECONDS, *, only: str = "*") -> int:
    """End processes of servers that are gone, and return how many there were.

    Such a process has noticed and is saving: it is waited for, and killed where it takes too long. One whose
    server lives is left alone.

    Args:
        runs: folder of the jobs' folders.
        seconds: to wait for all of them together.
        only: of this job.
    """
    found = [(note, process) for note in runs.glob(f"{only}/{PROCESS}") for process in _orphan(note)]
    _, alive = psutil.wait_procs([process for _, process in found], timeout=seconds)
    for process in alive:
        _log.warning("process %d of an earlier server still ran and is killed", process.pid)
        kill(process.pid)
    psutil.wait_procs(alive, timeout=5)
    for note, _ in found:
        note.unlink(missing_ok=True)
    return len(found)


def tail(path: Path, most: int) -> list[str]:
    """The last lines of a file, at most so many."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most * 400))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line[:_LINE] for line in text.splitlines()[-most:]]


def said(line: str) -> Said:
    """What a line of stderr says; ``fewstep: `` in front is left out."""
    text = line.removeprefix("fewstep: ")
    match = _COUNT.search(text)
    if match is None:
        return Said(text, None, None)
    return Said(text, int(match["images"] or match["done"]), int(match["all"] or match["total"]))


class _Lines:
    """Reads what was added to a file after a place in it."""

    def __init__(self, path: Path, begin: int, told: Callable[[Said], None]) -> None:
        self._file = path.open("rb")
        self._file.seek(begin)
        self._rest = b""
        self._told = told
        self.error: str | None = None

    def read(self, *, last: bool = False) -> None:
        while block := self._file.read(_MOST):
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                self._tell(line)
            self._rest = self._rest[-_LINE:]
        if last:
            if self._rest:
                self._tell(self._rest)
            self._file.close()

    def _tell(self, line: bytes) -> None:
        what = said(line[:_LINE].decode("utf-8", "replace").strip())
        if what.text.startswith(("error: ", "cancelled")):
            self.error = what.text.removeprefix("error: ")
        if what.text:
            self._told(what)


def _over(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; its number stays taken until it is waited for."""
    flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
    return os.waitid(os.P_PID, process.pid, flags) is not None


def _note(folder: Path, pid: int) -> None:
    me = psutil.Process()
    note: dict[str, Any] = {"server": {"host": platform.node(), "pid": me.pid, "started": me.create_time()}}
    with contextlib.suppress(psutil.NoSuchProcess):
        note |= {"pid": pid, "started": psutil.Process(pid).create_time()}
        atomic.write_text(folder / PROCESS, json.dumps(note))


def _orphan(path: Path) -> list[psutil.Process]:
    """The process that a note tells of, if its server is gone and it is not."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        server, pid, started = note["server"], int(note["pid"]), float(note["started"])
        if server.get("host", platform.node()) != platform.node():
            return []  # another machine's business, where the folder is shared
        if _lives(int(server["pid"]), float(server["started"])) is not None:
            return []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    process = _lives(pid, started)
    if process is None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return []
    try:  # the number may be somebody else's by now
        ours = str(path.parent) in " ".join(process.cmdline())
    except psutil.Error:
        ours = False
    return [process] if ours else []


def _lives(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        # The start is computed from the time since boot, and a corrected clock moves it a little.
        gone = process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - started) > 2.0
    except psutil.Error:
        return None
    return None if gone else process
