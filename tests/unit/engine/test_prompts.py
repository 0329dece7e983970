"""The prompt grammar in the engine: weights, chunks, editing, AND, and what is said of them."""

import dataclasses

import numpy as np
import pytest

from fewstep.diffusion import noise
from fewstep.engine import denoising, prompts, text
from fewstep.engine.backends.base import chained
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import find_solver, resolve
from fewstep.errors import UsageError
from fewstep.prompt.attention import parse_attention


class Watched(FakeBackend):
    """Remembers the conditions of every call of the denoiser, and the batches that were prepared."""

    def __init__(self, **given):
        super().__init__(**given)
        self.told, self.prepared = [], []

    def prepare(self, *size, **given):
        self.prepared.append(given)

    def denoise(self, x, t, conditions, student=None):
        self.told.append(conditions.tokens)
        return super().denoise(x, t, conditions, student)


def request(prompt, backend=None, **given):
    return resolve((backend or FakeBackend()).info, prompt=prompt, **given)


def plain(backend, prompt, negative=""):
    """Conditions of two rows by the path that knows no grammar."""
    return text.embed(backend, text.tokenizers(backend.info), {text.NEGATIVE: negative, text.PROMPT: prompt})[
        0
    ]


def encoded(backend, order):
    found, warnings = prompts.encode(backend, text.tokenizers(backend.info), [order])
    assert warnings == []
    return found


def by_hand(backend, order, conditions_of_step):
    """Draw with the sampler alone; ``conditions_of_step`` gives (negative, prompt) for a step from 0."""
    contract = backend.info.contract
    solver = find_solver(contract, order.solver, order.eta)
    schedule = contract.make_schedule()
    own = solver.schedule(schedule)
    grid = contract.grid(order.num_inference_steps, solver.name)
    x = noise.batch_noise(order.seed, 1, (4, 8, 8)) * np.float32(contract.first_noise(grid[0], solver.name))
    state = solver.start(schedule)
    fresh = noise.solver_noise(order.seed, 1, (4, 8, 8))
    for index in range(len(grid) - 1):
        pair = conditions_of_step(index)
        denoise = denoising.denoiser(backend, order, pair.rows(slice(0, 1)), pair.rows(slice(1, 2)), own)
        x, state = solver.step(
            denoise, x, float(grid[index]), float(grid[index + 1]), state,
            fresh(index) if solver.stochastic else None,
        )  # fmt: skip
    return x


def drawn(backend, order):
    """The latents that the engine decodes."""
    found = []
    decode = backend.decode
    backend.decode = lambda values: found.append(values) or decode(values)
    Engine(backend=backend).generate(order)
    return found[0]


@pytest.mark.parametrize(
    "prompt", ["a red apple", "  a red apple ", "", "red, green; blue - dog!", "AN D BREA K"]
)
def test_text_without_grammar_has_the_bits_of_the_plain_path(prompt):
    backend = FakeBackend()
    order = request(prompt, negative_prompt="blue")
    old = plain(backend, prompt, "blue")
    np.testing.assert_array_equal(encoded(backend, order).conditions.tokens, old.tokens)
    np.testing.assert_array_equal(drawn(backend, order), by_hand(backend, order, lambda step: old))
    assert order.warnings == ()


def test_general_path_gives_a_plain_text_the_same_bits():
    backend = FakeBackend()
    lines = [
        text.Line(text.NEGATIVE),
        *(text.Line(text.PROMPT, parse_attention(p)) for p in ("a dog", "red")),
    ]
    conditions, _ = text.encode(backend, text.tokenizers(backend.info), lines)
    for row, prompt in ((1, "a dog"), (2, "red")):
        np.testing.assert_array_equal(conditions.tokens[row], plain(backend, prompt).tokens[1])


def test_weights_multiply_vectors_and_keep_the_mean():
    backend = FakeBackend()
    vectors = plain(backend, "a red apple").tokens[1].astype(np.float64)
    expected = vectors.copy()
    expected[1] *= 1.5
    expected[2] *= 0.5
    found = encoded(backend, request("a (red:1.5) (apple:0.5)")).conditions.tokens
    np.testing.assert_allclose(found[1], expected * (vectors.mean() / expected.mean()), rtol=1e-5, atol=1e-6)
    kept = encoded(backend, request("a (red:1.5) (apple:0.5)", emphasis="no_norm")).conditions.tokens
    np.testing.assert_allclose(kept[1], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[0], plain(backend, "").tokens[0])


def test_ignored_weights_and_brackets_as_text():
    backend = FakeBackend()
    ignored = encoded(backend, request("a (red:1.5) apple", emphasis="ignore")).conditions.tokens
    np.testing.assert_array_equal(ignored[1], plain(backend, "a red apple").tokens[1])
    bare = encoded(backend, request("a (red:1.5) apple", emphasis="none")).conditions.tokens
    np.testing.assert_array_equal(bare[1], plain(backend, "a (red:1.5) apple").tokens[1])
    with pytest.raises(UsageError, match="emphasis 'loud' is not known"):
        request("a", emphasis="loud")


