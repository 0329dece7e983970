"""Text becomes conditions here, for the engine and for evaluation alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewstep.engine.backends.base import Placed, chained, stacked
from fewstep.engine.tokens import Tokens
from fewstep.prompt.attention import Segment

if TYPE_CHECKING:
    from fewstep.engine.backends.base import (
        Backend,
        Conditions,
        FloatArray,
        IntArray,
        ModelInfo,
        TextEncoderInfo,
    )
    from fewstep.engine.embeddings import Learned
    from fewstep.prompt.attention import EmphasisMode
    from fewstep.prompt.chunks import Placeholder

NEGATIVE = "negative prompt"
PROMPT = "prompt"
Counts = Mapping[str, tuple[int, ...]]
"""Name of an embedding -> its vectors for every text encoder, 0 for one that reads the name as text."""
MAX_CHUNKS = 64
"""Of one text. A backend with static shapes compiles a network for every number of chunks."""


@dataclass(frozen=True, slots=True)
class Line:
    """One text that is encoded."""

    name: str
    """What it is called in a warning: `NEGATIVE` or `PROMPT`."""
    segments: tuple[Segment, ...] = (Segment("", 1.0),)

    @property
    def text(self) -> str:
        """Without weights; a space where BREAK stood."""
        return "".join(" " if segment.is_break else segment.text for segment in self.segments)

    @property
    def plain(self) -> bool:
        """Whether it has neither weights nor BREAK."""
        return all(segment.weight == 1.0 and not segment.is_break for segment in self.segments)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What one text encoder takes at once, for B texts; arrays of shape (B, L)."""

    ids: IntArray
    mask: IntArray
    weights: FloatArray
    placeholders: tuple[tuple[Placeholder, ...], ...] = ()
    """Of every text: where vectors of embeddings stand; empty without any."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Texts as the encoders of a model take them."""

    pieces: tuple[tuple[Piece | None, ...], ...]
    """Of every chunk, in order: one per encoder; None where an encoder has read everything."""
    warnings: tuple[str, ...]

    @property
    def chunks(self) -> int:
        """How many there are."""
        return len(self.pieces)


def tokenizers(info: ModelInfo) -> tuple[Tokens, ...]:
    """One tokenizer per text encoder of a model.

    Raises:
        CheckpointError: one cannot be read.
    """
    return tuple(Tokens(encoder.tokenizer_json, encoder.length) for encoder in info.encoders)


def embed(
    backend: Backend,
    tokens: tuple[Tokens, ...],
    texts: Mapping[str, str],
    *,
    clip_skip: int = 0,
) -> tuple[Conditions, list[str]]:
    """Encode texts.

    Args:
        backend: runs the text encoders.
        tokens: from `tokenizers`.
        texts: what a text is called in a warning -> the text; B of them. The one called `NEGATIVE` is zeros
            when it is empty and the model wants that (SDXL: ``force_zeros_for_empty_prompt``).
        clip_skip: last layers of the text encoder to leave out.

    Returns:
        Conditions of B rows, and a warning for every text that was cut.
    """
    encoded = [tokenizer.encode(texts) for tokenizer in tokens]
    # Two encoders with the same tokenizer cut the same text at the same place.
    warnings = list(dict.fromkeys(warning for _, _, found in encoded for warning in found))
    conditions = backend.encode_text(
        [ids for ids, _, _ in encoded], [mask for _, mask, _ in encoded], clip_skip
    )
    if backend.info.zero_empty_negative and texts.get(NEGATIVE) == "":
        conditions = _zeroed(conditions, list(texts).index(NEGATIVE))
    return conditions, warnings


def surely_short(info: ModelInfo, line: Line) -> bool:
    """Whether a text takes one chunk, as far as it can be told without a tokenizer."""
    if any(segment.is_break for segment in line.segments):
        return False
    # A token of CLIP is at least a byte.
    room = min((own.length - 2 for own in info.encoders if own.kind == "clip"), default=None)
    return room is None or len(line.text.encode("utf-8", "replace")) <= room


