"""What an engine backend is: four networks as numpy functions, and what the engine must know of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.errors import EngineError, NotFoundError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.adapters import Catalogue
    from fewstep.engine.control import ControlUse
    from fewstep.engine.embeddings import EmbeddingCatalogue

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

Inputs = Literal["latents", "inpaint", "instruct"]
"""What a denoiser is given beside its C latent channels: nothing; a mask (1) and the masked picture (C); or
the picture to be changed (C)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Conditions:
    """What a denoiser is told beside x_t and its time, for B images; what a model does not use is None.

    The torch twin of this, for training, is `fewstep.models.conditions.Conditions`.
    """

    tokens: FloatArray
    """(B, L, D), token embeddings."""
    pooled: FloatArray | None = None
    """(B, P), an embedding of the whole text (SDXL, SD3)."""
    mask: IntArray | None = None
    """(B, L), 1 for tokens of the text and 0 for padding that must not be attended to (PixArt)."""
    concat: FloatArray | None = None
    """(B, C', h, w), channels behind the latents; see `Inputs`."""
    guidance: FloatArray | None = None
    """(B,), a guidance scale that the network is given (LCM)."""
    classes: IntArray | None = None
    """(B,), in place of a text (DiT)."""

    def __len__(self) -> int:
        """B."""
        return len(self.tokens)

    def rows(self, index: Any) -> Conditions:
        """Some of the rows, by a slice or an array of whole numbers."""
        return self._map(lambda value: np.ascontiguousarray(value[index]))

    def repeat(self, count: int) -> Conditions:
        """Every row ``count`` times, one behind the other."""
        return self if count == 1 else self._map(lambda value: np.repeat(value, count, axis=0))

    def with_concat(self, concat: FloatArray | None) -> Conditions:
        """The same with channels behind the latents, one picture's (1, C', h, w) for all rows."""
        if concat is None:
            return self
        channels = np.repeat(concat, len(self), axis=0) if len(concat) == 1 else concat
        return dataclasses.replace(self, concat=f32(channels))

    def _map(self, change: Any) -> Conditions:
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = None if value is None else change(value)
        return Conditions(**values)


def stacked(parts: Sequence[Conditions]) -> Conditions:
    """The rows of all parts, in their order.

    Raises:
        EngineError: one part has a condition that another has not, or texts of another length.
    """
    return _joined(parts, {field.name: 0 for field in dataclasses.fields(Conditions)})


def chained(chunks: Sequence[Conditions]) -> Conditions:
    """The tokens of several chunks of the same B texts behind one another, along L.

    The pooled embedding is the first chunk's, as in A1111's WebUI.

    Args:
        chunks: at least one; B rows each.

    Raises:
        EngineError: one chunk has a token mask and another has not, or they differ in B or D.
    """
    first = chunks[0]
    if len(chunks) == 1:
        return first
    joined = _joined([_only_tokens(chunk) for chunk in chunks], {"tokens": 1, "mask": 1})
    return dataclasses.replace(first, tokens=joined.tokens, mask=joined.mask)


def _only_tokens(chunk: Conditions) -> Conditions:
    return Conditions(tokens=chunk.tokens, mask=chunk.mask)


