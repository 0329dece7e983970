"""The prompt grammar as a whole: a text becomes a plan of what is encoded at which step.

The order is that of AUTOMATIC1111's web UI 1.10: extra-network tags are cut out, AND splits, editing and
alternation make a schedule of each part, attention weighs each text of a schedule. Before it come styles and
wildcards (`fewstep.prompt.styles`, `fewstep.prompt.wildcards`), after it tokens and chunks
(`fewstep.prompt.chunks`).

Any text is a prompt: nothing here raises because of one. What cannot be meant is said in `Plan.warnings`. All
of it takes time linear in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.prompt.attention import EMPHASIS_MODES, MAX_WEIGHT, EmphasisMode, Segment, parse_attention
from fewstep.prompt.networks import Network, cut_networks
from fewstep.prompt.schedule import MAX_RENDERED, Edit, text_schedule

MAX_CHARACTERS = 16_384
"""Of a prompt; about 4,000 tokens, 50 times what one chunk holds. The rest is cut off, and it is said."""
MAX_SUBPROMPTS = 32
"""Parts between ANDs; each is an evaluation of the denoiser in every step."""
MAX_WARNINGS = 20

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([+-]?(?:[0-9]{1,32}\.?|[0-9]{0,32}\.[0-9]{1,32}))\s*")
# Control characters other than tab and newlines, and halves of surrogate pairs: no encoder has them,
# tokenizers and files choke on them.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One text and the steps in which it is drawn."""

    last_step: int
    """Counted from 1; the first step is the one after the entry before."""
    text: str
    """As scheduled, with attention brackets."""
    segments: tuple[Segment, ...]
    """The same without brackets, by weight; at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subprompt:
    """One part between ANDs."""

    weight: float
    schedule: tuple[Entry, ...]
    """At least one; ascending; the last one's ``last_step`` is the number of steps."""
    edits: tuple[Edit, ...] = ()

    def at(self, step: int) -> Entry:
        """The entry of a step, counted from 1; steps beyond the last keep the last entry."""
        return next((entry for entry in self.schedule if step <= entry.last_step), self.schedule[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a prompt asks for in a number of steps."""

    text: str
    """The prompt without network tags, control characters and what was too long."""
    num_inference_steps: int
    """Steps of the pass that the schedules are for: the second one's when ``hires_steps`` was given."""
    emphasis: EmphasisMode
    subprompts: tuple[Subprompt, ...]
    """At least one. More than one is AND: uncond + guidance * sum of weight * (cond - uncond)."""
    networks: tuple[Network, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(
    prompt: str,
    num_inference_steps: int,
    *,
    hires_steps: int | None = None,
    emphasis: EmphasisMode = "original",
    negative: bool = False,
) -> Plan:
    """Parse a prompt.

    Departures from the web UI: a weight such as ``:1.2`` at the end of a part counts only where there is an
    AND (there "a train at 10:30" is "a train at 10" thirty times over); space around the parts is dropped;
    see also `fewstep.prompt.attention`, `fewstep.prompt.schedule` and `fewstep.prompt.networks`.

    Args:
        prompt: any text, styles and wildcards already put in.
        num_inference_steps: steps of the pass, from 1.
        hires_steps: given, the plan is for a second pass of so many steps after the first; see
            `fewstep.prompt.schedule.text_schedule`.
        emphasis: how attention will be applied; ``none`` leaves its brackets in the text.
        negative: it is a negative prompt. There AND is a word, as in the web UI, and network tags leave the
            text without any effect, and it is said (in the web UI they stay as words).

    Raises:
        UsageError: a step count is below 1, or the emphasis is not known. Never because of the prompt.
    """
    for name, steps in (("steps", num_inference_steps), ("hires steps", hires_steps)):
        if steps is not None and steps < 1:
            raise UsageError(f"{name} is {steps}: at least one step is needed, give 1 or more")
    if emphasis not in EMPHASIS_MODES:
        raise UsageError(f"emphasis {emphasis!r} is not known: give one of {', '.join(EMPHASIS_MODES)}")
    text, warnings = cleaned(prompt)
    text, networks, said = cut_networks(text)
    warnings += said
    if negative and networks:
        warnings.append(
            f"networks in a negative prompt have no effect: {', '.join(n.name for n in networks)[:100]}"
        )
        networks = ()
    parts = [part.strip() for part in ([text] if negative else _AND.split(text))]
    if len(parts) > MAX_SUBPROMPTS:
        warnings.append(f"only the first {MAX_SUBPROMPTS} of {len(parts)} prompts joined by AND are used")
    budget = MAX_RENDERED
    subprompts: list[Subprompt] = []
    known: dict[str, tuple[Segment, ...]] = {}
    for part in parts[:MAX_SUBPROMPTS]:
        content, weight = _weighted(part) if len(parts) > 1 else (part, 1.0)
        schedule = text_schedule(content, num_inference_steps, hires_steps=hires_steps, budget=budget)
        warnings += schedule.warnings
        budget -= sum(len(text) for _, text in schedule.entries)
        for _, scheduled in schedule.entries:
            if scheduled not in known:
                known[scheduled] = parse_attention(scheduled, emphasis)
        entries = tuple(Entry(last_step=n, text=t, segments=known[t]) for n, t in schedule.entries)
        subprompts.append(Subprompt(weight=weight, schedule=entries, edits=schedule.edits))
    if any(abs(segment.weight) == MAX_WEIGHT for segments in known.values() for segment in segments):
        warnings.append(f"weights are held within {MAX_WEIGHT:g} and -{MAX_WEIGHT:g}")
    return Plan(
        text=text,
        num_inference_steps=num_inference_steps if hires_steps is None else hires_steps,
        emphasis=emphasis,
        subprompts=tuple(subprompts),
        networks=networks,
        warnings=shortlist(warnings),
    )


def cleaned(prompt: str) -> tuple[str, list[str]]:
    """A prompt without what no encoder reads and without what is too long, and sentences that say so."""
    warnings = []
    if len(prompt) > MAX_CHARACTERS:
        warnings.append(
            f"prompt of {len(prompt)} characters: only the first {MAX_CHARACTERS} are read; shorten it"
        )
    text, removed = _UNPRINTABLE.subn("", prompt[:MAX_CHARACTERS])
    if removed:
        warnings.append(f"{removed} control characters or broken characters were taken out of the prompt")
    return text, warnings


def shortlist(sentences: list[str]) -> tuple[str, ...]:
    """The sentences without repetition, at most 20, and how many there were beyond."""
    unique = list(dict.fromkeys(sentences))
    if len(unique) <= MAX_WARNINGS:
        return tuple(unique)
    return (*unique[:MAX_WARNINGS], f"and {len(unique) - MAX_WARNINGS} more of the kind")


def _weighted(part: str) -> tuple[str, float]:
    content, colon, tail = part.rpartition(":")
    number = _WEIGHT.fullmatch(tail) if colon else None
    if number is None:
        return part, 1.0
    return content.rstrip(), max(-MAX_WEIGHT, min(MAX_WEIGHT, float(number[1])))
