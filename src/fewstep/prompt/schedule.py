"""Prompt editing and alternation: one text becomes a schedule of texts over the steps.

The dialect is that of AUTOMATIC1111's web UI 1.10 (``get_learned_conditioning_prompt_schedules``)::

    [from:to:when]   "from" up to and including step `when`, then "to"
    [to:when]        nothing, then "to"                 [from::when]   "from", then nothing
    [a|b|c]          a, b, c, a, ... by turns, one a step; arms may be empty

`when` with a point is a share of the steps, without one a step. The texts still hold their attention
brackets. Nesting is allowed; a bracket that fits none of these forms is text, and so is what encloses it.

The web UI reads this with a context-free grammar (lark's Earley parser), which takes 2 s for 200 open
brackets, 13 s for 400 and 88 s for 800 on this project's machine, and raises RecursionError for 400 nested
edits. Matching brackets with a stack takes one pass, so that is what stands here. Where all brackets fit,
both give the same schedules. Where some do not, their grammar is ambiguous and lark picks a reading; here
every edit that is complete in itself is read. What their parser refuses altogether (a ``|`` outside of
``[..]``, a backslash with nothing behind it) leaves the whole text literal here too, and is said.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

# What all the texts of a schedule may hold together: 2,000 characters that change in each of 50 steps.
MAX_RENDERED = 100_000
SHOWN = 60
_PIECE = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,5})?)\s*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One ``[from:to:when]`` or ``[a|b|c]`` of a text, and what became of it in these steps."""

    kind: Literal["editing", "alternation"]
    source: str
    """As it was typed, shortened to 60 characters."""
    arms: tuple[str, ...]
    """What is drawn by turns, before any nested edit is resolved, each shortened; two for editing."""
    drawn: tuple[bool, ...]
    """Whether each arm is drawn in any step."""
    when: str | None = None
    """Editing: the number as typed."""
    last_step: int | None = None
    """Editing: the last step (from 1) of the first arm; 0 or less is never, the number of steps always."""
    share: float | None = None
    """Editing with a share: how many steps that is; ``last_step`` is the whole ones of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSchedule:
    """Texts over the steps of one pass."""

    entries: tuple[tuple[int, str], ...]
    """(last step of the text, from 1; text), ascending; the last one's step is the number of steps."""
    edits: tuple[Edit, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Frame:
    """An open bracket: its piece, and the pieces of its own ``:`` and ``|``."""

    opener: int
    colons: list[int] = field(default_factory=list)
    pipes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Node:
    """A closed edit: arms as ranges of pieces."""

    closer: int
    arms: tuple[tuple[int, int], ...]
    when: str | None
    last_step: int
    share: float | None

    def arm(self, step: int) -> int:
        if self.when is not None:
            return 0 if step <= self.last_step else 1
        return (step - 1) % len(self.arms)


def text_schedule(
    text: str, num_inference_steps: int, *, hires_steps: int | None = None, budget: int = MAX_RENDERED
) -> TextSchedule:
    """Resolve editing and alternation.

    Neighbouring steps of the same text are one entry (the web UI lists them one by one). Linear in the text
    and in the number of steps at which something changes.

    Args:
        text: any text without AND and extra networks.
        num_inference_steps: steps of the base pass, from 1.
        hires_steps: given, the schedule is that of a second pass of so many steps, whose shares run from 1.0
            to 2.0 and whose steps count on from ``num_inference_steps``.
        budget: characters that the texts may hold together; beyond, the brackets stay text, and it is said.
    """
    steps = num_inference_steps if hires_steps is None else hires_steps
    pieces = _PIECE.findall(text)
    try:
        nodes = _nodes(pieces, num_inference_steps, hires_steps)
    except _Literal as reason:
        said = f"{reason}: nothing is read as editing or alternation in {_shorten(text)!r}"
        return TextSchedule(entries=((steps, text),), warnings=(said,) if "[" in text else ())
    boundaries = {steps, *(n.last_step for n in nodes.values() if n.when is not None and n.last_step >= 1)}
    if any(node.when is None for node in nodes.values()):
        boundaries.update(range(1, steps + 1))
    if len(boundaries) * len(text) > budget:
        said = (
            f"a prompt of {len(text)} characters that changes at {len(boundaries)} steps is too much text: "
            "nothing is read as editing or alternation; shorten it or let it change less often"
        )
        return TextSchedule(entries=((steps, text),), warnings=(said,))
    drawn: set[tuple[int, int]] = set()
    entries: list[tuple[int, str]] = []
    for step in sorted(boundaries):
        now = "".join(_rendered(pieces, nodes, step, drawn))
        if entries and entries[-1][1] == now:
            entries.pop()
        entries.append((step, now))
    return TextSchedule(entries=tuple(entries), edits=tuple(_edits(pieces, nodes, drawn)))


class _Literal(Exception):
    """Why the brackets of a text mean nothing."""


def _nodes(pieces: list[str], base_steps: int, hires_steps: int | None) -> dict[int, _Node]:
    """The edits by the index of their opener.

    A stray bracket or separator makes everything that encloses it stray, but nothing that it encloses: so on
    one, the stack of open brackets is emptied, and what was closed before keeps its meaning.
    """
    nodes: dict[int, _Node] = {}
    frames: list[_Frame] = []
    pipes = 0
    for index, piece in enumerate(pieces):
        match piece:
            case "[" | "(":
                frames.append(_Frame(index))
            case ":" if frames:
                frames[-1].colons.append(index)
            case "|":
                pipes += 1
                if frames:
                    frames[-1].pipes.append(index)
            case "]" | ")":
                if not frames or pieces[frames[-1].opener] != ("[" if piece == "]" else "("):
                    frames.clear()
                    continue
                frame = frames.pop()
                node = _closed(pieces, frame, index, base_steps, hires_steps)
                if node is None:
                    frames.clear()
                elif node.arms:
                    nodes[frame.opener] = node
                    pipes -= len(frame.pipes)
            case "\\":
                raise _Literal("a backslash stands before nothing")
    if pipes:
        raise _Literal('a "|" stands outside of [a|b]')
    return nodes


def _closed(
    pieces: list[str], frame: _Frame, closer: int, base_steps: int, hires_steps: int | None
) -> _Node | None:
    """The edit that ends here, a node without arms for plain emphasis, None for what is no form at all."""
    emphasis = _Node(closer, (), None, 0, None)
    if pieces[closer] == ")":
        return emphasis if len(frame.colons) <= 1 and not frame.pipes else None
    if frame.pipes:
        cuts = [frame.opener, *frame.pipes, closer]
        arms = tuple((low + 1, high) for low, high in itertools.pairwise(cuts))
        return None if frame.colons else _Node(closer, arms, None, 0, None)
    if not frame.colons:
        return emphasis
    last = frame.colons[-1]
    number = _WHEN.fullmatch(pieces[last + 1]) if closer == last + 2 else None
    if number is None or len(frame.colons) > 2:
        return None
    before = (frame.opener + 1, frame.colons[0] if len(frame.colons) == 2 else frame.opener + 1)
    after = (frame.colons[0] + 1 if len(frame.colons) == 2 else frame.opener + 1, last)
    last_step, share = _last_step(number[1], base_steps, hires_steps)
    return _Node(closer, (before, after), number[1], last_step, share)


def _last_step(when: str, base_steps: int, hires_steps: int | None) -> tuple[int, float | None]:
    """The last step before the change, as the web UI rounds it; and the unrounded one of a share."""
    steps = base_steps if hires_steps is None else hires_steps
    value = max(-1e9, min(1e9, float(when)))  # 1e999 is a number too
    if "." in when:
        share = (value - (0.0 if hires_steps is None else 1.0)) * steps
        return min(steps, int(share)), share
    return min(steps, int(value - (0 if hires_steps is None else base_steps))), None


def _rendered(
    pieces: list[str], nodes: dict[int, _Node], step: int, drawn: set[tuple[int, int]]
) -> Iterator[str]:
    """The pieces of the text at a step; notes the arms that were taken."""
    index, end = 0, len(pieces)
    resume: list[tuple[int, int]] = []
    while True:
        if index == end:
            if not resume:
                return
            index, end = resume.pop()
        elif index in nodes:
            node = nodes[index]
            arm = node.arm(step)
            drawn.add((index, arm))
            resume.append((node.closer + 1, end))
            index, end = node.arms[arm]
        else:
            yield pieces[index]
            index += 1


def _edits(pieces: list[str], nodes: dict[int, _Node], drawn: set[tuple[int, int]]) -> Iterator[Edit]:
    for opener in sorted(nodes):
        node = nodes[opener]
        yield Edit(
            kind="alternation" if node.when is None else "editing",
            source=_excerpt(pieces, opener, node.closer + 1),
            arms=tuple(_excerpt(pieces, low, high) for low, high in node.arms),
            drawn=tuple((opener, arm) in drawn for arm in range(len(node.arms))),
            when=node.when,
            last_step=None if node.when is None else node.last_step,
            share=node.share,
        )


def _excerpt(pieces: list[str], low: int, high: int) -> str:
    # No more pieces than can be shown: edits nest, and the whole of each would be quadratic.
    return _shorten("".join(piece[: SHOWN + 1] for piece in pieces[low : min(high, low + SHOWN + 1)]))


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
