"""``python -m fewstep.cli.child CONFIG``: one command of the command line, as a server starts it.

The command and its arguments come from a JSON file. Commands and options outside of a closed list are
refused, and a value never becomes an option: options are given as ``--option=value``, all else after ``--``.

While it works it watches its standard input. That is a pipe whose other end only the server has, so it ends
when the server does, however that comes about; then the command is told to stop as by Ctrl-C, and killed
when it has not after `GRACE` seconds. Linux' ``PR_SET_PDEATHSIG`` would not do: it tells of the end of the
thread that started this process, not of the server, and leaves no time to save.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.cli import output
from fewstep.errors import UsageError

GRACE = 30.0
"""Seconds from the end of the server to the end of this process."""
NICE = 10
_MAX_BYTES = 1 << 20

OPTIONS: Mapping[str, frozenset[str]] = {
    "train": frozenset({"model", "run", "out", "trigger", "minutes", "images", "rank", "set"}),
    "distill": frozenset({"run", "set"}),
    "data": frozenset({"out", "autoencoder", "text", "size"}),
    "export": frozenset({"out", "name", "precision", "student"}),
    "evaluate": frozenset({
        "prompts", "n", "steps", "guidance", "guidance-rescale", "solver", "student", "seed", "diversity",
        "out",
    }),
    "merge": frozenset({"mode", "ratio", "blocks", "dtype", "vae", "out"}),
    "upscale": frozenset({
        "upscaler", "upscaler-2", "visibility", "scale", "size", "threads", "out", "format", "restore",
        "restore-at", "prompt", "negative", "model", "student", "steps", "seed",
    }),
    "models": frozenset({"models-dir", "file"}),
}  # fmt: skip
"""Commands that a server may run, with the options that have values."""
FLAGS: Mapping[str, frozenset[str]] = {
    "train": frozenset({"resume"}),
    "distill": frozenset({"resume"}),
    "evaluate": frozenset({"compare", "json"}),
    "upscale": frozenset({"no-crop", "overwrite", "json"}),
    "models": frozenset({"unnamed"}),
}
"""Options of theirs without a value."""
_ACTIONS: Mapping[str, str] = {"models": "download"}
"""The only first argument of commands that do several things."""


def arguments(config: Any) -> list[str]:
    """The command line that a configuration stands for.

    Args:
        config: ``{"command": ..., "arguments": {"options": [[name, value], ...], "flags": [...],
            "positionals": [...]}}``, everything a string.

    Raises:
        UsageError: another command or option than a server may use, or something that is no string.
    """
    try:
        command, given = config["command"], config["arguments"]
        options, flags, positionals = given["options"], given["flags"], given["positionals"]
        pairs = [(name, value) for name, value in options]
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(
            f"the configuration has another form than a server writes ({type(error).__name__})"
        ) from None
    if not isinstance(command, str) or command not in OPTIONS:
        raise UsageError(f"command {command!r:.60}: a server runs only {', '.join(OPTIONS)}")
    texts = [text for pair in pairs for text in pair] + [*flags, *positionals]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise UsageError(f"{command}: arguments must be strings without a null character")
    for name, known in [
        *((name, OPTIONS[command]) for name, _ in pairs),
        *((name, FLAGS.get(command, frozenset())) for name in flags),
    ]:
        if name not in known:
            raise UsageError(f"{command}: option {name!r:.60} is none that a server gives")
    if (action := _ACTIONS.get(command)) is not None and positionals[:1] != [action]:
        raise UsageError(f"{command}: a server does nothing but {action} with it")
    return [
        command, *(f"--{name}={value}" for name, value in pairs), *(f"--{name}" for name in flags),
        "--", *positionals,
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run what a configuration file says, and return the exit code of the command."""
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        if len(given) != 1:
            raise UsageError("give the path of one configuration file")
        line = arguments(_read(given[0]))
    except UsageError as error:
        output.note(f"error: {error}")
        return error.exit_code
    # A server that was started in the background of a script ignores SIGINT, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)
    watch()
    from fewstep.cli.main import main as run

    return run(line)


def watch(grace: float = GRACE) -> bool:
    """Stop this process when its standard input ends, if that is a pipe; whether it is."""
    try:
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return False
    except OSError:
        return False
    threading.Thread(target=_watch, args=(grace,), name="fewstep-watch", daemon=True).start()
    return True


def _watch(grace: float) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(grace)
    if os.getpgrp() == os.getpid():  # with everything that it has started
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(137)


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        return json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no configuration of a server ({error}); a server writes one") from None


if __name__ == "__main__":
    sys.exit(main())
