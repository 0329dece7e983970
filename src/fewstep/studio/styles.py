"""Styles: named pieces of prompts, put around what is typed.

The value of one in the form is its text as JSON, so that a form tells all of an order by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fewstep.prompt import styles
from fewstep.prompt.styles import Style
from fewstep.studio.client import Api

PATH: Final = "/api/v1/styles"
MOST: Final = 100
"""Characters of a name."""


async def known(api: Api) -> list[Style]:
    """The styles of the server."""
    return read(await api.get(PATH))


def read(listed: Mapping[str, Any]) -> list[Style]:
    """Those of a list of the server."""
    return [
        Style(str(one["name"]), str(one["prompt"]), str(one["negative_prompt"])) for one in listed["styles"]
    ]


def own(listed: Mapping[str, Any]) -> list[str]:
    """Names of those of a list that the visitor may replace and delete."""
    return [str(one["name"]) for one in listed["styles"] if one["own"]]


def choices(given: Iterable[Style]) -> list[tuple[str, str]]:
    """(name, value) for a form."""
    return [(style.name, _written(style)) for style in given]


def among(given: Iterable[Style], values: Any) -> list[str]:
    """The values of a form that still stand for styles that there are, as these are now."""
    there = {style.name: _written(style) for style in given}
    return [there[style.name] for style in _read(values) if style.name in there]


def applied(prompt: str, negative_prompt: str, values: Any) -> tuple[str, str]:
    """Both prompts with the styles that a form's values name.

    Raises:
        UsageError: they make a prompt too long.
    """
    return styles.apply(prompt, negative_prompt, _read(values))


def _written(style: Style) -> str:
    return json.dumps([style.name, style.prompt, style.negative_prompt])


def _read(values: Any) -> Sequence[Style]:
    found = []
    for value in values if isinstance(values, list | tuple) else ():
        try:
            name, prompt, negative = json.loads(value)
        except (TypeError, ValueError):
            continue
        found.append(Style(str(name), str(prompt), str(negative)))
    return found
