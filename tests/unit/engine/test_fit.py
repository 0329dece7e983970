"""Settings that do not fit a model of few steps: put right with a word, or kept where the user insists."""

from __future__ import annotations

import dataclasses

import pytest

from fewstep.diffusion.published import find
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import UsageError

LIGHTNING = find("sdxl-lightning-4step-unet").contract


def few(contract=LIGHTNING):
    fake = FakeBackend()
    fake.info = dataclasses.replace(fake.info, contract=contract, max_size=4096)
    return Engine(backend=fake)


def order(engine, **given):
    return resolve(engine.info, prompt="a red apple", width=64, height=64, **given)


def about(request, word):
    return [warning for warning in request.warnings if word in warning]


def test_without_settings_nothing_is_said():
    engine = few()
    request = order(engine)
    assert (request.num_inference_steps, request.solver, request.guidance_scale) == (4, "euler", 1.0)
    assert request.contract is None and not about(request, "SDXL-Lightning")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_inference_steps": 30}, "30 steps on SDXL-Lightning"),
        ({"guidance_scale": 7.5}, "guidance 7.5 on SDXL-Lightning oversaturates"),
        ({"guidance_scale": 0.0}, "guidance 0 on SDXL-Lightning leaves the prompt out"),
        ({"guidance_rescale": 0.7}, "guidance rescale 0.7 on SDXL-Lightning"),
        ({"solver": "unipc"}, "solver unipc on SDXL-Lightning"),
    ],
)
def test_what_does_not_fit_is_put_right_and_said(given, words):
    engine = few()
    plain, request = order(engine), order(engine, **given)
    (said,) = about(request, words)
    ((name, value),) = given.items()
    assert said.endswith(f"(done; --insist keeps {value if isinstance(value, str) else format(value, 'g')})")
    assert getattr(request, name) == getattr(plain, name) != value
    result = engine.generate(request)
    assert said in result.record["warnings"]
    assert (result.images[0] == engine.generate(plain).images[0]).all()


def test_what_is_insisted_on_is_used_and_said():
    engine = few()
    request = order(engine, num_inference_steps=6, guidance_scale=3.0, solver="ddim", insist=True)
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (6, 3.0, "ddim")
    assert len(about(request, "as you insist")) == 2  # ddim and euler take the same steps
    contract = request.sampling(engine.info)
    assert contract.guidance == "classifier_free" and contract.allowed_steps is None
    engine.backend.calls = 0
    result = engine.generate(request)
    assert engine.backend.calls == 6
    assert result.record["num_inference_steps"] == 6 and result.record["insist"] is True
    assert about(request, "as you insist")[0] in result.record["warnings"]
    assert engine.info.contract == LIGHTNING


def test_insisting_on_what_fits_changes_nothing():
    engine = few()
    request = order(engine, num_inference_steps=4, insist=True)
    assert request.contract is None
    assert engine.generate(request).record == engine.generate(order(engine)).record


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance is nan"),
        ({"solver": "nonsense"}, "nonsense"),
    ],
)
@pytest.mark.parametrize("insist", [False, True])
def test_what_is_no_setting_at_all_is_refused(given, words, insist):
    with pytest.raises(UsageError, match=words):
        order(few(), insist=insist, **given)


def test_base_models_are_as_they_were():
    engine = Engine(backend=FakeBackend())
    request = order(engine, num_inference_steps=40, guidance_scale=9.0, solver="euler")
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (40, 9.0, "euler")
    with pytest.raises(UsageError, match="guidance is 0"):
        order(engine, guidance_scale=0.0)


def test_a_student_refuses_what_the_model_itself_can_do_unless_insisted():
    engine = Engine(backend=FakeBackend(students={"quick": (2, 4)}))
    with pytest.raises(UsageError, match="student 'quick' was made for 2, 4"):
        order(engine, student="quick", num_inference_steps=9)
    request = order(engine, student="quick", num_inference_steps=9, insist=True)
    assert request.num_inference_steps == 9 and about(request, "as you insist")


def test_another_spacing_is_used_by_a_base_model_and_said_in_its_record():
    engine = Engine(backend=FakeBackend())
    own, asked = order(engine), order(engine, spacing="leading")
    assert own.spacing is None and "spacing" not in engine.generate(own).record
    assert asked.spacing == "leading" and asked.sampling(engine.info).spacing == "leading"
    assert engine.generate(asked).record["spacing"] == "leading"
    grids = [one.sampling(engine.info).grid(5, one.solver) for one in (own, asked)]
    assert grids[1][0] < grids[0][0]


def test_the_models_own_spacing_changes_nothing():
    engine = Engine(backend=FakeBackend())
    assert order(engine, spacing="trailing").contract is None


def test_a_model_of_few_steps_keeps_its_times_unless_insisted():
    engine = few()
    request = order(engine, spacing="karras")
    assert request.spacing is None and about(request, "karras spacing on SDXL-Lightning")
    request = order(engine, spacing="karras", insist=True)
    assert request.sampling(engine.info).spacing == "karras" and about(request, "you insist")


def test_a_spacing_that_does_not_exist_is_refused():
    for name in ("explicit", "sinc"):
        with pytest.raises(UsageError, match="give one of trailing, leading"):
            order(Engine(backend=FakeBackend()), spacing=name)
