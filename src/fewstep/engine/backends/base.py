"""What an engine backend is: four networks as numpy functions, and what the engine must know of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from fewstep.errors import NotFoundError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


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
    text_length: int
    native_size: tuple[int, int]
    """(width, height) in pixels."""
    size_multiple: int
    max_size: int
    licence: str
    tokenizer_json: str
    """A `tokenizers` file as text, that pads and cuts to ``text_length``."""
    students: tuple[StudentInfo, ...] = ()
    """In the order in which they are considered for a step count."""

    def student(self, name: str) -> StudentInfo:
        """The student of that name.

        Raises:
            NotFoundError: there is none; the message lists what there is.
        """
        for student in self.students:
            if student.name == name:
                return student
        there = ", ".join(student.name for student in self.students) or "none"
        raise NotFoundError(f"student {name!r}: model {self.name} has no such student; there are: {there}")

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
        self, width: int, height: int, *, batches: tuple[int, ...], encode: bool, student: str | None = None
    ) -> None:
        """Begin to load what a picture of this size needs, and nothing else.

        Args:
            width: pixels.
            height: pixels.
            batches: batch sizes that the denoiser will be called with.
            encode: whether a picture will be encoded.
            student: whose denoiser; None is the model's own.
        """

    def encode_text(self, ids: IntArray, mask: IntArray) -> FloatArray:
        """Token ids and mask of shape (B, L) -> embeddings (B, L, D)."""

    def denoise(
        self, x: FloatArray, t: FloatArray, text: FloatArray, student: str | None = None
    ) -> FloatArray:
        """Latents (B, C, h, w), model times (B,), embeddings (B, L, D) -> raw model output (B, C, h, w)."""

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """Pixels (B, 3, H, W) in [-1, 1] -> mean of the posterior (B, C, h, w)."""

    def decode(self, latents: FloatArray) -> FloatArray:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) in about [-1, 1]."""

    def close(self) -> None:
        """Let go of the networks; the backend is of no use afterwards."""


def f32(value: Any) -> FloatArray:
    """Any array as contiguous float32."""
    return np.ascontiguousarray(value, dtype=np.float32)
