"""Fields of a request to orders: sizes, steps, strengths, which pictures a stream shows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fewstep.engine.backends.fake import FakeBackend
from fewstep.errors import UsageError
from fewstep.server import sizes, steps
from fewstep.server.openai.wishes import Refused, Source, order, partial_steps
from fewstep.server.orders import Upscale
from fewstep.server.schemas.openai import EditBody, GenerationBody, VariationBody, check
from fewstep.server.settings import Limits

BASE = FakeBackend().info
STUDENTS = FakeBackend(students={"two": (2,), "four": (4,)}).info
NATIVE = 64


@pytest.mark.parametrize(
    ("quality", "base", "students"),
    [
        ("low", 1, 2), ("medium", 2, 2), ("high", 5, 4), ("xhigh", 5, 5), ("max", 5, 5),
        ("standard", 2, 2), ("hd", 5, 4), ("auto", None, None), (None, None, None),
    ],
)  # fmt: skip
def test_quality_becomes_steps(quality: str | None, base: int | None, students: int | None) -> None:
    wish = GenerationBody(prompt="a", quality=quality).wish()  # type: ignore[arg-type]
    for info, count in ((BASE, base), (STUDENTS, students)):
        assert order(wish, info, owner="", save=True).settings.get("num_inference_steps") == count


def test_steps_are_taken_in_place_of_quality() -> None:
    wish = GenerationBody(prompt="a", quality="low", steps=3).wish()
    assert order(wish, STUDENTS, owner="", save=True).settings["num_inference_steps"] == 3


def test_a_model_of_few_steps_has_its_own_counts() -> None:
    contract = dataclasses.replace(
        BASE.contract, method="fake", num_inference_steps=4, allowed_steps=(1, 4, 8), guidance="off",
        guidance_scale=1.0, negative_prompt_effective=False,
    )  # fmt: skip
    info = dataclasses.replace(BASE, contract=contract)
    assert steps.counts(info) == (1, 4, 8)
    assert [steps.of_level(info, level) for level in range(5)] == [1, 4, 4, 8, 8]
    assert steps.fewest(info) == 1
    assert steps.fewest(STUDENTS, "four") == 4
    assert steps.counts(STUDENTS, "none") == (1, 2, 5)


@pytest.mark.parametrize(
    ("size", "drawn", "upscaled"),
    [
        ("64x64", (64, 64), False),
        ("72x64", (72, 64), False),
        ("512x512", (64, 64), True),
        ("1536x1024", (72, 48), True),
        ("63x63", (64, 64), True),
        ("32x32", (64, 64), True),
    ],
)
def test_sizes_are_drawn_or_reached(size: str, drawn: tuple[int, int], upscaled: bool) -> None:
    made = order(GenerationBody(prompt="a", size=size).wish(), BASE, owner="", save=True)
    assert (made.settings["width"], made.settings["height"]) == drawn
    wanted = sizes.parse(size)
    assert made.upscale == (Upscale(width=wanted[0], height=wanted[1]) if upscaled else None)


def test_an_open_size_is_the_models_own_enlarged() -> None:
    made = order(GenerationBody(prompt="a").wish(), BASE, owner="", save=True)
    assert "width" not in made.settings
    assert made.upscale == Upscale()


@given(st.integers(16, 4096), st.integers(16, 4096))
def test_whatever_the_size_the_model_can_draw_it_in_about_that_shape(width: int, height: int) -> None:
    if max(width, height) > 8 * min(width, height):
        with pytest.raises(UsageError):
            sizes.plan(BASE, width, height)
        return
    plan = sizes.plan(BASE, width, height)
    assert plan.width % 8 == plan.height % 8 == 0
    assert 32 <= min(plan.width, plan.height) and max(plan.width, plan.height) <= BASE.max_size
    assert 0.4 < plan.width * plan.height / NATIVE**2 < 2.5
    # What is over is cut off: never more than a quarter, for any shape.
    assert abs(math.log(plan.width * height / (plan.height * width))) < math.log(4 / 3)


@pytest.mark.parametrize(
    "text", ["100x1000", "0x5", "12", "axb", "1x2x3", "512X512", "-1x5", "999999x1", " 64x64", "64x64\n"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(Refused) as caught:
        order(GenerationBody(prompt="a", size=text).wish(), BASE, owner="", save=True)
    assert caught.value.param == "size"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"frame_count": 4}, "frame_count"),
        ({"frame_duration_ms": 100}, "frame_duration_ms"),
        ({"svg": {"model": "x"}}, "svg"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 1}, "partial_images"),
        ({"stream": True, "n": 2}, "n"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"output_format": "jpeg", "response_format": "url"}, "output_format"),
    ],
)
def test_what_is_not_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as caught:
        GenerationBody(prompt="a", **fields).wish()
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0}, {"n": 11}, {"quality": "best"}, {"output_compression": 101}, {"partial_images": 4},
        {"style": "loud"}, {"moderation": "none"}, {"seed": -1}, {"colour": "red"},
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerationBody(prompt="a", **fields)
    assert caught.value.errors()[0]["loc"][0] == next(iter(fields))


def test_limits_of_the_server_are_named() -> None:
    limits = Limits(max_prompt=5, max_images=2, max_steps=10, max_output=4096)
    for fields, param in (
        ({"prompt": "abcdef"}, "prompt"), ({"n": 3}, "n"), ({"steps": 11}, "steps"),
        ({"size": "65x64"}, "size"), ({"response_format": "url"}, "response_format"),
        ({"negative_prompt": "abcdef"}, "negative_prompt"),
    ):  # fmt: skip
        with pytest.raises(Refused) as caught:
            check(GenerationBody(**{"prompt": "a", **fields}).wish(), limits, keeps=False)
        assert caught.value.param == param
    check(GenerationBody(prompt="a").wish(), limits, keeps=False)


def test_null_is_the_default() -> None:
    nulls = {name: None for name in GenerationBody.model_fields if name != "prompt"}
    assert GenerationBody(prompt="a", **nulls).wish() == GenerationBody(prompt="a").wish()


def picture(mask: bool = False) -> Source:
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    return Source(image=image, mask=np.full((100, 200), 255, dtype=np.uint8) if mask else None)


@pytest.mark.parametrize(
    ("fields", "mask", "strength"),
    [
        ({}, False, None), ({"input_fidelity": "low"}, False, None), ({"input_fidelity": "high"}, False, 0.5),
        ({"input_fidelity": "high"}, True, None), ({"strength": 0.3}, False, 0.3),
        ({"strength": 0.3}, True, 0.3),
    ],
)  # fmt: skip
def test_fidelity_is_strength_where_there_is_no_mask(
    fields: dict[str, Any], mask: bool, strength: float | None
) -> None:
    made = order(EditBody(prompt="a", **fields).wish(), BASE, owner="", save=True, source=picture(mask))
    assert made.settings.get("strength") == strength
    assert ("mask" in made.settings) == mask


def test_an_edit_has_the_size_of_its_picture() -> None:
    made = order(EditBody(prompt="a").wish(), BASE, owner="", save=True, source=picture())
    assert made.upscale == Upscale(width=200, height=100)
    assert made.settings["width"] / made.settings["height"] == pytest.approx(2, rel=0.1)


def test_a_variation_is_drawn_on_the_picture_without_words() -> None:
    made = order(VariationBody(n=2, size="64x64").wish(), BASE, owner="", save=False, source=picture())
    assert made.settings["prompt"] == ""
    assert made.settings["strength"] == 0.6
    assert made.settings["n"] == 2
    assert not made.save


def test_an_instruct_model_is_given_no_strength() -> None:
    info = dataclasses.replace(BASE, inputs="instruct")
    made = order(
        EditBody(prompt="a", input_fidelity="high").wish(), info, owner="", save=True, source=picture()
    )
    assert "strength" not in made.settings


def test_forms_bring_text() -> None:
    body = EditBody.model_validate(
        {
            "prompt": "a",
            "n": "2",
            "stream": "false",
            "seed": "7",
            "size": "",
            "strength": "0.5",
            "quality": "low",
        }
    )
    assert (body.n, body.stream, body.seed, body.size, body.strength) == (2, False, 7, None, 0.5)


@pytest.mark.parametrize(
    ("total", "wanted", "after"),
    [
        (4, 3, (1, 2, 3)),
        (4, 1, (2,)),
        (4, 2, (1, 3)),
        (1, 3, ()),
        (2, 3, (1,)),
        (20, 3, (5, 10, 15)),
        (4, 0, ()),
    ],
)  # fmt: skip
def test_partial_pictures_are_spread_evenly(total: int, wanted: int, after: tuple[int, ...]) -> None:
    assert partial_steps(total, wanted) == after


@given(st.integers(1, 150), st.integers(0, 3))
def test_partial_pictures_are_never_more_and_never_the_last(total: int, wanted: int) -> None:
    found = partial_steps(total, wanted)
    assert len(found) <= wanted
    assert all(1 <= step < total for step in found)
    assert len(found) == min(wanted, total - 1)
