"""A backend without networks, for tests: exact, instant, and it can be held at every step.

The "model" knows the answer: each prompt has a pattern of colours (from its token ids), and the raw output
is the v-prediction that leads there. Different seeds differ a little, different prompts differ a lot.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.noise import image_noise
from fewstep.engine import control
from fewstep.engine.backends.base import (
    Applied,
    Conditions,
    FloatArray,
    IntArray,
    ModelInfo,
    Placed,
    StudentInfo,
    TextEncoderInfo,
    f32,
)

if TYPE_CHECKING:
    from fewstep.engine.control import ControlUse

_LENGTH = 16
_WIDTH = 8
_WORDS = ("[PAD]", "[UNK]", "red", "green", "blue", "apple", "dog", "a", "on", "the")


class FakeBackend:
    """See `fewstep.engine.backends.base.Backend`.

    Args:
        gate: when given, every denoiser call waits for it first (at most 60 s), and `waiting` is set
        meanwhile.
        poison_after: the denoiser gives NaN from this call on.
        rows: images per batch.
        students: name -> step counts of students that it plays.
    """

    name = "fake"

    def __init__(
        self,
        *,
        gate: threading.Event | None = None,
        poison_after: int | None = None,
        rows: int = 4,
        students: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.rows = rows
        self.gate = gate
        self.waiting = threading.Event()
        self.calls = 0
        self.adapters: tuple[Applied, ...] = ()
        self._poison_after = poison_after
        contract = SamplingContract(
            base_family="fake",
            prediction_type="v_prediction",
            schedule=ScheduleSpec(rescale_zero_terminal_snr=True),
            num_inference_steps=5,
            guidance_scale=2.0,
            native_sizes=((64, 64),),
        )
        self.info = ModelInfo(
            name="fake",
            hash="0" * 64,
            contract=contract,
            latent_channels=4,
            downscale=8,
            encoders=(TextEncoderInfo(kind="word", length=_LENGTH, tokenizer_json=_tokenizer_json()),),
            native_size=(64, 64),
            size_multiple=8,
            max_size=256,
            licence="Apache-2.0",
            family="fake",
            students=tuple(
                StudentInfo(name=name, hash=f"{index:064d}", contract=_distilled(contract, steps))
                for index, (name, steps) in enumerate((students or {}).items(), start=1)
            ),
        )
        self._schedule = self.info.contract.make_schedule()

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """Says that this is not a model."""
        return {"backend": self.name}

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
        """Nothing to load."""

    def adapt(self, adapters: Sequence[Applied], student: str | None = None) -> tuple[str, ...]:
        """Remember them in `adapters`; they change nothing."""
        self.adapters = tuple(adapters)
        return ()

    def control(self, uses: Sequence[ControlUse]) -> None:
        """Refuse control networks: there are none here."""
        control.refuse(self.name, uses)

    def encode_text(
        self,
        ids: Sequence[IntArray | None],
        masks: Sequence[IntArray | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Conditions:
        """A fixed random vector per token id, zero where the mask is 0."""
        (own,), (mask,) = ids, masks
        assert own is not None and mask is not None and not placed
        table = {int(i): image_noise(int(i), (_WIDTH,), stream=7) for i in np.unique(own)}
        rows = np.stack([[table[int(i)] for i in row] for row in own])
        return Conditions(tokens=f32(rows * mask[..., None]))

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """The v-prediction whose x0 is the prompt's colours plus a little of x, a student's paler."""
        self.calls += 1
        if self.gate is not None:
            self.waiting.set()
            self.gate.wait(60.0)
            self.waiting.clear()
        colour = np.tanh(conditions.tokens.mean(axis=1)[:, : x.shape[1]])[:, :, None, None]
        strength = np.float32(1.0 if student is None else 0.5)
        x0 = strength * colour + np.float32(0.1) * np.tanh(x)
        alpha, sigma = self._schedule.alpha(t), self._schedule.sigma(t)
        a = np.asarray(alpha, dtype=np.float32).reshape(-1, 1, 1, 1)
        s = np.asarray(sigma, dtype=np.float32).reshape(-1, 1, 1, 1)
        v = (a * x - x0) / s
        if self._poison_after is not None and self.calls > self._poison_after:
            v[:] = np.nan
        return f32(v)

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """Mean of each 8x8 block as the first three channels, zero as the fourth."""
        b, c, h, w = pixels.shape
        means = pixels.reshape(b, c, h // 8, 8, w // 8, 8).mean(axis=(3, 5))
        return f32(np.concatenate([means, np.zeros((b, 1, h // 8, w // 8), dtype=np.float32)], axis=1))

    def decode(self, latents: FloatArray) -> FloatArray:
        """The first three channels, each cell an 8x8 block."""
        return f32(latents[:, :3].repeat(8, axis=2).repeat(8, axis=3))

    def close(self) -> None:
        """Nothing to let go of."""


def _distilled(base: SamplingContract, steps: tuple[int, ...]) -> SamplingContract:
    """The contract of a student that draws in these step counts, with another solver than the base."""
    return dataclasses.replace(
        base, method="fake", solver="lcm", boundary_scaling=0.0, num_inference_steps=steps[0],
        allowed_steps=steps, guidance="off", guidance_scale=1.0, negative_prompt_effective=False,
    )  # fmt: skip


def _tokenizer_json() -> str:
    """Splits at spaces, numbers the words in `_WORDS`, spells nothing else."""
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": {"max_length": _LENGTH, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": _LENGTH},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(_WORDS)},
            "unk_token": "[UNK]",
        },
    }
    return json.dumps(spec)
