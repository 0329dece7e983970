"""Makes docs/reference/cli.md: ``python -m fewstep.cli.reference > docs/reference/cli.md``.

A test compares the page with what this module makes, so the page cannot fall behind the options.
"""

from __future__ import annotations

import contextlib
import io
import sys

from fewstep.cli.main import COMMANDS, group

_HEAD = """# Command line reference

The help texts of `fewstep`, made by `python -m fewstep.cli.reference > docs/reference/cli.md`. How the
commands are used is told in the [guide](../guides/command-line.md).
"""

_EXIT_CODES = """## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug of fewstep, or out of memory; `fewstep doctor --strict` found something missing |
| 2 | an option or a recipe that is wrong |
| 3 | a weight file or model folder that is refused |
| 4 | a model, recipe or file that does not exist |
| 5 | an optional package is missing |
| 6 | an input image or training data that cannot be used |
| 7 | a result cannot be written |
| 8 | a training run that cannot start or go on |
| 9 | a model failed while drawing |
| 10 | a server's queue is full |
| 11 | a server is not ready: starting, stopping, or out of memory |
| 12 | an order was not done by its deadline |
| 13 | a server does not let this caller do this |
| 14 | more bytes or pixels than are taken |
| 15 | an order that contradicts what is there: a key used again, a job in another state |
| 130 | cancelled |
"""


def page() -> str:
    """Return the reference page as Markdown."""
    parts = [_HEAD, _section("fewstep", [])]
    parts += [_section(f"fewstep {name}", [name]) for name in COMMANDS]
    return "\n".join([*parts, _EXIT_CODES])


def _section(title: str, arguments: list[str]) -> str:
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        # The width is that of the page, not of the terminal the page is made in.
        group().main(
            args=[*arguments, "--help"], prog_name="fewstep", standalone_mode=False, terminal_width=100
        )
    lines = "\n".join(line.rstrip() for line in buffer.getvalue().strip().splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(page())
