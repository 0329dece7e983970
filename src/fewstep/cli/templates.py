"""Styles, wildcards and choices: from what was typed to the prompt of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The prompts of some images that are drawn together."""

    prompt: str
    negative_prompt: str
    first: int
    """Number of the first image, from 0."""
    count: int
    further: dict[str, Any]
    """For the record: ``template`` and ``negative_template`` as typed, where that is something else, and
    ``styles``, the names of those that were put in."""
    warnings: tuple[str, ...] = ()


def texts(
    prompt: str,
    negative_prompt: str,
    *,
    seed: int,
    n: int,
    styles: Sequence[str] = (),
    styles_file: Path | None = None,
    wildcards: Path | None = None,
) -> list[Texts]:
    """Put styles in, and choose for each image.

    Images of one text are drawn together; a text that has choices or wildcards gives a request per image.

    Args:
        prompt: as typed.
        negative_prompt: as typed.
        seed: image i chooses by seed + i, in both prompts.
        n: number of images.
        styles: names, put in one after the other.
        styles_file: where they are.
        wildcards: folder; without one there are choices only.

    Raises:
        UsageError: styles without a file, or a prompt that becomes too long by them.
        NotFoundError: no such style, no such folder.
        DataError: a file cannot be read.
    """
    typed = (prompt, negative_prompt)
    styled = _styled(prompt, negative_prompt, styles, styles_file)
    if n < 1 or seed < 0 or (wildcards is None and not any("{" in text for text in styled)):
        return [_made(typed, styled, styles, 0, n)]
    from fewstep.prompt.wildcard_files import WildcardFolder
    from fewstep.prompt.wildcards import expand

    folder = None if wildcards is None else WildcardFolder(wildcards)
    made = []
    for index in range(n):
        results = [expand(text, seed + index, folder) for text in styled]
        warnings = tuple(dict.fromkeys(warning for result in results for warning in result.warnings))
        made.append(_made(typed, (results[0].text, results[1].text), styles, index, 1, warnings))
    if len({(one.prompt, one.negative_prompt) for one in made}) == 1:
        return [_made(typed, (made[0].prompt, made[0].negative_prompt), styles, 0, n, made[0].warnings)]
    return made


def _styled(prompt: str, negative_prompt: str, names: Sequence[str], file: Path | None) -> tuple[str, str]:
    if not names:
        return prompt, negative_prompt
    if file is None:
        raise UsageError(f"--style {names[0]}: say with --styles FILE where it is")
    from fewstep.prompt import styles

    try:
        with file.open("rb") as opened:
            data = opened.read(styles.MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give --styles a CSV file") from None
    return styles.apply(prompt, negative_prompt, styles.find(styles.read(data), names))


def _made(
    typed: tuple[str, str],
    texts: tuple[str, str],
    styles: Sequence[str],
    first: int,
    count: int,
    warnings: tuple[str, ...] = (),
) -> Texts:
    keys = ("template", "negative_template")
    further: dict[str, Any] = {
        key: template for key, template, text in zip(keys, typed, texts, strict=True) if template != text
    }
    if styles:
        further["styles"] = list(styles)
    return Texts(
        prompt=texts[0], negative_prompt=texts[1], first=first, count=count, further=further,
        warnings=warnings,
    )  # fmt: skip