def layout(
    info: ModelInfo, tokens: tuple[Tokens, ...], lines: Sequence[Line], learned: Counts | None = None
) -> Layout:
    """Tokenise texts and divide them into chunks, the same number for all.

    CLIP reads chunks of 75 tokens, by the rules of `fewstep.prompt.chunks`. The others read one sequence,
    whose end is cut off when it is too long; BREAK begins another one, and T5 reads over it.

    Args:
        info: the model.
        tokens: from `tokenizers`.
        lines: B texts.
        learned: embeddings whose names may stand in them.
    """
    warnings: list[str] = []
    columns = [
        _pieces(encoder, own, lines, warnings, _of_encoder(learned, place))
        for place, (encoder, own) in enumerate(zip(info.encoders, tokens, strict=True))
    ]
    chunks = max(len(column) for column in columns)
    padded = []
    for encoder, own, column in zip(info.encoders, tokens, columns, strict=True):
        missing = chunks - len(column)
        if encoder.kind == "t5":
            # Its tokens stand behind those of all chunks, where a model has both.
            padded.append([*[None] * missing, *column])
        else:
            empty = _pieces(encoder, own, [Line(line.name) for line in lines], [], {}) if missing else []
            padded.append([*column, *empty * missing])
    return Layout(tuple(zip(*padded, strict=True)), tuple(dict.fromkeys(warnings)))


def encode(
    backend: Backend,
    tokens: tuple[Tokens, ...],
    lines: Sequence[Line],
    *,
    clip_skip: int = 0,
    emphasis: EmphasisMode = "original",
    learned: Learned | None = None,
) -> tuple[Conditions, list[str]]:
    """Encode texts with weights and in chunks.

    They go through the encoders in pairs of a negative prompt and a prompt, as a plain request does: a
    quantised encoder may round a row by what is beside it, and so a text has the same bits whatever else its
    prompt says in other steps.

    Weights multiply what comes out of the encoders, of every kind and in every chunk by itself; the pooled
    vector, which is the first chunk's, has none (`fewstep.prompt.emphasis`).

    Args:
        backend: runs the text encoders.
        tokens: from `tokenizers`.
        lines: B different texts, those of the negative prompt first; at least one of each.
        clip_skip: last layers of the text encoder to leave out.
        emphasis: how weights are applied.
        learned: embeddings whose names may stand in the texts.

    Returns:
        Conditions of B rows, and a warning for every text that was cut.
    """
    info = backend.info
    negatives = [line for line in lines if line.name == NEGATIVE]
    prompts = [line for line in lines if line.name != NEGATIVE]
    if not learned and len(lines) == 2 and all(line.plain and surely_short(info, line) for line in lines):
        texts = {line.name: line.text for line in lines}
        return embed(backend, tokens, texts, clip_skip=clip_skip)
    learned = learned or {}
    laid = layout(info, tokens, lines, {name: tuple(map(_count, own)) for name, own in learned.items()})
    found: dict[int, Conditions] = {}
    for place in range(max(len(negatives), len(prompts))):
        pair = [min(place, len(negatives) - 1), len(negatives) + min(place, len(prompts) - 1)]
        chunks = [_encoded(backend, row, pair, clip_skip, emphasis, learned) for row in laid.pieces]
        both = chained(chunks)
        found |= {row: both.rows(slice(side, side + 1)) for side, row in enumerate(pair) if row not in found}
    conditions = stacked([found[row] for row in range(len(lines))])
    if info.zero_empty_negative:
        for row, line in enumerate(lines):
            if line.name == NEGATIVE and not line.text:
                conditions = _zeroed(conditions, row)
    return conditions, list(laid.warnings)


def _of_encoder(learned: Counts | None, place: int) -> dict[str, int]:
    """Name -> vectors for one encoder, of the embeddings that it is given any of."""
    return {name: counts[place] for name, counts in (learned or {}).items() if counts[place]}


def _count(vectors: FloatArray | None) -> int:
    return 0 if vectors is None else len(vectors)


def _pieces(
    encoder: TextEncoderInfo,
    tokens: Tokens,
    lines: Sequence[Line],
    warnings: list[str],
    learned: Mapping[str, int],
) -> list[Piece]:
    return (
        _chunked(tokens, lines, warnings, learned)
        if encoder.kind == "clip"
        else _sequences(encoder, tokens, lines, warnings)
    )


def _chunked(
    tokens: Tokens, lines: Sequence[Line], warnings: list[str], learned: Mapping[str, int]
) -> list[Piece]:
    from fewstep.prompt.chunks import pad_to_same

    texts = [tokens.chunked(line.segments, max_chunks=MAX_CHUNKS, embeddings=learned) for line in lines]
    for line, chunked in zip(lines, texts, strict=True):
        if chunked.left_out:
            warnings.append(
                f"{line.name} longer than {MAX_CHUNKS} chunks: {chunked.left_out} tokens are left out"
            )
    rows = pad_to_same([chunked.chunks for chunked in texts], tokens.spec)
    return [
        Piece(
            np.array([chunk.ids for chunk in column], dtype=np.int64),
            np.array([chunk.mask for chunk in column], dtype=np.int64),
            np.array([chunk.weights for chunk in column], dtype=np.float32),
            tuple(chunk.placeholders for chunk in column),
        )
        for column in zip(*rows, strict=True)
    ]


