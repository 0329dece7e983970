"""Orders that are drawn together: which ones, with what pictures, and what one's end does to the others."""

import dataclasses
import threading

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.engine import batching, hires
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.backends.openvino import OpenVINOBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, EngineError, NotReady, UsageError

SEVERAL = [
    {"prompt": "a red apple", "seed": 3},
    {"prompt": "a green dog", "seed": 11, "n": 3},
    {"prompt": "[red:blue:0.5] apple", "seed": 0, "negative_prompt": "dog"},
    {"prompt": "", "seed": 3},
]


class Counting(FakeBackend):
    """Remembers the rows of every call of the denoiser; `before` is called ahead of each."""

    def __init__(self, before=lambda call, x: None, **given):
        super().__init__(**{"rows": 8, **given})
        self.seen = []
        self.before = before

    def denoise(self, x, t, conditions, student=None):
        self.seen.append(len(x))
        self.before(len(self.seen), x)
        return super().denoise(x, t, conditions, student)


def requests(engine, several=SEVERAL, **shared):
    return [resolve(engine.info, **{**own, **shared}) for own in several]


def ramp():
    y, x = np.mgrid[0:64, 0:64]
    return np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)


def half():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[20:50, 10:40] = 255
    return mask


CASES = {
    "guided": {},
    "unguided": {"guidance_scale": 1.0},
    "rescaled": {"guidance_rescale": 0.7},
    "two_m": {"solver": "dpmpp_2m"},
    "heun": {"solver": "heun"},
    "ancestral": {"solver": "euler_a"},
    "unipc": {"solver": "unipc"},
    "image": {"init_image": ramp(), "strength": 0.6},
    "mask": {"init_image": ramp(), "mask": half(), "masked_content": "latent_noise", "strength": 0.9},
    "hires": {"hires": hires.Hires(scale=2.0, upscaler="latent")},
    "hires_pixels": {"hires": hires.Hires(scale=2.0, upscaler="lanczos")},
    "variation": {"variation_strength": 0.3},
    "tiled": {"width": 128, "height": 128, "tiling": True},
}


@pytest.mark.parametrize("case", CASES)
def test_o19_together_every_order_has_what_it_has_alone(case):
    engine = Engine(backend=Counting())
    orders = requests(engine, **CASES[case])
    alone = [engine.generate(order) for order in orders]
    calls = len(engine.backend.seen)
    together = batching.generate_batch(engine, orders)
    assert len(engine.backend.seen) - calls < calls
    for one, other in zip(alone, together, strict=True):
        assert other.seeds == one.seeds and other.record == one.record and other.warnings == one.warnings
        assert len(other.images) == len(one.images)
        for mine, its in zip(one.images, other.images, strict=True):
            assert np.abs(mine.astype(int) - its).max() <= 1
            if case != "guided":
                continue
            # The fake's own arithmetic does not depend on its neighbours either.
            assert np.array_equal(mine, its)


def test_o19_joined_prompts_and_students():
    engine = Engine(backend=Counting(students={"quick": (2,)}))
    joined = requests(engine, [{"prompt": "red AND dog", "seed": s} for s in (1, 5)])
    quick = requests(engine, [{"prompt": p, "student": "quick"} for p in ("a dog", "an apple")])
    for orders in (joined, quick):
        assert batching.compatible(engine.info, *orders)
        for one, other in zip(
            map(engine.generate, orders), batching.generate_batch(engine, orders), strict=True
        ):
            assert np.abs(one.images[0].astype(int) - other.images[0]).max() <= 1


def test_images_of_all_orders_fill_the_batches():
    engine = Engine(backend=Counting(rows=4))
    batching.generate_batch(engine, requests(engine, guidance_scale=1.0))
    assert engine.backend.seen == [4] * 5 + [2] * 5  # 1 + 3 and 1 + 1 images


