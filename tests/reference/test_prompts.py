"""Prompts with weights and in chunks, against text encoders of transformers called by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.engine import prompts, text
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

sys.path.append(str(Path(__file__).parent))
from families_builder import Case, build

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

LONG = "red apple on a blue table, " * 12
"""12 times 11 tokens and more: two chunks of 75."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    made = {}

    def engine(family):
        if family not in made:
            folder = build(Case(family, "txt2img"), tmp_path_factory.mktemp(family) / "model")
            made[family] = Engine(folder, "torch", threads=1)
        return made[family]

    yield engine
    for one in made.values():
        one.close()


def encoded(engine, prompt, **given):
    """Conditions of (negative prompt, prompt)."""
    found, warnings = engine._embed(resolve(engine.info, prompt=prompt, **given))
    assert warnings == []
    return found.conditions


def hidden(engine, ids, which=0):
    """What an encoder of the pipeline makes of one chunk of ids, as the family takes it."""
    encoder = engine.backend._text.encoders[which]
    with torch.no_grad():
        output = encoder(torch.tensor([ids]), output_hidden_states=True)
    states = output.last_hidden_state if engine.info.family.startswith("sd1") else output.hidden_states[-2]
    return states[0].double().numpy()


def chunk(engine, pieces, which=0):
    """Ids of one chunk and their weights, from (text, weight) pieces, by the tokenizer of transformers."""
    tokens = engine._tokenizers()[which]
    from tokenizers import Tokenizer

    bare = Tokenizer.from_str(engine.info.encoders[which].tokenizer_json)
    bare.no_padding()
    bare.no_truncation()
    begin, end = bare.encode("").ids
    ids, weights = [begin], [1.0]
    for content, weight in pieces:
        own = bare.encode(content, add_special_tokens=False).ids
        ids += own
        weights += [weight] * len(own)
    ids += [end, *[tokens.spec.pad] * (76 - len(ids))]
    return ids, np.array(weights + [1.0] * (77 - len(weights)))[:, None]


def weighed(vectors, weights):
    product = vectors * weights
    return product * (vectors.mean() / product.mean())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3"])
def test_plain_prompt_has_the_same_bits_in_chunks(engines, family):
    engine = engines(family)
    prompt = "A red apple, on a blue table."
    lines = [
        text.Line(text.NEGATIVE),
        text.Line(text.PROMPT, prompts.parse(prompt, 1).subprompts[0].at(1).segments),
    ]
    plain = text.embed(engine.backend, engine._tokenizers(), {text.NEGATIVE: "", text.PROMPT: prompt})[0]
    general, _ = text.encode(engine.backend, engine._tokenizers(), [*lines, text.Line(text.PROMPT)])
    np.testing.assert_array_equal(encoded(engine, prompt).tokens, plain.tokens)
    np.testing.assert_array_equal(general.tokens[:2], plain.tokens)
    if plain.pooled is not None:
        np.testing.assert_array_equal(general.pooled[:2], plain.pooled)


def test_weights_of_one_encoder(engines):
    engine = engines("sd1")
    ids, weights = chunk(engine, [("a ", 1.0), ("red", 1.4), (" apple ", 1.0), ("on", 0.5)])
    vectors = hidden(engine, ids)
    found = encoded(engine, "a (red:1.4) apple (on:0.5)").tokens[1]
    np.testing.assert_allclose(found, weighed(vectors, weights), atol=2e-6)
    assert np.abs(found - vectors).max() > 0.05
    kept = encoded(engine, "a (red:1.4) apple (on:0.5)", emphasis="no_norm").tokens[1]
    np.testing.assert_allclose(kept, vectors * weights, atol=2e-6)


def test_encoders_side_by_side_keep_means_of_their_own(engines):
    engine = engines("sdxl")
    pieces = [("a ", 1.0), ("red", 1.8), (" apple", 1.0)]
    first, second = (chunk(engine, pieces, which) for which in (0, 1))
    expected = [weighed(hidden(engine, ids, which), w) for which, (ids, w) in enumerate((first, second))]
    found = encoded(engine, "a (red:1.8) apple")
    np.testing.assert_allclose(found.tokens[1], np.concatenate(expected, axis=-1), atol=2e-6)
    np.testing.assert_array_equal(found.pooled, encoded(engine, "a red apple").pooled)


