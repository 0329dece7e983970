r"""Wildcards and choices: one template text becomes another text for every seed.

=======================  =================================================================================
``__name__``             a line of the wildcard of that name, itself expanded
``{a|b|c}``              one of the arms, itself expanded; spaces are kept
``{2::a|b}``             a is drawn twice as often as b; weight 0 is never drawn
``{2$$a|b|c}``           two different arms in random order, with ", " between them
``{1-2$$ and $$a|b|c}``  one or two, with " and " between them
``\{``, ``\|``, ``\}``         not read here; the backslash goes on to the attention grammar, which drops it
=======================  =================================================================================

A ``|`` inside ``[..]`` belongs to an alternation. A brace that nobody closes is text.

The forms are those of the ``dynamicprompts`` package, which is not used: its parser (pyparsing) raises
RecursionError at 40 nested braces and on a wildcard that contains itself (after 3 s), and takes 3 s for a
thousand choices. A choice of one arm loses its braces here as there; its separator is "," without a space.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fewstep.errors import UsageError
from fewstep.prompt.grammar import MAX_CHARACTERS, shortlist

MAX_DEPTH = 16
MAX_WILDCARDS = 1_000
MAX_READ = 250_000
MAX_TEMPLATE = 65_536
SEPARATOR = ", "

_PIECE = re.compile(r"__(?!_)([\w./ \\-]{1,128}?)__|\\.|[{}|\[\]]|[^\\{}|\[\]_]+|_|\\", re.DOTALL)
_WEIGHT = re.compile(r"\s*([0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})::")
_COUNT = re.compile(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\$\$(?:([^$]{0,32})\$\$)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """What became of a template."""

    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """A closed brace: where it ends, its arms as ranges of pieces with their weights, how many are drawn."""

    closer: int
    arms: tuple[tuple[int, int, float], ...]
    fewest: int
    most: int
    separator: str


@dataclass(frozen=True, slots=True)
class _Template:
    """A text in pieces, the choices by their opening piece, wildcard names by their piece."""

    pieces: list[str]
    choices: dict[int, _Choice]
    names: dict[int, str]


@dataclass(slots=True)
class _Frame:
    """An open bracket and its own bars."""

    opener: int
    bars: list[int] = field(default_factory=list)


def expand(text: str, seed: int, wildcards: Mapping[str, Sequence[str]] | None = None) -> Expansion:
    """Expand a template; the same text, seed and wildcards give the same prompt, on every machine.

    Only arms that were chosen are expanded, from left to right. What cannot be expanded stays as it stands
    and is said: unknown names, wildcards nested deeper than 16 (one that contains itself, say), more than
    1,000 of them or more than 250,000 characters read. The result is cut off at `MAX_CHARACTERS`.

    Args:
        text: a template.
        seed: from 0; image i of a batch takes seed + i.
        wildcards: name -> lines, see `fewstep.prompt.wildcard_files`. Names are keys: what they look like
            does not matter here, and ``__../x__`` is just a name that nobody has.

    Raises:
        UsageError: the seed is negative.
        DataError: from the mapping, a file that cannot be read.
    """
    if seed < 0:
        raise UsageError(f"seed is {seed}: give 0 or more")
    # Mersenne Twister's random() is the same in all versions of Python; nothing else of the module is used.
    expander = _Expander(random.Random(seed).random, {} if wildcards is None else wildcards)  # noqa: S311
    if len(text) > MAX_TEMPLATE:
        text = text[:MAX_TEMPLATE]
        expander.warnings.append(f"only the first {MAX_TEMPLATE} characters of the template are read")
    return expander.run(text)


class _Expander:
    """What was written and spent so far.

    Args:
        draw: uniform numbers in [0, 1).
        wildcards: name -> lines.
    """

    def __init__(self, draw: Callable[[], float], wildcards: Mapping[str, Sequence[str]]) -> None:
        self._draw = draw
        self._wildcards = wildcards
        self._out: list[str] = []
        self._read = self._used = 0
        # What is still to be done, last first: a stretch of a template and its depth, or a text to write.
        self._todo: list[tuple[_Template, int, int, int] | str] = []
        self.warnings: list[str] = []

    def run(self, text: str) -> Expansion:
        self._begin(text, 0)
        while self._todo:
            task = self._todo.pop()
            if isinstance(task, str):
                self._out.append(task)
            else:
                self._stretch(*task)
        text = "".join(self._out)
        if len(text) > MAX_CHARACTERS:
            self.warnings.append(
                f"the expanded prompt is longer than {MAX_CHARACTERS} characters: the rest is cut off"
            )
        return Expansion(text=text[:MAX_CHARACTERS], warnings=shortlist(self.warnings))

    def _begin(self, text: str, depth: int) -> None:
        template = _template(text)
        self._read += len(text)
        self._todo.append((template, 0, len(template.pieces), depth))

    def _stretch(self, template: _Template, index: int, end: int, depth: int) -> None:
        """Write up to the next choice or wildcard, and put that and the rest on the list."""
        while index < end and index not in template.choices and index not in template.names:
            self._out.append(template.pieces[index])
            index += 1
        if index == end:
            return
        choice = template.choices.get(index)
        if choice is None:
            self._todo.append((template, index + 1, end, depth))
            self._wildcard(template.names[index], template.pieces[index], depth)
            return
        self._todo.append((template, choice.closer + 1, end, depth))
        for place, (low, high) in enumerate(reversed(_drawn(choice, self._draw))):
            if place:
                self._todo.append(choice.separator)
            self._todo.append((template, low, high, depth))

    def _wildcard(self, name: str, piece: str, depth: int) -> None:
        lines = self._wildcards.get(name)
        refusal = self._refusal(name, lines, depth)
        if lines is None or refusal is not None:
            self.warnings.append(f"{piece} is left as it stands: {refusal}")
            self._out.append(piece)
            return
        self._used += 1
        self._begin(lines[int(self._draw() * len(lines))], depth + 1)

    def _refusal(self, name: str, lines: Sequence[str] | None, depth: int) -> str | None:
        if lines is None:
            path = ".." in name or name.startswith(("/", "\\"))
            return "names of wildcards are keys, never paths" if path else "there is no wildcard of that name"
        if not lines:
            return "it has no lines"
        if depth >= MAX_DEPTH:
            return f"it is nested deeper than {MAX_DEPTH}; does it contain itself?"
        if self._used >= MAX_WILDCARDS:
            return f"more than {MAX_WILDCARDS} wildcards are not expanded"
        if self._read > MAX_READ:
            return f"their lines hold more than {MAX_READ} characters"
        return None


def _template(text: str) -> _Template:
    pieces: list[str] = []
    names: dict[int, str] = {}
    for found in _PIECE.finditer(text):
        if found[1] is not None:
            names[len(pieces)] = found[1]
        pieces.append(found[0])
    return _Template(pieces, _choices(pieces), names)


def _choices(pieces: list[str]) -> dict[int, _Choice]:
    """The closed braces by their opening piece, in one pass. Counts and weights are cut off the pieces."""
    choices: dict[int, _Choice] = {}
    frames: list[_Frame] = []
    braces = 0
    for index, piece in enumerate(pieces):
        match piece:
            case "{" | "[":
                frames.append(_Frame(index))
                braces += piece == "{"
            case "|" if frames:
                frames[-1].bars.append(index)
            case "]" if frames and pieces[frames[-1].opener] == "[":
                frames.pop()
            case "}" if braces:
                braces -= 1
                # Square brackets that nobody closed were none: their bars are the brace's.
                unclosed = [frames.pop()]
                while pieces[unclosed[-1].opener] == "[":
                    unclosed.append(frames.pop())
                bars = [bar for frame in reversed(unclosed) for bar in frame.bars]
                choices[unclosed[-1].opener] = _closed(pieces, unclosed[-1].opener, bars, index)
    return choices


def _closed(pieces: list[str], opener: int, bars: list[int], closer: int) -> _Choice:
    fewest = most = 1
    separator = SEPARATOR
    if (count := _COUNT.match(pieces[opener + 1])) is not None:
        fewest = int(count[1])
        most = max(fewest, int(count[2] or count[1]))
        separator = SEPARATOR if count[3] is None else count[3]
        pieces[opener + 1] = pieces[opener + 1][count.end() :]
    arms = []
    cuts = [opener, *bars, closer]
    for low, high in itertools.pairwise(cuts):
        weight = 1.0
        if (given := _WEIGHT.match(pieces[low + 1])) is not None:
            weight = float(given[1])
            pieces[low + 1] = pieces[low + 1][given.end() :]
        arms.append((low + 1, high, weight))
    return _Choice(closer, tuple(arms), fewest, most, separator)


def _drawn(choice: _Choice, draw: Callable[[], float]) -> list[tuple[int, int]]:
    """Arms in the order drawn, without putting back: those with the smallest -ln(u) / weight.

    Efraimidis & Spirakis 2006 (Information Processing Letters 97, algorithm A): the same distribution as
    drawing one after the other with probabilities by weight, in n log n instead of n times the number drawn.
    """
    many = choice.fewest + int(draw() * (choice.most - choice.fewest + 1)) if choice.most > 1 else choice.most
    keys = sorted(
        (-math.log(1.0 - draw()) / weight, low, high) for low, high, weight in choice.arms if weight > 0.0
    )
    return [(low, high) for _, low, high in keys[:many]]
