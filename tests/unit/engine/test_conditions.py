"""What a denoiser is told: rows, batches, chunks of text, and what text becomes."""

import dataclasses

import numpy as np
import pytest

from fewstep.engine import text
from fewstep.engine.backends.base import Conditions, TextEncoderInfo, chained, stacked
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import EngineError, UsageError


def told(rows=2, length=3, *, seed=0, **missing):
    rng = np.random.default_rng(seed)
    made = {
        "tokens": rng.standard_normal((rows, length, 4), dtype=np.float32),
        "pooled": rng.standard_normal((rows, 5), dtype=np.float32),
        "mask": np.ones((rows, length), dtype=np.int64),
        "concat": rng.standard_normal((rows, 2, 3, 3), dtype=np.float32),
        "guidance": np.full(rows, 7.5, dtype=np.float32),
        "classes": rng.integers(0, 1000, rows),
    }
    return Conditions(**(made | missing))


def fields(conditions):
    return {field.name: getattr(conditions, field.name) for field in dataclasses.fields(conditions)}


def test_rows_and_batches_take_every_condition_along():
    a, b = told(2, seed=1), told(1, seed=2)
    both = stacked([a, b])
    assert len(both) == 3
    for name, value in fields(both).items():
        assert np.array_equal(value, np.concatenate([getattr(a, name), getattr(b, name)])), name
        assert np.array_equal(getattr(both.rows(slice(2, 3)), name), getattr(b, name)), name
        assert np.array_equal(getattr(b.repeat(3), name), np.repeat(getattr(b, name), 3, axis=0)), name


def test_what_a_model_does_not_use_stays_none():
    plain = Conditions(tokens=np.zeros((1, 2, 3), np.float32))
    for changed in (
        plain.repeat(2),
        plain.rows(slice(0, 1)),
        stacked([plain, plain]),
        chained([plain, plain]),
    ):
        assert [name for name, value in fields(changed).items() if value is not None] == ["tokens"]


def test_channels_of_one_picture_are_every_rows():
    channels = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    given = told(2, concat=None).with_concat(channels)
    assert np.array_equal(given.concat, np.concatenate([channels, channels]))
    assert told(2).with_concat(None).concat is not None


def test_conditions_of_different_kinds_do_not_mix():
    with pytest.raises(EngineError, match="pooled differs"):
        stacked([told(), told(pooled=None)])
    with pytest.raises(EngineError, match="tokens differs"):
        stacked([told(length=3), told(length=4)])


def test_chunks_stand_behind_one_another_and_the_first_is_pooled():
    first, second = told(2, 3, seed=1, concat=None, guidance=None), told(2, 5, seed=2, pooled=None)
    both = chained([first, second])
    assert np.array_equal(both.tokens, np.concatenate([first.tokens, second.tokens], axis=1))
    assert both.mask.shape == (2, 8)
    assert np.array_equal(both.pooled, first.pooled)
    assert chained([first]) is first
    with pytest.raises(EngineError, match="mask differs"):
        chained([first, told(mask=None)])


class Two(FakeBackend):
    """Two encoders with the same tokenizer, the second one pooled."""

    def __init__(self, *, zeros):
        super().__init__()
        encoder = self.info.encoders[0]
        second = TextEncoderInfo(kind="clip", length=encoder.length, tokenizer_json=encoder.tokenizer_json)
        self.info = dataclasses.replace(
            self.info, encoders=(encoder, second), zero_empty_negative=zeros, max_clip_skip=2
        )
        self.given = []

    def encode_text(self, ids, masks, clip_skip=0):
        self.given.append((len(ids), clip_skip))
        one = super().encode_text(ids[:1], masks[:1])
        two = super().encode_text(ids[1:], masks[1:])
        return dataclasses.replace(one, pooled=two.tokens.sum(axis=1) + 1)


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_negative_prompt_is_zeros_where_the_model_wants_it(zeros):
    backend = Two(zeros=zeros)
    tokens = text.tokenizers(backend.info)
    for negative, zero in (("", zeros), ("blue", False)):
        made, _ = text.embed(backend, tokens, {text.NEGATIVE: negative, text.PROMPT: ""})
        assert (not made.tokens[0].any() and not made.pooled[0].any()) == zero
        assert made.pooled[1].any()


def test_the_same_cut_is_said_once():
    backend = Two(zeros=False)
    _, warnings = text.embed(backend, text.tokenizers(backend.info), {text.PROMPT: "a red apple " * 9})
    assert len(warnings) == 1 and "(16 tokens)" in warnings[0]


def test_clip_skip_reaches_the_encoders():
    backend = Two(zeros=False)
    engine = Engine(backend=backend)
    result = engine.generate(resolve(engine.info, prompt="a dog", clip_skip=2))
    assert backend.given == [(2, 2)]
    assert result.record["clip_skip"] == 2
    assert "clip_skip" not in engine.generate(resolve(engine.info, prompt="a dog")).record


@pytest.mark.parametrize(
    ("value", "message"), [(3, "from 0 to 2"), (-1, "from 0 to 2"), (1.5, "from 0 to 2")]
)
def test_clip_skip_out_of_range(value, message):
    with pytest.raises(UsageError, match=message):
        resolve(Two(zeros=False).info, prompt="", clip_skip=value)


def test_clip_skip_where_there_is_nothing_to_skip():
    with pytest.raises(UsageError, match="no layers to skip"):
        resolve(FakeBackend().info, prompt="", clip_skip=1)
    assert resolve(FakeBackend().info, prompt="", clip_skip=0).clip_skip == 0
