"""Styles: named pieces of prompts in a CSV file.

The file and its meaning are those of AUTOMATIC1111's web UI 1.10 (``modules/styles.py``). The columns are
``name``, ``prompt`` and ``negative_prompt``; very old files call the second one ``text``. A style with
``{prompt}`` in it is put around the prompt, another one behind it after a comma.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from fewstep.errors import DataError, NotFoundError, UsageError
from fewstep.prompt.grammar import MAX_CHARACTERS

PLACEHOLDER = "{prompt}"
MAX_BYTES = 4 * 2**20
MAX_STYLES = 10_000
_COLUMNS = ("name", "prompt", "negative_prompt")


@dataclass(frozen=True, slots=True)
class Style:
    """One row."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unapplied:
    """Two prompts without the styles that were found in them."""

    prompt: str
    negative_prompt: str
    styles: tuple[Style, ...]
    """In the order in which they were applied."""


def read(data: bytes | str) -> tuple[Style, ...]:
    """Read a style file. Rows without a name, or with one that begins with ``#``, are left out.

    Args:
        data: the file; bytes are UTF-8, with or without byte order mark. Of rows of one name the last counts.

    Raises:
        DataError: not a CSV file with a column ``name``, or larger than 4 MiB or 10,000 styles.
    """
    if len(data) > MAX_BYTES:
        raise DataError(f"style file: larger than {MAX_BYTES // 2**20} MiB; it is not one")
    text = data.decode("utf-8-sig", "replace") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    styles: dict[str, Style] = {}
    try:
        if "name" not in (reader.fieldnames or ()):
            raise DataError("style file: no column 'name'; its first line is name,prompt,negative_prompt")
        for row in reader:
            name = (row["name"] or "").strip()
            if not name or name.startswith("#"):
                continue
            prompt = row["prompt"] if "prompt" in row else row.get("text")
            styles[name] = Style(name, prompt or "", row.get("negative_prompt") or "")
            if len(styles) > MAX_STYLES:
                raise DataError(f"style file: more than {MAX_STYLES} styles; split it")
    except csv.Error as error:
        raise DataError(f"style file, line {reader.line_num}: {error}; write it with a spreadsheet") from None
    return tuple(styles.values())


def write(styles: Iterable[Style]) -> str:
    """The text of a style file, which `read` and the web UI read back. Save it as UTF-8."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    writer.writerows((style.name, style.prompt, style.negative_prompt) for style in styles)
    return out.getvalue()


def changed(data: bytes, name: str, style: Style | None) -> str:
    """The text of a style file with one style put in, in place of that of its name, or taken out.

    All other rows stay as they are, comments and further columns among them.

    Args:
        data: the file; empty for a new one.
        name: of the style, without space around it.
        style: what takes its place; None takes it out.

    Raises:
        DataError: as `read`, of what is there and of what would be; or not UTF-8, which would be lost.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError("style file: not UTF-8; save it as UTF-8") from None
    if text:
        read(text)
    rows = list(csv.reader(io.StringIO(text, newline=""))) or [list(_COLUMNS)]
    columns = rows[0]
    kept = [row for row in rows[1:] if _cell(row, columns, "name").strip() != name]
    if style is not None:
        second = "text" if "text" in columns and "prompt" not in columns else "prompt"
        columns += [column for column in (second, "negative_prompt") if column not in columns]
        values = {"name": name, second: style.prompt, "negative_prompt": style.negative_prompt}
        kept.append([values.get(column, "") for column in columns])
    out = io.StringIO(newline="")
    csv.writer(out).writerows([columns, *kept])
    made = out.getvalue()
    read(made)
    return made


def find(styles: Sequence[Style], names: Iterable[str]) -> tuple[Style, ...]:
    """The styles of these names, in the order of the names.

    Raises:
        NotFoundError: no style has that name; the message has the nearest ones.
    """
    by_name = {style.name: style for style in styles}
    found = []
    for name in names:
        if name not in by_name:
            near = get_close_matches(name[:100], list(by_name), n=3) or sorted(by_name)[:5]
            raise NotFoundError(f"style {name[:100]!r} is not known: there is {', '.join(near) or 'none'}")
        found.append(by_name[name])
    return tuple(found)


def apply(prompt: str, negative_prompt: str, styles: Iterable[Style]) -> tuple[str, str]:
    """Put styles into a prompt and its negative prompt, one after the other.

    Raises:
        UsageError: ``{prompt}`` stands in them so often that a prompt becomes longer than `MAX_CHARACTERS`.
    """
    for style in styles:
        prompt = _merged(style.prompt, prompt, style.name)
        negative_prompt = _merged(style.negative_prompt, negative_prompt, style.name)
    return prompt, negative_prompt


def unapply(prompt: str, negative_prompt: str, styles: Iterable[Style]) -> Unapplied:
    """Take out the styles that both prompts show, outermost first; each at most once.

    As in the web UI, a style with ``{prompt}`` in the middle is recognised by what is before and behind it,
    another one at the end; a style that says nothing is never found.
    """
    candidates = [style for style in styles if style.prompt or style.negative_prompt]
    found: list[Style] = []
    while True:
        for style in candidates:
            inner = _inner(style.prompt, prompt)
            inner_negative = _inner(style.negative_prompt, negative_prompt)
            if inner is not None and inner_negative is not None:
                break
        else:
            return Unapplied(prompt=prompt, negative_prompt=negative_prompt, styles=tuple(reversed(found)))
        prompt, negative_prompt = inner, inner_negative
        candidates.remove(style)
        found.append(style)


def _cell(row: Sequence[str], columns: Sequence[str], column: str) -> str:
    place = columns.index(column)
    return row[place] if place < len(row) else ""


def _merged(style: str, prompt: str, name: str) -> str:
    if not style.strip():
        return prompt.strip()
    times = style.count(PLACEHOLDER)
    # Counted before it is built: twenty styles with two placeholders each would make a million copies.
    added = len(", ") + len(prompt) if times == 0 else times * (len(prompt) - len(PLACEHOLDER))
    if len(style) + added > MAX_CHARACTERS:
        raise UsageError(
            f"style {name!r} makes the prompt longer than {MAX_CHARACTERS} characters: leave it out",
            field="styles",
        )
    if times:
        return style.replace(PLACEHOLDER, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)


def _inner(style: str, prompt: str) -> str | None:
    """What is left of a prompt without a style; None when the style is not there."""
    style, stripped = style.strip(), prompt.strip()
    if not style:
        return prompt
    before, placeholder, behind = style.partition(PLACEHOLDER)
    if not placeholder:
        return stripped.removesuffix(style).removesuffix(", ") if stripped.endswith(style) else None
    fits = len(before) + len(behind) <= len(stripped)
    if fits and stripped.startswith(before) and stripped.endswith(behind):
        return stripped[len(before) : len(stripped) - len(behind)]
    return None
