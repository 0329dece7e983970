r"""Attention: how much each stretch of a text counts, by its brackets, and where BREAK ends a chunk.

The dialect is that of AUTOMATIC1111's web UI 1.10 (``parse_prompt_attention``)::

    (x)       x counts 1.1 times         (x:1.3)   x counts 1.3 times; sign, ".5" and spaces are allowed
    [x]       x counts 1 / 1.1 times     \( \) \[ \] \\   the character itself
    BREAK     ends the chunk

Nesting multiplies; a bracket that nobody closes reaches to the end; a closer without an opener is text; any
other backslash vanishes. Departures, all on purpose:

- BREAK breaks wherever it stands. There, inside weights, its marker is multiplied too and so becomes a word.
- A number that is none (``(x:1.2.3)``) is text; there it ends the whole request with an error.
- Weights are held within ±1000, so that a thousand brackets stay a finite number.
- The time is linear in the text; there, n nested brackets cost n squared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

EmphasisMode = Literal["original", "no_norm", "ignore", "none"]
EMPHASIS_MODES: tuple[EmphasisMode, ...] = ("original", "no_norm", "ignore", "none")

ROUND = 1.1
SQUARE = 1 / 1.1
MAX_WEIGHT = 1000.0
_NUMBER = r"[+-]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})"
_PIECE = re.compile(rf"\\[()\[\]\\]?|:\s*({_NUMBER})\s*\)|[()\[\]:]|[^\\()\[\]:]+")
# Spaces are stripped afterwards: \s* before a word that does not come costs the square of their number.
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text and how much it counts; or the end of a chunk, which is `BREAK`."""

    text: str
    weight: float
    is_break: bool = False


BREAK = Segment("BREAK", -1.0, is_break=True)
"""Where BREAK stood. Its weight is what the web UI marks it with and weighs nothing."""


def parse_attention(text: str, emphasis: EmphasisMode = "original") -> tuple[Segment, ...]:
    """Split a text into runs of equal weight; at least one segment, ("", 1.0) for an empty text.

    Args:
        text: any text, after extra networks, AND and editing were dealt with.
        emphasis: with ``none`` the whole text is one segment as it stands, brackets, backslashes and BREAK
            included. The other modes differ only in `fewstep.prompt.emphasis`.
    """
    if emphasis == "none":
        return (Segment(text, 1.0),)
    pieces = _pieces(text)
    factors = _factors(pieces)
    rounds, squares = [1.0], [1.0]
    runs: list[tuple[list[str], float] | None] = []
    for index, (kind, content) in enumerate(pieces):
        stack = rounds if kind in ("(", ")") else squares
        match kind:
            case "(" | "[":
                stack.append(_held(stack[-1] * factors[index]))
            case ")" | "]":
                stack.pop()
            case "BREAK":
                runs.append(None)
            case _:
                weight = _held(rounds[-1] * squares[-1])
                last = runs[-1] if runs else None
                if last is not None and last[1] == weight:
                    last[0].append(content)
                elif content:
                    runs.append(([content], weight))
    segments = tuple(BREAK if run is None else Segment("".join(run[0]), run[1]) for run in runs)
    return segments or (Segment("", 1.0),)


def _pieces(text: str) -> list[tuple[str, str]]:
    """(kind, content): a bracket that has its partner or may still find it, ``BREAK``, or ``text``.

    The content of a round closer is its number, or "" when it has none.
    """
    pieces: list[tuple[str, str]] = []
    depth = {"(": 0, "[": 0}
    for found in _PIECE.finditer(text):
        piece, number = found[0], found[1]
        closes = "(" if number is not None or piece == ")" else "[" if piece == "]" else None
        if piece[0] == "\\":
            pieces.append(("text", piece[1:]))
        elif piece in depth:
            depth[piece] += 1
            pieces.append((piece, ""))
        elif closes is not None and depth[closes]:
            depth[closes] -= 1
            pieces.append((")" if closes == "(" else "]", number or ""))
        else:
            parts = _BREAK.split(piece)
            for index, part in enumerate(parts):
                if index > 0:
                    pieces.append(("BREAK", ""))
                    part = part.lstrip()
                pieces.append(("text", part.rstrip() if index < len(parts) - 1 else part))
    return pieces


def _factors(pieces: list[tuple[str, str]]) -> dict[int, float]:
    """The factor of every opener, by its index. Round and square brackets pair up independently."""
    factors: dict[int, float] = {}
    open_rounds: list[int] = []
    for index, (kind, content) in enumerate(pieces):
        if kind == "(":
            open_rounds.append(index)
            factors[index] = ROUND
        elif kind == "[":
            factors[index] = SQUARE
        elif kind == ")":
            opener = open_rounds.pop()
            if content:
                factors[opener] = _held(float(content))
    return factors


def _held(weight: float) -> float:
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))
