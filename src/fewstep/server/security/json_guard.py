"""Looking through a JSON text before it is parsed, so that no text makes the parser slow, deep or vague.

Python's parser takes NaN, keeps the last of two equal keys, recurses, and spends quadratic time on long
integers. This scan knows just enough of the grammar to refuse those. It jumps over strings, which is where
the megabytes of a picture are, and everything else is bounded before it is looked at, so the time is bounded
too. What is not JSON in other ways is left to the parser.
"""

from __future__ import annotations

import json
import math
import re
from typing import Final

from fewstep.errors import UsageError

MAX_DEPTH: Final = 64
MAX_ITEMS: Final = 10_000
"""Keys and values of the whole text."""
MAX_DIGITS: Final = 100
"""Characters of a number."""
MAX_KEY: Final = 1_024
"""Bytes of a key."""
_MAX_PLAIN: Final = 1 << 20
"""Bytes that do not stand in strings."""
_MAX_QUOTES: Final = 100_000
"""Quotes within strings, each of which takes a step."""

_MARKS: Final = re.compile(rb"[\[\]{},:]")
_NUMBER: Final = re.compile(rb"[-+]?[0-9][0-9.eE+-]*")
_NO_NUMBER: Final = re.compile(rb"NaN|Infinity")
# Halves of characters outside the basic plane are written as two escapes, or they are no text. Possessive, so
# that it is one pass: whole escapes are jumped over, and where it stops there is a half, or no JSON.
_WHOLE: Final = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?![dD][89a-fA-F])"
    rb"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+"
)
_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class MalformedJson(ValueError):
    """A text that is no JSON, or no UTF-8."""


def check_json(data: bytes) -> None:
    """Refuse a JSON text that a parser should not see.

    Raises:
        MalformedJson: not UTF-8, or a string that does not end.
        UsageError: NaN or Infinity, a number that is too long or too large, a key that is there twice or is
            too long, too many levels or values, half a character.
    """
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedJson(f"byte {error.start} is not UTF-8") from None
    if b"\0" in data[:4]:  # UTF-16 and UTF-32, which Python's parser would read
        raise MalformedJson("not UTF-8")
    check_characters(data)
    keys: list[set[bytes] | None] = []  # one entry a level; of arrays None
    position = plain = items = quotes = 0
    while True:
        start = data.find(b'"', position)
        end = len(data) if start < 0 else start
        plain += end - position
        if plain > _MAX_PLAIN:
            raise UsageError("JSON body: more than a megabyte beside its strings; send less at once")
        items = _structure(data[position:end], keys, items)
        if items > 2 * MAX_ITEMS:
            raise UsageError(f"JSON body: more than {MAX_ITEMS} keys and values; send less at once")
        if start < 0:
            return
        stop, quotes = _string_end(data, start + 1, quotes)
        position = stop + 1
        # A key is a string that a colon follows.
        following = data[position : position + 64].lstrip(b" \t\r\n")
        if following.startswith(b":") and keys and (names := keys[-1]) is not None:
            _remember(data[start:position], names)


def check_characters(data: bytes) -> None:
    """Refuse a JSON text in which an escape is half a character, which no file or database has bytes for.

    Raises:
        UsageError: names the byte.
    """
    if _HALF.search(data) and (whole := _WHOLE.match(data)) and _HALF.match(data, whole.end()):
        raise UsageError(f"JSON: half a character at byte {whole.end()}; send whole ones")


def _structure(part: bytes, keys: list[set[bytes] | None], items: int) -> int:
    """Follow the brackets between two strings and look at the numbers there; return the count of items."""
    if not part or part in (b",", b":", b", ", b": "):
        return items + 1
    for match in _MARKS.finditer(part):
        mark = match[0]
        if mark == b"{" or mark == b"[":
            keys.append(set() if mark == b"{" else None)
            if len(keys) > MAX_DEPTH:
                raise UsageError(f"JSON body: more than {MAX_DEPTH} levels; send a flatter one")
        elif mark == b"}" or mark == b"]":
            if keys:
                keys.pop()
        items += 1
        if items > 2 * MAX_ITEMS:
            return items
    if _NO_NUMBER.search(part):
        raise UsageError("JSON body: NaN and Infinity are no JSON; give a number")
    for number in _NUMBER.findall(part):
        if len(number) > MAX_DIGITS:
            raise UsageError(f"JSON body: a number of more than {MAX_DIGITS} characters; give a smaller one")
        if (b"e" in number or b"E" in number) and _overflows(number):
            raise UsageError(f"JSON body: {number.decode('ascii')} is too large; give a smaller number")
    return items


def _overflows(number: bytes) -> bool:
    try:
        return not math.isfinite(float(number))
    except ValueError:  # not a number after all; the parser says so
        return False


def _string_end(data: bytes, start: int, quotes: int) -> tuple[int, int]:
    """Where the string ends that begins at ``start``: at a quote after an even number of backslashes."""
    position = start
    while True:
        end = data.find(b'"', position)
        if end < 0:
            raise MalformedJson("a string does not end")
        # Backslashes before the last quote belong to that one, so all of these slices together are one pass.
        before = data[position:end]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return end, quotes
        quotes += 1
        if quotes > _MAX_QUOTES:
            raise UsageError(f"JSON body: more than {_MAX_QUOTES} quotes within strings; send less at once")
        position = end + 1


def _remember(key: bytes, names: set[bytes]) -> None:
    if len(key) > MAX_KEY:
        raise UsageError(f"JSON body: a key of more than {MAX_KEY} bytes; give a known one")
    if b"\\" in key:  # "\u0061" is "a"
        try:
            key = json.dumps(json.loads(key), ensure_ascii=False).encode("utf-8", "surrogatepass")
        except ValueError:
            return
    if key in names:
        shown = key[:60].decode("utf-8", "replace")
        raise UsageError(f"JSON body: the key {shown} is there twice; give it once")
    names.add(key)