@pytest.mark.parametrize(
    "other",
    [
        {"num_inference_steps": 6}, {"guidance_scale": 3.0}, {"solver": "unipc"}, {"width": 128},
        {"student": "quick"}, {"init_image": ramp()}, {"guidance_rescale": 0.3}, {"tiling": True},
        {"prompt": "red AND dog"}, {"prompt": "red BREAK dog"}, {"deterministic": True},
        {"emphasis": "ignore"}, {"hires": hires.Hires(scale=2.0, upscaler="latent")},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_what_differs_in_more_than_texts_and_noise_is_not_compatible(other):
    info = FakeBackend(students={"quick": (2,)}).info
    plain = resolve(info, prompt="a red apple")
    different = resolve(info, **{"prompt": "a dog", **other})
    assert not batching.compatible(info, plain, different)
    assert not batching.compatible(info, different, plain)
    if "deterministic" not in other:
        assert batching.compatible(info, different, dataclasses.replace(different, seed=9, n=2))


def test_pictures_are_compared_by_their_pixels():
    info = FakeBackend().info
    a, b = (resolve(info, prompt="a dog", init_image=ramp(), mask=half(), seed=s) for s in (1, 2))
    assert batching.compatible(info, a, b)
    assert not batching.compatible(info, a, resolve(info, prompt="a dog", init_image=ramp() + 1, mask=half()))
    assert not batching.compatible(info, a, resolve(info, prompt="a dog", init_image=ramp()))


def test_one_that_is_cancelled_drops_out_at_the_next_step_and_disturbs_nobody():
    stop = threading.Event()
    backend = Counting(lambda call, x: stop.set() if call == 2 else None)
    engine = Engine(backend=backend)
    orders = requests(engine)
    alone = [engine.generate(order) for order in orders]
    backend.seen.clear()
    stop.clear()
    steps = [[] for _ in orders]
    ends = batching.generate_batch(
        engine, orders, on_step=[own.append for own in steps], cancelled=[None, stop.is_set, None, None]
    )
    assert backend.seen == [12, 12, 6, 6, 6]
    assert isinstance(ends[1], Cancelled) and str(ends[1]) == "stopped by request after 2 of 5 steps"
    assert [len(own) for own in steps] == [5, 2, 5, 5]
    assert [(report.index, report.total, report.images) for report in steps[1]] == [(2, 15, 3), (5, 15, 3)]
    for index in (0, 2, 3):
        assert np.abs(ends[index].images[0].astype(int) - alone[index].images[0]).max() <= 1
        assert ends[index].record == alone[index].record


def test_when_all_are_cancelled_nothing_is_drawn_any_more():
    stop = threading.Event()
    backend = Counting(lambda call, x: stop.set() if call == 2 else None, rows=4)
    engine = Engine(backend=backend)
    orders = requests(engine)
    ends = batching.generate_batch(engine, orders, cancelled=[stop.is_set] * 4)
    # Of the second batch nobody asked for a step before it was stopped.
    assert [type(end) for end in ends] == [Cancelled] * 4 and len(backend.seen) == 2


def test_between_the_passes_too_one_drops_out():
    stop = threading.Event()
    backend = Counting(lambda call, x: stop.set() if call == 5 else None)
    engine = Engine(backend=backend)
    orders = requests(engine, SEVERAL[::3], hires=hires.Hires(scale=2.0, upscaler="latent"))
    ends = batching.generate_batch(engine, orders, cancelled=[stop.is_set, None])
    assert isinstance(ends[0], Cancelled) and ends[1].images[0].shape == (128, 128, 3)
    assert set(backend.seen[:5]) == {4} and set(backend.seen[5:]) == {2}


def test_values_that_are_not_finite_are_the_end_of_their_order_alone():
    class Poisoned(Counting):
        def denoise(self, x, t, conditions, student=None):
            output = super().denoise(x, t, conditions, student)
            if len(self.seen) == 3 and len(x) == 4:
                output[1] = np.inf  # the second order's, which is unguided
            return output

    engine = Engine(backend=Poisoned())
    orders = requests(engine, [{"prompt": p} for p in ("red", "dog", "apple", "blue")], guidance_scale=1.0)
    ends = batching.generate_batch(engine, orders)
    assert isinstance(ends[1], EngineError) and "step 3 of 5" in str(ends[1])
    assert engine.backend.seen == [4, 4, 4, 3, 3]
    for index in (0, 2, 3):
        assert np.array_equal(ends[index].images[0], engine.generate(orders[index]).images[0])


@pytest.mark.parametrize(
    ("raised", "seen"), [(EngineError("broken"), EngineError), (MemoryError(), NotReady)]
)
def test_a_failure_of_all_is_found_out_one_by_one(raised, seen):
    """The network fails whenever the order of the seed is in the batch."""
    bad = []

    def before(call, x):
        if any(np.array_equal(row, bad[0]) for row in x):
            raise raised

    backend = Counting(before)
    engine = Engine(backend=backend)
    orders = requests(engine, guidance_scale=1.0)
    from fewstep.diffusion.noise import image_noise

    bad.append(image_noise(13, (4, 8, 8)))  # the last image of the second order
    ends = batching.generate_batch(engine, orders)
    assert [type(end) for end in ends].count(seen) == 1 and isinstance(ends[1], seen)
    assert all(ends[index].images for index in (0, 2, 3))


def test_what_is_told_of_a_step_may_fail(caplog):
    def fail(report):
        raise KeyError("a bug")

    engine = Engine(backend=Counting())
    orders = requests(engine)
    ends = batching.generate_batch(engine, orders, on_step=[None, fail, None, None])
    assert isinstance(ends[1], EngineError) and isinstance(ends[1].__cause__, KeyError)
    assert all(ends[index].images for index in (0, 2, 3))
    with pytest.raises(KeyError):
        engine.generate(orders[1], on_step=fail)


def test_an_order_is_told_of_its_end_before_the_others_are_done():
    told = []
    engine = Engine(backend=Counting(rows=1))
    orders = requests(engine)
    batching.generate_batch(
        engine, orders, on_end=lambda index, end: told.append((index, len(engine.backend.seen), end.seeds))
    )
    assert told == [(0, 5, [3]), (1, 20, [11, 12, 13]), (2, 25, [0]), (3, 30, [3])]


@pytest.mark.parametrize("rows", [1, 4])
def test_o19_openvino_has_the_same_bits_alone_and_together(student_bundle, rows):
    backend = OpenVINOBackend(bundle.open_bundle(student_bundle), threads=1, rows=rows)
    engine = Engine(backend=backend)
    try:
        assert backend.rows == rows
        for shared in ({}, {"student": "quick"}):
            orders = requests(engine, **shared) if not shared else requests(engine, SEVERAL[:2], **shared)
            ends = batching.generate_batch(engine, orders)
            for order, end in zip(orders, ends, strict=True):
                for mine, its in zip(engine.generate(order).images, end.images, strict=True):
                    assert np.array_equal(mine, its)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("rows", "there", "sizes"),
    [
        (1, {1}, {1: [1], 2: [1, 1], 3: [1, 1, 1]}),
        (4, {1, 2, 4}, {1: [1], 2: [2], 3: [4], 4: [4], 5: [4, 1], 7: [4, 4], 8: [4, 4]}),
        (6, {1, 2, 4}, {5: [4, 1], 6: [4, 2]}),
        # What is not there yet is not waited for where there is another: a larger one, else a smaller one.
        (4, {1}, {3: [1, 1, 1], 4: [1, 1, 1, 1]}), (4, {4}, {1: [4], 5: [4, 4]}), (4, {1, 2}, {3: [2, 1]}),
        (4, set(), {1: [1], 3: [4], 5: [4, 1]}),
    ],
)  # fmt: skip
def test_openvino_divides_rows_among_few_networks(student_bundle, rows, there, sizes):
    engine = Engine(student_bundle, threads=1, rows=rows)
    try:
        for count, expected in sizes.items():
            called = []
            while sum(called) < count:
                called.append(engine.backend._size(count - sum(called), lambda size: size in there))
            assert called == expected
    finally:
        engine.close()


def test_rows_are_the_engines_to_choose():
    assert Engine(backend="fake", rows=3).backend.rows == 3
    with pytest.raises(UsageError, match="rows is 0: give 1 or more"):
        Engine(backend="fake", rows=0)


def test_openvino_one_that_drops_out_needs_no_other_network(student_bundle):
    """A batch that shrinks goes on in the network that is there: to compile another takes seconds."""
    stop = threading.Event()
    backend = OpenVINOBackend(bundle.open_bundle(student_bundle), threads=1, rows=4)
    engine = Engine(backend=backend)
    try:
        orders = requests(engine, [{"prompt": "a dog", "seed": s} for s in range(4)], student="quick")
        alone = [engine.generate(order) for order in orders]
        batching.generate_batch(engine, orders)
        before = set(backend._loaded)
        ends = batching.generate_batch(
            engine,
            orders,
            on_step=[lambda _: stop.set(), None, None, None],
            cancelled=[stop.is_set] + [None] * 3,
        )
        assert isinstance(ends[0], Cancelled) and set(backend._loaded) == before
        for one, end in zip(alone[1:], ends[1:], strict=True):
            assert np.array_equal(one.images[0], end.images[0])
    finally:
        engine.close()
