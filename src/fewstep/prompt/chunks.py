"""From weighted segments to chunks of token ids, each as long as the text encoder takes.

The rules are those of AUTOMATIC1111's web UI 1.10 (``TextConditionalModel.tokenize_line``): a chunk holds 75
tokens between its begin and end tokens; BREAK ends one early; when one fills up and its last comma is near,
what follows the comma moves to the next one; a textual-inversion embedding is never split. Departures: an
embedding that moves with the text behind a comma keeps its vectors (there its place stays in the old chunk),
its name is looked for in the text and not among tokens, and chunks have any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fewstep.errors import UsageError
from fewstep.prompt.attention import Segment
from fewstep.prompt.embedding_names import Names

COMMA_PADDING_BACKTRACK = 20
MAX_CHUNKS = 64

Tokenise = Callable[[str], Sequence[int]]
"""Text to token ids without begin, end and padding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec:
    """What chunks need to know of a tokenizer.

    Stable Diffusion 1 (CLIP-L) pads with its end token; Stable Diffusion 2 and OpenCLIP pad with id 0 after
    it; BERT has [CLS], [SEP] and [PAD].
    """

    bos: int | None
    """Begin token, [CLS]; None for encoders without one (T5)."""
    eos: int
    pad: int
    """Fills up behind the end token; ``eos`` where the encoder was trained so."""
    length: int = 75
    """Content tokens of a chunk, without begin and end: 75 of CLIP's 77, 30 of an encoder of 32 with both."""
    commas: frozenset[int] = frozenset()
    """Ids of a comma token; empty switches the comma rule off."""
    placeholder: int = 0
    """Id where an embedding's vectors go. Not ``eos``: encoders look for their pooled output there."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UsageError(f"chunk length is {self.length}: a chunk holds at least 1 token")
        if self.placeholder == self.eos:
            raise UsageError(f"placeholder id {self.placeholder} is the end token: give another one")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placeholder:
    """Where the vectors of an embedding go."""

    position: int
    """Index into `Chunk.ids` of the first vector."""
    name: str
    vectors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """What the text encoder takes at once; the three sequences have one length, content and specials."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    """1.0 at begin, end and padding."""
    mask: tuple[int, ...]
    """Attention mask: 1 up to and including the first end token. CLIP is run without one."""
    placeholders: tuple[Placeholder, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunked:
    """A text in chunks."""

    chunks: tuple[Chunk, ...]
    """At least one."""
    tokens: int
    """Content tokens that are in them."""
    left_out: int = 0
    """Content tokens that did not fit into the number of chunks allowed."""


def chunk(
    segments: Iterable[Segment],
    tokenise: Tokenise,
    spec: TokenizerSpec,
    *,
    embeddings: Mapping[str, int] | None = None,
    comma_padding_backtrack: int = COMMA_PADDING_BACKTRACK,
    max_chunks: int = MAX_CHUNKS,
) -> Chunked:
    """Tokenise segments and divide them into chunks.

    Args:
        segments: of one text, from `fewstep.prompt.attention.parse_attention`.
        tokenise: called once per segment, and once per stretch between embeddings.
        spec: ids and chunk length.
        embeddings: name -> number of vectors. Where a name stands in the text (`embedding_names`), its
            placeholder stands instead.
        comma_padding_backtrack: how many tokens may move to the next chunk to begin it after a comma; 0 is
            none. The last chunk that is allowed keeps what fits.
        max_chunks: from 1; tokens beyond are left out and counted.

    Raises:
        UsageError: an embedding has no vectors, or more than a chunk holds; or ``max_chunks`` is below 1.
    """
    if max_chunks < 1:
        raise UsageError(f"max_chunks is {max_chunks}: at least one chunk is needed")
    learned = embeddings or {}
    for name, vectors in learned.items():
        if not 1 <= vectors <= spec.length:
            raise UsageError(
                f"embedding {name!r} has {vectors} vectors: a chunk of this encoder holds 1 to {spec.length}"
            )
    names = Names(learned)
    filler = _Filler(spec, comma_padding_backtrack, max_chunks)
    for segment in segments:
        if segment.is_break:
            filler.flush()
            continue
        for text, said in names.split(segment.text):
            if said is None:
                for token in tokenise(text):
                    filler.token(token, segment.weight)
            else:
                filler.embedding(said, learned[said], segment.weight)
    if filler.draft.ids or not filler.chunks:
        filler.flush()
    return Chunked(
        chunks=tuple(draft.finished(spec) for draft in filler.chunks),
        tokens=sum(len(draft.ids) for draft in filler.chunks),
        left_out=filler.left_out,
    )


def pad_to_same(texts: Sequence[Sequence[Chunk]], spec: TokenizerSpec) -> tuple[tuple[Chunk, ...], ...]:
    """Append empty chunks until all texts (prompt and negative prompt, say) have as many as the longest."""
    most = max((len(chunks) for chunks in texts), default=0)
    empty = _Draft().finished(spec)
    return tuple((*chunks, *[empty] * (most - len(chunks))) for chunks in texts)


@dataclass(slots=True)
class _Draft:
    """A chunk's content while it fills."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    placeholders: list[Placeholder] = field(default_factory=list)
    """Positions within the content."""

    def split(self, at: int) -> _Draft:
        """Take what stands from a position on out of this draft."""
        moved = [p for p in self.placeholders if p.position >= at]
        rest = _Draft(self.ids[at:], self.weights[at:], [replace(p, position=p.position - at) for p in moved])
        self.placeholders = [p for p in self.placeholders if p.position < at]
        del self.ids[at:], self.weights[at:]
        return rest

    def finished(self, spec: TokenizerSpec) -> Chunk:
        begin = () if spec.bos is None else (spec.bos,)
        used = len(begin) + len(self.ids) + 1
        unused = spec.length - len(self.ids)
        return Chunk(
            ids=(*begin, *self.ids, spec.eos, *[spec.pad] * unused),
            weights=(*[1.0] * len(begin), *self.weights, *[1.0] * (1 + unused)),
            mask=(*[1] * used, *[0] * unused),
            placeholders=tuple(replace(p, position=p.position + len(begin)) for p in self.placeholders),
        )