def _joined(parts: Sequence[Conditions], axes: Mapping[str, int]) -> Conditions:
    values: dict[str, Any] = {}
    for name, axis in axes.items():
        arrays = [getattr(part, name) for part in parts]
        if all(array is None for array in arrays):
            continue
        try:
            values[name] = np.concatenate(arrays, axis=axis)
        except ValueError as error:
            raise EngineError(
                f"conditions of several texts do not fit together: {name} differs ({error}); encode them "
                "with the same model and in the same number of chunks"
            ) from None
    return Conditions(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """An adapter file and how strongly it counts."""

    path: Path
    weight: float
    """In the denoiser."""
    text_weight: float
    """In the text encoders."""
    lenient: bool = False
    """Leave tensors out that nobody knows the meaning of, in place of refusing the file."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Placed:
    """Vectors of an embedding that a text encoder reads in place of those of token ids."""

    row: int
    """Of the B texts."""
    position: int
    """Of the first vector."""
    vectors: FloatArray
    """(n, width)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderInfo:
    """One text encoder of a model, as far as text has to be prepared for it."""

    kind: Literal["word", "bert", "clip", "t5", "class"]
    """``clip`` has chunks of 75 tokens between its start and end token; the others read one sequence.
    ``class`` is none: a whole text is one id."""
    length: int
    """Token ids in one sequence, L."""
    tokenizer_json: str
    """A `tokenizers` file as text, that pads and cuts to ``length``."""
    width: int = 0
    """Numbers per token where encoders stand side by side along D (SDXL); else 0."""
    vector_width: int = 0
    """Numbers of a vector that can be given in place of a token's; 0 where none can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentInfo:
    """A further denoiser of a model, made to draw in few steps with the model's text encoder and decoder."""

    name: str
    hash: str
    """SHA-256 of its weights; the first 10 digits are what people are shown."""
    contract: SamplingContract
    """Its own; without guidance."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Step counts that it draws in; its default alone where the contract allows any."""
        return self.contract.allowed_steps or (self.contract.num_inference_steps,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What the engine must know of a model, whatever runs it."""

    name: str
    hash: str
    """SHA-256 of the weights, see design "Hashes"; the first 10 digits are what people are shown."""
    contract: SamplingContract
    latent_channels: int
    downscale: int
    """Pixels per latent cell along one side."""
    encoders: tuple[TextEncoderInfo, ...]
    """In the order in which `Backend.encode_text` takes their ids."""
    native_size: tuple[int, int]
    """(width, height) in pixels."""
    size_multiple: int
    max_size: int
    licence: str
    students: tuple[StudentInfo, ...] = ()
    """In the order in which they are considered for a step count."""
    family: str = ""
    """Name of the family that the networks belong to, such as ``sdxl``."""
    inputs: Inputs = "latents"
    zero_empty_negative: bool = False
    """An empty negative prompt is zeros, not the embeddings of an empty text (SDXL)."""
    max_clip_skip: int = 0
    """How many of the text encoder's last layers can be left out; 0 where none can."""
    parts: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    """Parts that are not the model's own, such as ``vae`` -> their name and hash."""
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What the prompts of a class-conditional model may be: names in small letters, and numbers."""
    notes: tuple[str, ...] = ()
    """What was found odd about the model; said with every picture."""
    adapters: Catalogue | None = None
    """Where the names of adapters are looked up; None is the usual folders."""
    embeddings: EmbeddingCatalogue | None = None
    """Where the names of embeddings are looked up; None is the usual folders."""

    def student(self, name: str) -> StudentInfo:
        """The student of that name.

        Raises:
            NotFoundError: there is none; the message lists what there is.
        """
        for student in self.students:
            if student.name == name:
                return student
        there = ", ".join(student.name for student in self.students) or "none"
        text = f"student {name!r}: model {self.name} has no such student; there are: {there}"
        raise NotFoundError(text, field="student")

    def sampling(self, student: str | None) -> SamplingContract:
        """The contract of a student, or of the model itself for None; raises as `student` does."""
        return self.contract if student is None else self.student(student).contract


class Backend(Protocol):
    """Runs the networks of one model. Arrays in and out are numpy; B is any batch size.

    Latents are scaled, as the denoiser sees them. A backend may be asked from one thread at a time.
    """

    name: str
    info: ModelInfo
    rows: int
    """Images that are worth drawing in one batch; 1 where a batch costs as much as its images do alone."""

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """What runs the model, for records: library version, precision of the denoiser, device, threads."""

    def prepare(
        self,
        width: int,
        height: int,
        *,
        batches: tuple[int, ...],
        encode: bool,
        student: str | None = None,
        tile: tuple[int, int] | None = None,
        chunks: int = 1,
    ) -> None:
        """Begin to load what a picture of this size needs, and nothing else.

        Args:
            width: pixels.
            height: pixels.
            batches: batch sizes that the denoiser will be called with.
            encode: whether a picture will be encoded.
            student: whose denoiser; None is the model's own.
            tile: (width, height) in pixels of what the autoencoder is given, where that is not the picture.
            chunks: how many times the text encoder's length the texts have.
        """

    def control(self, uses: Sequence[ControlUse]) -> None:
        """Let these networks steer `denoise` from now on, and no others.

        Args:
            uses: their pictures have the size that is drawn; empty takes all away.

        Raises:
            UsageError: the backend or the model takes no control networks, or not this one.
            CheckpointError, NotFoundError: one is broken, or of a class that is not accepted.
        """

    def adapt(self, adapters: Sequence[Applied], student: str | None = None) -> tuple[str, ...]:
        """Put exactly these adapters into the weights, in place of those that are there now.

        Args:
            adapters: none takes all out; the weights are then what they were, bit by bit.
            student: whose denoiser.

        Returns:
            A warning for everything in them that has no effect.

        Raises:
            UsageError: the backend has no adapters.
            CheckpointError: one does not fit; then none is in the weights.
        """

    def encode_text(
        self,
        ids: Sequence[IntArray | None],
        masks: Sequence[IntArray | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Conditions:
        """Token ids and masks of shape (B, L), one of each per encoder -> the text as conditions.

        Args:
            ids: per encoder of ``info.encoders``; None leaves an encoder's tokens out (SD3's T5 in all chunks
                but one).
            masks: as ``ids``: 1 for tokens, 0 for padding.
            clip_skip: last layers that are left out, up to ``info.max_clip_skip``.
            placed: per encoder, vectors in place of those of some ids; only for encoders that tell a
                ``vector_width``, and empty without any.
        """

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """Latents (B, C, h, w), model times (B,), conditions of B -> raw model output (B, C, h, w)."""

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """Pixels (B, 3, H, W) in [-1, 1] -> mean of the posterior (B, C, h, w).

        ``scaled`` False leaves the mean as the autoencoder gives it, as instruct models want it.
        """

    def decode(self, latents: FloatArray) -> FloatArray:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) in about [-1, 1]."""

    def close(self) -> None:
        """Let go of the networks; the backend is of no use afterwards."""


def f32(value: Any) -> FloatArray:
    """Any array as contiguous float32."""
    return np.ascontiguousarray(value, dtype=np.float32)
