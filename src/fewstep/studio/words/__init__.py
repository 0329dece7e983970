"""Texts of the studio in its languages: a YAML file for each part of the page, beside this one.

A file ``create.yaml`` has entries ``name: {en: …, zh: …}``; the text is then ``words("create.name")``. Texts
may have ``{fields}``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Final

import yaml

LANGUAGES: Final = ("en", "zh")
COOKIE: Final = "fewstep_language"
"""Has the language that a person chose."""


class Words:
    """Texts in one language: ``words("create.draw")``, ``words("create.seconds", n=2)``.

    Args:
        language: one of `LANGUAGES`.
    """

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, name: str, /, **fields: object) -> str:
        """A text; a KeyError names one that is missing."""
        part, _, key = name.partition(".")
        text = texts(part)[key][self.language]
        return text.format(**fields) if fields else text


@functools.cache
def texts(part: str) -> dict[str, dict[str, str]]:
    """Every text of one part, by name and language."""
    file = resources.files(__name__).joinpath(f"{part}.yaml")
    found: dict[str, dict[str, str]] = yaml.safe_load(file.read_text("utf-8"))
    return found


def language_of(headers: Mapping[str, str], cookies: Mapping[str, str]) -> str:
    """The language that a browser asks for: the chosen one, else the first of its own that there is."""
    if (chosen := cookies.get(COOKIE)) in LANGUAGES:
        return chosen
    for wish in headers.get("accept-language", "").split(","):
        tag = wish.split(";")[0].strip().lower().split("-")[0]
        if tag in LANGUAGES:
            return tag
    return LANGUAGES[0]
