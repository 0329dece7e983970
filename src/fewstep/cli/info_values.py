"""Values out of files, made fit for a terminal: they are anybody's text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fewstep.cli import output
from fewstep.prompt.printable import plain

_SHOWN = 300
_MAX_LINES = 200


def parsed(text: str) -> Any:
    """The value that a text is in JSON, or the text itself."""
    try:
        return plain(json.loads(text))
    except (ValueError, RecursionError):
        return plain(text)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print facts a line each, indented by their depth; long texts are cut, as ``--json`` has them whole."""
    for line in lines(facts):
        output.result(line)


def lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of `print_facts`; at most 200 of one table."""
    for number, (key, value) in enumerate(facts.items()):
        if number == _MAX_LINES:
            yield f"{indent}... {len(facts) - number} more; --json has them"
            return
        label = f"{indent}{_line(key)}:"
        if isinstance(value, Mapping) and value:
            yield label
            yield from lines(value, indent + "  ")
        elif isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value):
            yield label
            yield from (f"{indent}  {_line(one)}" for one in value[:_MAX_LINES])
        elif value not in (None, "", {}, []):
            yield f"{label} {_line(value if isinstance(value, str) else json.dumps(value))}"


def _line(text: str) -> str:
    """A text on one line: a line of a file's own could look like one of ours."""
    one = text.replace("\r", "\\r").replace("\n", "\\n")
    return one if len(one) <= _SHOWN else f"{one[:_SHOWN]}... ({len(one)} characters; --json has all)"
