"""From the form's values to an order, and from records and texts back into the form."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.errors import UsageError
from fewstep.prompt import infotext
from fewstep.prompt.styles import Style
from fewstep.server.schemas.native import GenerateBody
from fewstep.studio import orders, recalled, styles

FORM: dict[str, Any] = {
    "prompt": "a fox", "negative_prompt": "blurry", "model": "emoji-128", "quality": "none:20",
    "student": "none", "num_inference_steps": 20.0, "solver": "ddim", "guidance_scale": 2.0,
    "guidance_rescale": 0.0, "eta": -1, "clip_skip": 0, "emphasis": "original", "insist": False,
    "deterministic": False, "seed": -1, "n": 4, "width": 128.0, "height": 128, "variation_seed": -1,
    "variation_strength": 0, "adapters": {"html": "<b>", "chosen": []}, "styles": [], "upscale": "none",
}  # fmt: skip


def test_a_form_becomes_an_order_that_the_server_takes() -> None:
    found = orders.body(FORM)
    assert GenerateBody(**found).num_inference_steps == 20
    assert found["negative_prompt"] == "blurry" and found["student"] == "none" and found["n"] == 4
    for name in (
        "seed",
        "eta",
        "emphasis",
        "insist",
        "deterministic",
        "variation_seed",
        "upscale",
        "quality",
    ):
        assert name not in found
    assert isinstance(found["width"], int) and isinstance(found["num_inference_steps"], int)


def test_everything_of_the_form_comes_into_the_order() -> None:
    asked = {
        "seed": 0, "eta": 0.0, "clip_skip": 1, "emphasis": "no_norm", "insist": True, "deterministic": True,
        "variation_seed": 7, "variation_strength": 0.25, "guidance_rescale": 0.5, "upscale": "auto",
        "adapters": {"html": "", "chosen": [{"name": "gold", "weight": 0.5}]},
    }  # fmt: skip
    body = GenerateBody(**orders.body(FORM | asked))
    assert body.seed == 0 and body.eta == 0 and body.clip_skip == 1 and body.emphasis == "no_norm"
    assert body.insist and body.deterministic and body.upscale.name == "auto"
    assert (body.variation_seed, body.variation_strength, body.guidance_rescale) == (7, 0.25, 0.5)
    assert [(one.name, one.weight) for one in body.adapters] == [("gold", 0.5)]


def test_a_negative_prompt_without_effect_is_not_sent() -> None:
    student = {"student": "four", "num_inference_steps": 4, "guidance_scale": 1}
    assert "negative_prompt" not in orders.body(FORM | student)


def test_an_empty_form_is_an_order_too() -> None:
    assert orders.body({}) == {"kind": "generate", "prompt": ""}
    assert orders.body(dict.fromkeys(orders.FIELDS)) == {"kind": "generate", "prompt": ""}


def test_styles_are_put_around_what_is_typed() -> None:
    known = [Style("sky", "{prompt}, on a sky blue background", "grey"), Style("noto", "noto style")]
    values = [value for _, value in styles.choices(known)]
    found = orders.body(FORM | {"styles": values})
    assert found["prompt"] == "a fox, on a sky blue background, noto style"
    assert found["negative_prompt"] == "blurry, grey"
    assert styles.among(known, values) == values
    assert styles.among(known[1:], values) == values[1:]
    for junk in (None, "x", ["no json", "[1]", 3], [values[0]] * 2):
        styles.applied("a", "", junk)
    large = Style("large", "{prompt}" * 4)
    with pytest.raises(UsageError, match="longer than"):
        orders.body(FORM | {"prompt": "a" * 9000, "styles": [value for _, value in styles.choices([large])]})


def test_a_record_fills_the_form_and_makes_the_same_order() -> None:
    record = {
        "prompt": "a fox <lora:night:0.4>", "negative_prompt": "", "model": "emoji-128", "seed": 5,
        "num_inference_steps": 4, "guidance_scale": 1.0, "guidance_rescale": 0.0, "solver": "ddim",
        "eta": None, "width": 128, "height": 64, "student": {"name": "four", "hash": "x"},
        "variation": {"seed": 9, "strength": 0.3}, "deterministic": False,
        "adapters": [{"name": "gold", "weight": 0.5}, {"name": "night", "weight": 0.4}],
    }  # fmt: skip
    values = recalled.of_record(record)
    assert set(values) <= set(orders.FIELDS)
    body = orders.body(values)
    GenerateBody(**body)
    assert body["student"] == "four" and body["seed"] == 5 and body["height"] == 64
    assert body["variation_seed"] == 9 and body["variation_strength"] == 0.3
    assert body["adapters"] == [{"name": "gold", "weight": 0.5}]  # the other one is in the prompt
    plain = recalled.of_record(record | {"student": None, "variation": None, "adapters": None})
    assert plain["student"] == "none" and plain["variation_strength"] == 0 and plain["adapters"] == []


def test_a_pasted_text_of_parameters_fills_the_form() -> None:
    record = {
        "prompt": "a fox,\nnoto style", "negative_prompt": "blurry", "num_inference_steps": 20,
        "solver": "ddim", "guidance_scale": 2.0, "seed": 3, "width": 128, "height": 96,
        "model": "emoji-128", "model_hash": "e" * 64, "fewstep": "0.1.0", "guidance_rescale": 0.0,
    }  # fmt: skip
    found = recalled.of_text(infotext.from_record(record))
    assert found is not None
    assert found["prompt"] == "a fox,\nnoto style" and found["negative_prompt"] == "blurry"
    assert (found["width"], found["height"], found["seed"]) == (128, 96, 3)
    assert found["solver"] == "ddim" and found["student"] == "none" and found["num_inference_steps"] == 20
    theirs = "a cat\nSteps: 30, Sampler: Euler a, CFG scale: 7, Seed: x, Size: 512x512, Clip skip: 2"
    other = recalled.of_text(theirs)
    assert other is not None and other["solver"] == "euler_a" and other["clip_skip"] == 1
    assert "seed" not in other and other["student"] == "none"
    assert recalled.of_text("a fox: red, big: yes") is None
    assert recalled.of_text("a" * 300_000) is None