class _Filler:
    """Fills one chunk after the other, until there may be no more."""

    def __init__(self, spec: TokenizerSpec, backtrack: int, max_chunks: int) -> None:
        self._spec = spec
        self._backtrack = backtrack
        self._max_chunks = max_chunks
        self._comma: int | None = None
        self.draft = _Draft()
        self.chunks: list[_Draft] = []
        self.left_out = 0

    def flush(self) -> None:
        """End the chunk, also an empty one."""
        if len(self.chunks) < self._max_chunks:
            self.chunks.append(self.draft)
        self.draft = _Draft()
        self._comma = None

    def token(self, token: int, weight: float) -> None:
        is_comma = token in self._spec.commas
        if self._has_room(1, is_comma):
            # Not one that begins a chunk: everything would follow it.
            if is_comma and self.draft.ids:
                self._comma = len(self.draft.ids)
            self.draft.ids.append(token)
            self.draft.weights.append(weight)

    def embedding(self, name: str, vectors: int, weight: float) -> None:
        if self._has_room(vectors, is_comma=False):
            position = len(self.draft.ids)
            self.draft.placeholders.append(Placeholder(position=position, name=name, vectors=vectors))
            self.draft.ids += [self._spec.placeholder] * vectors
            self.draft.weights += [weight] * vectors

    def _has_room(self, count: int, is_comma: bool) -> bool:
        """Make room in this chunk or begin the next; False, and counted, when there may be no next."""
        filled = len(self.draft.ids)
        comma = self._comma
        # As in the web UI the comma rule asks for a chunk that is full; one that is too full for an embedding
        # just ends. In the last chunk it would throw away what there is room for.
        if (
            filled == self._spec.length
            and comma is not None
            and filled - comma <= self._backtrack
            and not is_comma
            and len(self.chunks) + 1 < self._max_chunks
        ):
            rest = self.draft.split(comma + 1)
            self.flush()
            self.draft = rest
        if len(self.draft.ids) + count > self._spec.length:
            self.flush()
        if len(self.chunks) < self._max_chunks:
            return True
        self.left_out += count
        return False