def test_weights_reach_t5_behind_the_clips(engines):
    engine = engines("sd3")
    plain, heavy = (
        encoded(engine, p, emphasis="no_norm").tokens[1] for p in ("a red apple", "a (red:2) apple")
    )
    at = np.flatnonzero(np.abs(heavy - plain).max(-1) > 1e-6)
    assert at.tolist()[0] < 77 and at.tolist()[-1] >= 77
    np.testing.assert_allclose(heavy[at], 2 * plain[at], rtol=1e-6)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_break_is_chunks_encoded_apart(engines, family):
    engine = engines(family)
    both = encoded(engine, "a red apple BREAK (blue:1.3) table", negative_prompt="green")
    apart = [
        encoded(engine, p, negative_prompt=n) for p, n in (("a red apple", "green"), ("(blue:1.3) table", ""))
    ]
    np.testing.assert_array_equal(both.tokens[1], np.concatenate([one.tokens[1] for one in apart]))
    assert both.tokens.shape[1] == 154
    if both.pooled is not None:
        np.testing.assert_array_equal(both.pooled, apart[0].pooled)
    if family == "sd1":  # SDXL's empty chunks of an empty negative prompt are zeros, alone
        np.testing.assert_array_equal(both.tokens[0], np.concatenate([one.tokens[0] for one in apart]))


def test_long_prompt_breaks_behind_a_comma_and_pads_the_negative_prompt(engines):
    engine = engines("sd1")
    found = encoded(engine, LONG)
    count = found.tokens.shape[1] // 77
    assert found.tokens.shape == (2, 77 * count, 16) and count > 1
    # Each phrase has as many tokens as the first; a chunk ends behind the last comma that is in reach.
    phrase = chunk(engine, [("red apple on a blue table,", 1.0)])[0].index(chunk(engine, [])[0][1]) - 1
    whole = 75 // phrase
    ids, _ = chunk(engine, [("red apple on a blue table, " * whole, 1.0)])
    np.testing.assert_allclose(found.tokens[1, :77], hidden(engine, ids), atol=2e-6)
    empty = hidden(engine, chunk(engine, [])[0])
    np.testing.assert_allclose(found.tokens[0], np.concatenate([empty] * count), atol=2e-6)


def test_t5_stands_once_behind_all_chunks(engines):
    engine = engines("sd3")
    found = encoded(engine, "a red apple BREAK blue").tokens
    assert found.shape[1] == 2 * 77 + 256
    plain = encoded(engine, "a red apple blue").tokens
    np.testing.assert_array_equal(found[1, 154:], plain[1, 77:])


def test_t5_alone_reads_over_break_and_says_so(engines):
    engine = engines("pixart-alpha")
    order = resolve(engine.info, prompt="a red apple BREAK (blue:1.5)")
    assert order.warnings[-1] == "BREAK has no effect: this model reads its text in one piece"
    found = engine._embed(order)[0].conditions
    plain = encoded(engine, "a red apple blue")
    assert found.tokens.shape == plain.tokens.shape
    np.testing.assert_array_equal(found.mask, plain.mask)
    assert not np.array_equal(found.tokens, plain.tokens)


def test_empty_negative_prompt_of_sdxl_is_zeros_in_every_chunk(engines):
    engine = engines("sdxl")
    found = encoded(engine, "red BREAK blue")
    if engine.info.zero_empty_negative:
        assert not found.tokens[0].any() and not found.pooled[0].any()
    assert found.tokens[1].any()


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_editing_and_joined_prompts_draw(engines, family):
    engine = engines(family)

    def latents(prompt):
        seen = []
        order = resolve(
            engine.info, prompt=prompt, num_inference_steps=4, guidance_scale=2.0, width=64, height=64
        )
        decode = engine.backend.decode
        engine.backend.decode = lambda values: seen.append(values) or decode(values)
        try:
            engine.generate(order)
        finally:
            engine.backend.decode = decode
        return seen[0]

    alone = latents("a red apple")
    np.testing.assert_allclose(latents("a red apple :0.5 AND a red apple :0.5"), alone, atol=2e-5)
    np.testing.assert_array_equal(latents("[a red apple:blue:4]"), alone)
    assert np.abs(latents("[a red apple:blue:2]") - alone).max() > 1e-3
    assert np.abs(latents("a red apple BREAK blue") - alone).max() > 1e-3
