"""Where results go: numbered files that never overwrite one another, results on stdout, notes on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.checkpoint import atomic
from fewstep.errors import OutputError

_NUMBERED = re.compile(r"^\.?(\d{5,9})[-.]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CLAIM = ".{number:05d}.claim"
# A claim is an empty file; one that a killed process left only makes its number unused until it is this old.
_STALE_SECONDS = 86_400.0


def result(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def result_json(value: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Print one JSON value to stdout in ASCII, on one line unless ``indent`` is given."""
    result(json.dumps(value, indent=indent, allow_nan=False))


def note(text: str) -> None:
    """Print one line about what happens to stderr."""
    sys.stderr.write(f"fewstep: {printable(' '.join(text.split()))}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Escape control characters: text out of a file or a name must not be able to steer a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


@contextlib.contextmanager
def numbers(folder: Path, count: int) -> Iterator[list[int]]:
    """Yield ``count`` file numbers that no file in ``folder`` has and no other process will take.

    The folder is made, and shown to be writable, before any work is done for it. A number is held by an empty
    file ``.00012.claim`` that is made exclusively; it is removed at the end.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    claims: list[Path] = []
    found: list[int] = []
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic.sweep(folder)
            number = _highest(folder)
            while len(found) < count:
                number += 1
                claim = folder / _CLAIM.format(number=number)
                try:
                    os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                claims.append(claim)
                if not _taken(folder, number):
                    found.append(number)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"{folder}: no images can be written here ({reason}); choose another folder with --out"
            ) from error
        yield found
    finally:
        for claim in claims:
            with contextlib.suppress(OSError):
                claim.unlink()


def _highest(folder: Path) -> int:
    highest = 0
    for entry in os.scandir(folder):
        match = _NUMBERED.match(entry.name)
        if match is None:
            continue
        if entry.name.endswith(".claim"):
            with contextlib.suppress(OSError):
                if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)
                    continue
        highest = max(highest, int(match[1]))
    return highest


def _taken(folder: Path, number: int) -> bool:
    """Whether a process that has just let go of this number wrote its file after we listed the folder."""
    return any(folder.glob(f"{number:05d}-*"))


def show_logs(*, quiet: bool) -> None:
    """Print fewstep's log messages to stderr: all of them, or from warnings on when ``quiet``."""
    import logging

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            note(prefix + record.getMessage())

    logger = logging.getLogger("fewstep")
    logger.handlers = [Notes()]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
