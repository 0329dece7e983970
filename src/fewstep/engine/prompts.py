"""What a request's prompts ask for: which texts are encoded, and which of them draw at which step.

The plan is made from the prompt as it was typed, whenever it is needed: a request stays a list of plain
values that can be written down and replaced one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.engine import text
from fewstep.engine.adapters import AdapterUse
from fewstep.prompt.advice import few_step_warnings
from fewstep.prompt.attention import Segment
from fewstep.prompt.grammar import Plan, Subprompt, parse, shortlist

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import Backend, Conditions, ModelInfo
    from fewstep.engine.embeddings import Learned
    from fewstep.engine.request import GenerateRequest
    from fewstep.engine.tokens import Tokens
    from fewstep.prompt.attention import EmphasisMode

Rows = tuple[int, ...]
"""Rows of encoded texts that draw one step: the negative prompt's, then one of each joined prompt."""

_parsed: Callable[..., Plan] = functools.lru_cache(maxsize=16)(parse)


@dataclass(frozen=True, slots=True)
class Track:
    """One prompt over the steps."""

    lines: tuple[tuple[int, text.Line], ...]
    """(last step, counted from 1; text), ascending."""

    def at(self, step: int) -> text.Line:
        """The text of a step; steps beyond the last keep the last text."""
        return next((line for last, line in self.lines if step <= last), self.lines[-1][1])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """All texts of a request, encoded, and where they are."""

    conditions: Conditions
    """B texts, all in the same number of chunks."""
    rows: dict[text.Line, int]

    def text(self, row: int) -> Conditions:
        """One of them, a single row."""
        return self.conditions.rows(slice(row, row + 1))

    def schedule(self, info: ModelInfo, request: GenerateRequest) -> Callable[[int], Rows]:
        """Step, counted from 1 -> the rows that draw it."""
        every = tracks(info, request)
        return lambda step: tuple(self.rows[track.at(step)] for track in every)


def adapters(prompt: str) -> tuple[tuple[AdapterUse, ...], list[str]]:
    """The adapters that the tags of a prompt ask for, and what of the tags is not followed."""
    uses, warnings = [], []
    for network in _parsed(prompt, 1).networks:
        if network.kind == "hypernet":
            warnings.append(f"<hypernet:{network.name}> is left out: hypernetworks are not supported")
            continue
        if network.dyn is not None:
            warnings.append(
                f"<lora:{network.name}>: dyn={network.dyn} is not supported, its own rank is used"
            )
        uses.append(AdapterUse(name=network.name, weight=network.unet, text_weight=network.te))
    return tuple(uses), list(shortlist(warnings))


def plans(request: GenerateRequest) -> tuple[Plan, Plan]:
    """The plans of the negative prompt and of the prompt, in the steps of the request's pass.

    As in the web UI, a share is one of the whole grid's steps also where a picture to start from leaves only
    the last of them to be run, and the first that is run is step 1.
    """
    steps, hires = request.num_inference_steps, None
    if request.first_steps is not None:
        # Of a second pass the web UI is told the steps that run.
        steps, hires = request.first_steps, max(int(steps * request.strength), 1)
    negative, prompt = (
        _parsed(typed, steps, hires_steps=hires, emphasis=request.emphasis, negative=is_negative)
        for typed, is_negative in ((request.negative_prompt, True), (request.prompt, False))
    )
    return negative, prompt


def weights(info: ModelInfo, request: GenerateRequest) -> tuple[float, ...]:
    """Weights of the prompts that are evaluated in every step.

    (1,) for one prompt, and where AND has no effect and so the first one is drawn.
    """
    prompts = plans(request)[1].subprompts
    if len(prompts) > 1 and _joins(info, request.sampling(info), request.guidance_scale):
        return tuple(part.weight for part in prompts)
    return (1.0,)


def tracks(info: ModelInfo, request: GenerateRequest) -> tuple[Track, ...]:
    """The negative prompt over the steps, then each prompt that is evaluated."""
    negative, prompt = plans(request)
    used = prompt.subprompts[: len(weights(info, request))]
    first = _track(text.NEGATIVE, request.negative_prompt, negative.subprompts[0])
    contract = request.sampling(info)
    if not _guides(contract, request.guidance_scale) and info.inputs != "instruct":
        # It has no effect, so it must not make the prompt longer either.
        # Embeddings were not looked for in it, see `read`.
        short = not request.embeddings and all(text.surely_short(info, line) for _, line in first.lines)
        first = first if short and len(first.lines) == 1 else Track(((1, text.Line(text.NEGATIVE)),))
    return (first, *(_track(text.PROMPT, request.prompt, part) for part in used))


def plain(info: ModelInfo, request: GenerateRequest, tokenizers: Callable[[], tuple[Tokens, ...]]) -> bool:
    """Whether a request's texts go to the encoders once and as they were typed: no grammar, and not long."""
    every = tracks(info, request)
    lines = [line for track in every for _, line in track.lines]
    typed = [request.negative_prompt, request.prompt]
    if request.embeddings or request.adapters or [line.text for line in lines] != typed:
        return False
    return all(line.plain for line in lines) and chunks(info, [request], tokenizers) == 1