def _sequences(
    encoder: TextEncoderInfo, tokens: Tokens, lines: Sequence[Line], warnings: list[str]
) -> list[Piece]:
    texts = [_without_breaks(line) if encoder.kind == "t5" else _at_breaks(line) for line in lines]
    if any(len(parts) > MAX_CHUNKS for parts in texts):
        warnings.append(f"only the first {MAX_CHUNKS} parts between BREAKs are read")
    pieces = []
    for place in range(min(max(map(len, texts)), MAX_CHUNKS)):
        column = [(line.name, parts[place] if place < len(parts) else [])
                  for line, parts in zip(lines, texts, strict=True)]  # fmt: skip
        ids, mask, weights, said = tokens.weighed(column)
        pieces.append(Piece(ids, mask, weights))
        warnings += said
    return pieces


def _without_breaks(line: Line) -> list[list[Segment]]:
    return [[Segment(" ", 1.0) if segment.is_break else segment for segment in line.segments]]


def _at_breaks(line: Line) -> list[list[Segment]]:
    """The parts between BREAKs; one at the end begins none, as in CLIP's chunks."""
    parts: list[list[Segment]] = [[]]
    for segment in line.segments:
        if segment.is_break:
            parts.append([])
        else:
            parts[-1].append(segment)
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def _encoded(
    backend: Backend,
    pieces: tuple[Piece | None, ...],
    rows: list[int],
    clip_skip: int,
    emphasis: EmphasisMode,
    learned: Learned,
) -> Conditions:
    """One chunk of some of the texts, weighed."""
    given = [None if piece is None else piece.ids[rows] for piece in pieces]
    masks = [None if piece is None else piece.mask[rows] for piece in pieces]
    placed = _placed(pieces, rows, learned)
    further = {"placed": placed} if placed else {}
    conditions = backend.encode_text(given, masks, clip_skip, **further)
    weights = [None if piece is None else piece.weights[rows] for piece in pieces]
    if emphasis in ("ignore", "none") or all(own is None or (own == 1.0).all() for own in weights):
        return conditions
    return dataclasses.replace(
        conditions, tokens=_weighed(conditions.tokens, weights, backend.info.encoders, emphasis)
    )


def _placed(pieces: tuple[Piece | None, ...], rows: list[int], learned: Learned) -> list[list[Placed]]:
    """Vectors of one chunk of some of the texts, for every encoder; empty without any."""
    found: list[list[Placed]] = []
    for encoder, piece in enumerate(pieces):
        own: list[Placed] = []
        for place, row in enumerate(rows):
            for one in piece.placeholders[row] if piece is not None and piece.placeholders else ():
                vectors = learned[one.name][encoder]
                assert vectors is not None
                own.append(Placed(row=place, position=one.position, vectors=vectors))
        found.append(own)
    return found if any(found) else []


def _weighed(
    vectors: FloatArray,
    weights: Sequence[FloatArray | None],
    encoders: Sequence[TextEncoderInfo],
    emphasis: EmphasisMode,
) -> FloatArray:
    """Token vectors (B, L, D) times their weights; each encoder's keep their own mean.

    CLIPs stand side by side along D, at the widths that the encoders tell; T5 stands behind them along L.
    """
    from fewstep.prompt import emphasis as applied

    own = [(encoder, factors) for encoder, factors in zip(encoders, weights, strict=True)
           if factors is not None]  # fmt: skip
    result = vectors.copy()
    begin = 0
    across = [pair for pair in own if pair[0].kind != "t5"] or own[:1]
    height = 0 if across[0][1] is None else across[0][1].shape[1]
    for place, (encoder, factors) in enumerate(across):
        last = place == len(across) - 1 or encoder.width == 0
        end = vectors.shape[2] if last else begin + encoder.width
        part = np.ascontiguousarray(vectors[:, :height, begin:end])
        result[:, :height, begin:end] = applied.apply(part, factors, emphasis)
        begin = end
        if last:
            break
    for encoder, factors in own:
        if encoder.kind == "t5" and height < vectors.shape[1]:
            part = np.ascontiguousarray(vectors[:, height:])
            result[:, height:] = applied.apply(part, factors, emphasis)
    return result


def _zeroed(conditions: Conditions, row: int) -> Conditions:
    kept = np.arange(len(conditions)) != row
    tokens = np.where(kept[:, None, None], conditions.tokens, np.float32(0.0))
    pooled = conditions.pooled
    if pooled is not None:
        pooled = np.where(kept[:, None], pooled, np.float32(0.0))
    return dataclasses.replace(conditions, tokens=tokens, pooled=pooled)
