"""How a benchmark is run and called: its command as documents show it, errors as one line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import FewstepError

_PLACES = ("--pictures", "--out", "--work")
"""Options, each with a value, that change no figure: folders of this machine."""


def command(arguments: Sequence[str] | None = None) -> str:
    """The command that makes the figures again, without this machine's folders.

    Args:
        arguments: of the program, its path first; None is ``sys.argv``.
    """
    program, *given = sys.argv if arguments is None else arguments
    kept: list[str] = []
    rest = iter(given)
    for word in rest:
        if word in _PLACES:
            next(rest, None)
        elif not word.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(word)
    return shlex.join(["python", f"benchmarks/{Path(program).name}", *kept])


def guarded(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Run, and end with one line where fewstep refuses something."""
    quiet_libraries()
    try:
        run(arguments)
    except FewstepError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