def whole(info: ModelInfo, request: GenerateRequest) -> list[tuple[str, bool]]:
    """Every text that is encoded, without weights, and whether it has none and no BREAK."""
    lines = [line for track in tracks(info, request) for _, line in track.lines]
    return [(line.text, line.plain) for line in lines]


def read(info: ModelInfo, request: GenerateRequest) -> list[str]:
    """Every text that has an effect, without weights: where the names of embeddings are looked for."""
    negative, *rest = tracks(info, request)
    guided = _guides(request.sampling(info), request.guidance_scale) or info.inputs == "instruct"
    lines = [line for track in ([negative] if guided else []) + rest for _, line in track.lines]
    return [segment.text for line in lines for segment in line.segments if not segment.is_break]


def warnings(
    info: ModelInfo,
    contract: SamplingContract,
    *,
    prompt: str,
    negative_prompt: str,
    steps: int,
    runs: int,
    guidance_scale: float,
    emphasis: EmphasisMode,
) -> list[str]:
    """What of the prompts cannot be meant, or has no effect in so few steps or without guidance.

    Args:
        info: the model.
        contract: of whoever draws.
        prompt: as typed.
        negative_prompt: as typed; that it has no effect at all is said elsewhere.
        steps: of the whole grid.
        runs: those of them that are run.
        guidance_scale: 1 is no guidance.
        emphasis: of the request.
    """
    plan = _parsed(prompt, steps, emphasis=emphasis)
    negative = _parsed(negative_prompt, steps, emphasis=emphasis, negative=True)
    guides = _guides(contract, guidance_scale)
    found = [*plan.warnings, *negative.warnings]
    found += few_step_warnings(plan, guidance_scale=guidance_scale)
    if guides:
        found += few_step_warnings(negative, guidance_scale=guidance_scale)
    if len(plan.subprompts) > 1 and guidance_scale != 1.0 and not _joins(info, contract, guidance_scale):
        why = "is told its guidance as a number" if info.inputs != "instruct" else "follows an instruction"
        found.append(
            f"AND has no effect, because this model {why}: of the {len(plan.subprompts)} prompts only the "
            "first is drawn"
        )
    for edit in (edit for part in plan.subprompts for edit in part.edits):
        if edit.last_step is not None and runs <= edit.last_step < steps:
            found.append(
                f"{edit.source}: it would change after step {edit.last_step} of {steps}, and the picture to "
                f"start from leaves {runs}"
            )
    several = any(segment.is_break for part in plan.subprompts for _, line in
                  _track(text.PROMPT, prompt, part).lines for segment in line.segments)  # fmt: skip
    if several and all(encoder.kind == "t5" for encoder in info.encoders):
        found.append("BREAK has no effect: this model reads its text in one piece")
    return list(shortlist(found))


def chunks(
    info: ModelInfo, passes: Sequence[GenerateRequest], tokenizers: Callable[[], tuple[Tokens, ...]]
) -> int:
    """How many times a text encoder's length the longest text of a request takes.

    Args:
        info: the model.
        passes: what is drawn, one request per pass.
        tokenizers: asked for only where the text itself does not tell.
    """
    lines = _distinct(info, passes)
    learned = {one.name: one.counts for one in passes[0].embeddings}
    if not learned and all(text.surely_short(info, line) for line in lines):
        return 1
    return text.layout(info, tokenizers(), lines, learned).chunks


def encode(
    backend: Backend,
    tokens: tuple[Tokens, ...],
    passes: Sequence[GenerateRequest],
    learned: Learned | None = None,
) -> tuple[Encoded, list[str]]:
    """Encode every distinct text of the passes of a request, and say what of them was cut off.

    ``learned`` are the vectors of the embeddings of the request.
    """
    lines = _distinct(backend.info, passes)
    first = passes[0]
    conditions, said = text.encode(
        backend, tokens, lines, clip_skip=first.clip_skip, emphasis=first.emphasis, learned=learned
    )
    return Encoded(conditions=conditions, rows={line: row for row, line in enumerate(lines)}), said


def _distinct(info: ModelInfo, passes: Sequence[GenerateRequest]) -> list[text.Line]:
    """Each text once, those of the negative prompt first."""
    every = [tracks(info, request) for request in passes]
    ordered = [negative for negative, *_ in every] + [track for _, *rest in every for track in rest]
    return list(dict.fromkeys(line for track in ordered for _, line in track.lines))


def _track(name: str, typed: str, part: Subprompt) -> Track:
    lines = []
    for entry in part.schedule:
        segments = entry.segments
        # Without grammar the text goes to the tokenizer as it was typed, with the spaces around it.
        if segments == (Segment(typed.strip(), 1.0),):
            segments = (Segment(typed, 1.0),)
        lines.append((entry.last_step, text.Line(name, segments)))
    return Track(tuple(lines))


def _guides(contract: SamplingContract, guidance_scale: float) -> bool:
    return contract.guidance == "classifier_free" and guidance_scale != 1.0


def _joins(info: ModelInfo, contract: SamplingContract, guidance_scale: float) -> bool:
    return _guides(contract, guidance_scale) and info.inputs != "instruct"