def test_weight_inside_a_word_belongs_to_the_token_it_ends():
    backend = FakeBackend()
    tokens = text.tokenizers(backend.info)[0]
    ids, _, weights, _ = tokens.weighed([("prompt", parse_attention("a r(ed:2) dog"))])
    np.testing.assert_array_equal(ids[0, :3], tokens.encode({"prompt": "a red dog"})[0][0, :3])
    assert weights[0, :4].tolist() == [1.0, 2.0, 1.0, 1.0]


def test_break_joins_sequences_and_pads_the_negative_prompt():
    backend = Watched()
    order = request("a red BREAK (apple:1.2)", negative_prompt="blue")
    found = encoded(backend, order).conditions.tokens
    assert found.shape == (2, 32, 8)
    second = encoded(backend, request("(apple:1.2)")).conditions
    expected = chained([plain(backend, "a red", "blue"), second])
    np.testing.assert_array_equal(found[1], expected.tokens[1])
    np.testing.assert_array_equal(
        found[0], chained([plain(backend, "", "blue"), plain(backend, "")]).tokens[0]
    )
    Engine(backend=backend).generate(order)
    assert {given["chunks"] for given in backend.prepared} == {2}
    assert {told.shape[1] for told in backend.told} == {32}


def test_plain_request_prepares_one_chunk():
    backend = Watched()
    Engine(backend=backend).generate(request("a dog"))
    assert backend.prepared == [{"batches": (2,), "encode": False, "student": None, "chunks": 1}]


def test_long_text_is_cut_with_the_words_that_are_missing():
    backend = FakeBackend()
    order = request("(red:1.2) " + "dog " * 20 + "apple")
    _, said = prompts.encode(backend, text.tokenizers(backend.info), [order])
    assert said == [f"prompt longer than the encoder takes (16 tokens): left out {'dog ' * 5 + 'apple'!r}"]


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "plms", "dpmpp_2m", "dpmpp_2m_sde"])
def test_editing_is_a_run_in_two_phases(solver):
    backend = Watched()
    if solver in ("heun", "plms"):  # they have no form for zero terminal SNR
        spec = dataclasses.replace(backend.info.contract.schedule, rescale_zero_terminal_snr=False)
        contract = dataclasses.replace(backend.info.contract, schedule=spec)
        backend.info = dataclasses.replace(backend.info, contract=contract)
        backend._schedule = contract.make_schedule()
    order = request("a [red:green:0.4] apple", backend, solver=solver, num_inference_steps=5, seed=3)
    red, green = (plain(backend, f"a {colour} apple") for colour in ("red", "green"))
    found = drawn(backend, order)
    np.testing.assert_array_equal(found, by_hand(backend, order, lambda step: red if step < 2 else green))
    assert not np.array_equal(found, by_hand(backend, order, lambda step: red if step < 3 else green))


def test_every_evaluation_of_a_step_has_the_text_of_the_step():
    backend = Watched()
    spec = dataclasses.replace(backend.info.contract.schedule, rescale_zero_terminal_snr=False)
    backend.info = dataclasses.replace(
        backend.info, contract=dataclasses.replace(backend.info.contract, schedule=spec)
    )
    backend._schedule = backend.info.contract.make_schedule()
    order = request("[red|green|blue]", backend, solver="heun", num_inference_steps=4, guidance_scale=1.0)
    Engine(backend=backend).generate(order)
    rows = {name: plain(backend, name).tokens[1] for name in ("red", "green", "blue")}
    seen = [next(n for n, row in rows.items() if np.array_equal(row, told[0])) for told in backend.told]
    assert seen == ["red", "red", "green", "green", "blue", "blue", "red"]


def test_each_text_is_encoded_once():
    class Counting(FakeBackend):
        rows_encoded = 0

        def encode_text(self, ids, masks, clip_skip=0):
            self.rows_encoded += 1
            return super().encode_text(ids, masks, clip_skip)

    backend = Counting()
    Engine(backend=backend).generate(request("[red|green] AND [green|red]", num_inference_steps=20))
    assert backend.rows_encoded == 2


def test_negative_prompt_can_change_too():
    backend = FakeBackend()
    order = request("apple", negative_prompt="[red:green:2]")
    pairs = [plain(backend, "apple", colour) for colour in ("red", "green")]
    expected = by_hand(backend, order, lambda step: pairs[step >= 2])
    np.testing.assert_array_equal(drawn(backend, order), expected)


def test_and_of_equal_halves_is_the_prompt_alone():
    alone = drawn(FakeBackend(), request("red apple", guidance_scale=3.0))
    backend = Watched()
    halves = drawn(backend, request("red apple :0.5 AND red apple :0.5", guidance_scale=3.0))
    np.testing.assert_allclose(halves, alone, rtol=0, atol=1e-6)
    assert {len(told) for told in backend.told} == {3}
    assert backend.prepared[0]["batches"] == (3,)


