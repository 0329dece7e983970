"""Searching the history: words of a text, filters, and pages that neither skip nor repeat a picture.

Texts and searches are split by the same function, `words`, before the database sees them: so every database
finds the same pictures, and a search holds nothing but letters and digits, whatever was typed.

A search for several words finds pictures that have them all, each at the beginning of a word: ``red app``
finds "a red apple". Chinese, Japanese and Korean are written without spaces: every character counts as a word
there, and those that were typed together must stand together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, exists, or_, text
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from fewstep.errors import UsageError
from fewstep.server.tables import ImageRow, TagRow, storable

MAX_LIMIT = 1000
MAX_TEXT = 1000
MAX_WORDS = 32
_WORD = re.compile(r"[^\W_]+")
# Ideographs, kana, hangul and their extensions: one word each.
_SINGLE = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31a0-\u9fff"
    r"\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_CURSOR = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)-([0-9a-f]{32})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What to look for; everything that is given must hold."""

    text: str = ""
    """Beginnings of words of the prompts, the model, the student and the adapters."""
    owner: str | None = None
    """Whose pictures; None for everybody's."""
    favourite: bool | None = None
    tag: str | None = None
    model: str | None = None
    client: str | None = None
    since: float | None = None
    """Made at this time or later, seconds since 1970."""
    until: float | None = None
    """Made before this time."""
    trashed: bool = False
    """Look in the trash, and nowhere else."""
    limit: int = 50
    """At most so many; 1 to 1000."""
    before: str | None = None
    """Where the page before this one ended (`cursor`)."""


def words(value: str) -> list[list[str]]:
    """Return the words of a text, without case and accents: lists of those that stand together.

    A list has several words only where the script has no spaces: "红苹果" is [["红", "苹", "果"]].
    """
    plain = unicodedata.normalize("NFKD", value.casefold())
    # Without marks, é is e; what NFKD took apart otherwise (hangul) is put together again.
    plain = unicodedata.normalize("NFKC", "".join(c for c in plain if not unicodedata.combining(c)))
    found: list[list[str]] = []
    for word in _WORD.findall(plain):
        run: list[str] = []
        for part in re.split(f"({_SINGLE.pattern})", word):
            if not part:
                continue
            if _SINGLE.fullmatch(part):
                run.append(part)
                continue
            if run:
                found.append(run)
                run = []
            found.append([part])
        if run:
            found.append(run)
    return found


def searchable(texts: Iterable[str]) -> str:
    """Return the words of texts as they stand in the database: each between spaces."""
    return "".join(f" {part}" for value in texts for run in words(value) for part in run) + " "


def cursor(row: ImageRow) -> str:
    """Return where a page that ends with this row ends, for `Search.before`."""
    return f"{row.created!r}-{row.id}"


def statement(search: Search, *, full_text: bool) -> SelectOfScalar[ImageRow]:
    """Return the query for a page and one row more, newest first.

    Args:
        search: what to look for.
        full_text: use SQLite's index.

    Raises:
        UsageError: ``limit`` or ``before`` is none that a page has, or the text is longer than 1000
            characters or 32 words.
    """
    if not 1 <= search.limit <= MAX_LIMIT:
        raise UsageError(f"limit is {search.limit}: give 1 to {MAX_LIMIT}")
    query = select(ImageRow)
    trashed = col(ImageRow.trashed)
    query = query.where(trashed.is_not(None) if search.trashed else trashed.is_(None))
    for column, value in (
        (ImageRow.owner, search.owner),
        (ImageRow.favourite, search.favourite),
        (ImageRow.model, search.model),
        (ImageRow.client, search.client),
    ):
        if value is not None:
            query = query.where(col(column) == (storable(value) if isinstance(value, str) else value))
    if search.since is not None:
        query = query.where(col(ImageRow.created) >= search.since)
    if search.until is not None:
        query = query.where(col(ImageRow.created) < search.until)
    if search.tag is not None:
        query = query.where(
            exists().where(col(TagRow.image) == col(ImageRow.number), col(TagRow.tag) == storable(search.tag))
        )
    for condition in _matching(search.text, full_text):
        query = query.where(condition)
    if search.before is not None:
        query = query.where(_older(search.before))
    return query.order_by(col(ImageRow.created).desc(), col(ImageRow.id).desc()).limit(search.limit + 1)


def _older(before: str) -> Any:
    match = _CURSOR.fullmatch(before)
    if match is None:
        raise UsageError("the page does not exist: give the value that the page before it ended with")
    created, last = float(match[1]), match[2]
    return or_(
        col(ImageRow.created) < created, and_(col(ImageRow.created) == created, col(ImageRow.id) < last)
    )


def _matching(value: str, full_text: bool) -> list[Any]:
    if not value.strip():
        return []
    if len(value) > MAX_TEXT:
        raise UsageError(f"search of {len(value)} characters: give at most {MAX_TEXT}")
    wanted = words(value)
    if len(wanted) > MAX_WORDS:
        raise UsageError(f"search of {len(wanted)} words: give at most {MAX_WORDS}")
    if not wanted:  # punctuation only: no picture has a word of it
        return [text("1 = 0")]
    if full_text:
        # Words are letters and digits only; in quotes, not even AND or NEAR is one of FTS5's own.
        match = " AND ".join(f'"{" ".join(run)}" *' for run in wanted)
        found = text("images.number IN (SELECT rowid FROM image_words WHERE image_words MATCH :words)")
        return [found.bindparams(words=match)]
    # Neither % nor _ is a letter or a digit.
    return [col(ImageRow.words).like(f"% {' '.join(run)}%") for run in wanted]
