"""Who draws a request: the model itself, or one of its students."""

import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.request import resolve
from fewstep.errors import NotFoundError, UsageError

INFO = FakeBackend(students={"few": (4, 2), "eight": (8, 4)}).info
IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)


def ask(**given):
    return resolve(INFO, **{"prompt": "a dog", **given})


@pytest.mark.parametrize(
    ("given", "who"),
    [
        ({}, None),
        ({"num_inference_steps": 4}, "few"),  # of two that draw in 4 steps, the first
        ({"num_inference_steps": 2}, "few"),
        ({"num_inference_steps": 8}, "eight"),
        ({"num_inference_steps": 3}, None),
        ({"num_inference_steps": 4, "guidance_scale": 3.0}, None),
        ({"num_inference_steps": 4, "guidance_scale": 1.0}, None),
        ({"num_inference_steps": 4, "guidance_rescale": 0.5}, None),
        ({"num_inference_steps": 4, "negative_prompt": "blue"}, None),
        ({"num_inference_steps": 4, "student": "none"}, None),
        ({"num_inference_steps": 4, "student": "eight"}, "eight"),
        ({"student": "none"}, None),
        ({"student": "eight"}, "eight"),
        ({"num_inference_steps": 4, "solver": "lcm"}, "few"),
        ({"student": "few", "guidance_scale": 1.0, "guidance_rescale": 0.0}, "few"),
    ],
)
def test_who_draws(given, who):
    assert ask(**given).student == who


def test_a_student_brings_its_own_settings():
    request = ask(student="eight")
    assert (request.num_inference_steps, request.solver, request.guidance_scale) == (8, "lcm", 1.0)
    assert request.warnings == ()
    base = ask()
    assert (base.num_inference_steps, base.solver, base.guidance_scale) == (5, "ddim", 2.0)


def test_a_contract_of_any_step_count_is_taken_for_its_own_only():
    from dataclasses import replace

    student = INFO.students[0]
    any_count = replace(student, contract=replace(student.contract, allowed_steps=None))
    info = replace(INFO, students=(any_count,))
    assert resolve(info, prompt="", num_inference_steps=4).student == "few"
    assert resolve(info, prompt="", num_inference_steps=5).student is None
    assert resolve(info, prompt="", num_inference_steps=5, student="few").num_inference_steps == 5


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"student": "few", "num_inference_steps": 3}, "steps is 3: student 'few' was made for 4, 2"),
        ({"student": "few", "guidance_scale": 3.0}, "guidance is 3: student 'few' draws without guidance"),
        ({"student": "few", "guidance_scale": float("nan")}, "guidance is nan"),
        ({"student": "few", "guidance_rescale": 0.5}, "leave --guidance-rescale out"),
        ({"student": "few", "solver": "ddim"}, "solver is 'ddim': student 'few' is drawn with lcm"),
        ({"num_inference_steps": 4, "solver": "dpmpp_2m"}, "leave --solver out"),
        ({"student": "few", "eta": 0.5}, "leave eta out"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_way_out(given, words):
    with pytest.raises(UsageError) as caught:
        ask(**given)
    assert words in str(caught.value)
    assert "--student none" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_step_counts_are_refused_as_ever():
    for steps, words in ((0, "at least one step"), (True, "whole number"), (4.0, "whole number")):
        with pytest.raises(UsageError, match=words):
            ask(num_inference_steps=steps)


@pytest.mark.parametrize("name", ["fwe", "", "../few", "NONE"])
def test_an_unknown_student_is_an_error_that_lists_what_there_is(name):
    with pytest.raises(NotFoundError, match="there are: few, eight"):
        ask(student=name)
    with pytest.raises(NotFoundError, match="there are: none"):
        resolve(FakeBackend().info, prompt="", student="few")


def test_what_has_less_effect_than_it_seems_is_warned_about():
    (warning,) = ask(student="few", negative_prompt="blue").warnings
    assert "negative prompt has no effect: student 'few'" in warning
    assert "--student none" in warning
    (warning,) = ask(num_inference_steps=4, init_image=IMAGE, strength=0.5).warnings
    assert "strength 0.5 leaves 2 of the 4 steps that student 'few' was made for" in warning
    assert "--strength 1, or --student none" in warning
    assert ask(num_inference_steps=4, init_image=IMAGE, strength=1.0).warnings == ()
    assert ask(num_inference_steps=5, init_image=IMAGE, strength=0.5).warnings == ()