def test_and_weighs_its_prompts():
    backend = FakeBackend()
    order = request("red AND green :-0.5", guidance_scale=3.0, num_inference_steps=1)
    assert prompts.weights(backend.info, order) == (1.0, -0.5)
    x0 = {}
    for name in ("", "red", "green"):
        one = request(name, guidance_scale=1.0, num_inference_steps=1)
        x0[name] = drawn(backend, one).astype(np.float64)
    expected = x0[""] + 3.0 * ((x0["red"] - x0[""]) - 0.5 * (x0["green"] - x0[""]))
    np.testing.assert_allclose(drawn(backend, order), expected, atol=1e-5)


def test_many_prompts_make_smaller_batches():
    backend = Watched(rows=4)
    result = Engine(backend=backend).generate(request(" AND ".join(["red"] * 8), n=3))
    assert max(map(len, backend.told)) == 9
    alone = Engine(backend=FakeBackend()).generate(request(" AND ".join(["red"] * 8), n=1, seed=2))
    assert np.array_equal(result.images[2], alone.images[0])


def test_and_without_guidance_draws_the_first_and_says_so():
    backend = FakeBackend(students={"quick": (2,)})
    order = request("red AND green", backend, guidance_scale=1.0)
    np.testing.assert_array_equal(drawn(backend, order), drawn(backend, request("red", guidance_scale=1.0)))
    assert order.warnings == (
        "AND needs guidance, and guidance 1 is no guidance: of the 2 prompts only the first is drawn; write "
        "one prompt, or draw with guidance",
    )
    by_student = request("red AND green", backend, student="quick")
    assert by_student.warnings == order.warnings
    assert prompts.weights(backend.info, by_student) == (1.0,)


def test_and_where_guidance_is_an_input_draws_the_first_and_says_so():
    backend = FakeBackend()
    contract = dataclasses.replace(backend.info.contract, guidance="embedded")
    backend.info = dataclasses.replace(backend.info, contract=contract)
    order = request("red AND green", backend, guidance_scale=4.0)
    assert order.warnings == (
        "AND has no effect, because this model is told its guidance as a number: of the 2 prompts only the "
        "first is drawn",
    )
    assert prompts.weights(backend.info, order) == (1.0,)


def test_without_guidance_a_negative_prompt_does_not_make_the_prompt_longer():
    backend = FakeBackend()
    order = request("red", negative_prompt="green BREAK blue", guidance_scale=1.0)
    assert encoded(backend, order).conditions.tokens.shape == (2, 16, 8)


def test_few_steps_are_spoken_of():
    assert request("[red:green:0.5]", num_inference_steps=1).warnings == (
        '[red:green:0.5]: with 1 step nothing can change on the way; only "green" is drawn',
    )
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    said = request("[red:green:0.8]", num_inference_steps=10, init_image=image, strength=0.5).warnings
    assert said == (
        "[red:green:0.8]: it would change after step 8 of 10, and the picture to start from leaves 5",
    )
    assert request("[red:green:0.8]", num_inference_steps=10).warnings == ()


def test_picture_to_start_from_counts_whole_grids():
    backend = Watched()
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    order = request(
        "[red:green:0.3]", backend, num_inference_steps=10, init_image=image, strength=0.5, guidance_scale=1.0
    )
    Engine(backend=backend).generate(order)
    red = plain(backend, "red").tokens[1]
    assert [np.array_equal(told[0], red) for told in backend.told] == [True] * 3 + [False] * 2


def test_second_pass_counts_on():
    order = dataclasses.replace(
        request("[red:green:0.5] [dog:apple:1.5]"), num_inference_steps=8, strength=0.5, first_steps=8
    )
    entries = prompts.plans(order)[1].subprompts[0].schedule
    assert [(entry.last_step, entry.text) for entry in entries] == [(2, "green dog"), (4, "green apple")]


def test_record_keeps_the_prompt_as_typed_and_names_an_unusual_emphasis():
    engine = Engine(backend=FakeBackend())
    typed = " a (red:1.2) [dog|apple] "
    record = engine.generate(resolve(engine.info, prompt=typed)).record
    assert record["prompt"] == typed
    assert "emphasis" not in record
    assert (
        engine.generate(resolve(engine.info, prompt=typed, emphasis="no_norm")).record["emphasis"]
        == "no_norm"
    )


def test_tags_are_adapters():
    uses, said = prompts.adapters("a <lora:ink:0.8:0.5> dog <hypernet:old> <lora:b:1:1:4>")
    assert [(use.name, use.weight, use.text_weight) for use in uses] == [("ink", 0.5, 0.8), ("b", 1.0, 1.0)]
    assert said == [
        "<hypernet:old> is left out: hypernetworks are not supported",
        "<lora:b>: dyn=4 is not supported, its own rank is used",
    ]


def test_tags_and_control_characters_leave_the_text():
    backend = FakeBackend()
    tokens = prompts.encode(
        backend, text.tokenizers(backend.info),
        [dataclasses.replace(request("a dog"), prompt="a\x07 <hypernet:old>dog")],
    )[0].conditions.tokens  # fmt: skip
    np.testing.assert_array_equal(tokens[1], plain(backend, "a dog").tokens[1])
