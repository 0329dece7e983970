"""Numbers that clients send with every request, against models that want others."""

from __future__ import annotations

import dataclasses

import pytest

from fewstep.diffusion.published import find
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.request import resolve
from fewstep.server.a1111.fitting import Asked, fitted

WEBUIAPI = {"num_inference_steps": 20, "guidance_scale": 7.0, "solver": "euler_a", "eta": 1.0}
"""What webuiapi sends when nobody chose."""


def model(contract=None, students=None):
    info = FakeBackend(students=students).info
    return info if contract is None else dataclasses.replace(info, contract=contract, max_size=4096)


def drawn(info, found):
    return resolve(info, prompt="a red apple", width=64, height=64, **found.settings)


def test_a_base_model_keeps_steps_and_sampler_but_not_the_guidance_of_others():
    found = fitted(model(), Asked(**WEBUIAPI))
    assert found.settings == {"num_inference_steps": 20, "solver": "euler_a"}
    assert found.asked == {"CFG scale": "7"} and "fewstep_insist" in found.comments[0]
    assert drawn(model(), found).guidance_scale == 2.0


def test_a_model_that_was_made_for_guidance_7_keeps_it():
    contract = dataclasses.replace(model().contract, guidance_scale=7.5)
    found = fitted(model(contract), Asked(**WEBUIAPI))
    assert found.settings["guidance_scale"] == 7.0 and not found.comments


def test_another_guidance_is_a_wish():
    found = fitted(model(), Asked(guidance_scale=6.5))
    assert found.settings == {"guidance_scale": 6.5} and not found.asked


def test_a_model_of_few_steps_draws_with_what_fits_it():
    info = model(find("sdxl-lightning-4step-unet").contract)
    found = fitted(info, Asked(**WEBUIAPI, spacing="karras"))
    request = drawn(info, found)
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (4, 1.0, "euler")
    assert request.spacing is None and "eta" not in found.settings
    assert found.asked == {
        "Steps": "20", "CFG scale": "7", "Sampler": "Euler a", "Schedule type": "Karras",
    }  # fmt: skip
    assert len(found.comments) == 4 and "SDXL-Lightning" in found.comments[0]
    assert not [one for one in request.warnings if "Lightning" in one]


def test_its_own_settings_are_said_nothing_about():
    info = model(find("sdxl-lightning-4step-unet").contract)
    found = fitted(info, Asked(num_inference_steps=4, guidance_scale=1.0, solver="euler"))
    assert not found.asked and not found.comments


def test_whoever_insists_gets_what_was_asked_for():
    info = model(find("sdxl-lightning-4step-unet").contract)
    found = fitted(info, Asked(**WEBUIAPI, spacing="karras", insist=True))
    request = drawn(info, found)
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (20, 7.0, "euler_a")
    assert request.spacing == "karras" and not found.asked


def test_a_step_count_of_a_student_is_drawn_by_it_whatever_else_the_client_sends():
    info = model(students={"four": (4,), "two": (2,)})
    found = fitted(info, Asked(**{**WEBUIAPI, "num_inference_steps": 4, "solver": "dpmpp_2m"}))
    request = drawn(info, found)
    assert (request.student, request.num_inference_steps, request.guidance_scale) == ("four", 4, 1.0)
    assert set(found.asked) == {"CFG scale", "Sampler"}


def test_a_negative_prompt_needs_the_model_itself():
    info = model(students={"four": (4,)})
    found = fitted(info, Asked(num_inference_steps=4, guidance_scale=7.0, negative=True))
    request = resolve(info, prompt="a dog", negative_prompt="red", **found.settings)
    assert request.student is None and request.guidance_scale == 2.0


@pytest.mark.parametrize(("student", "wanted"), [("two", "two"), ("none", None)])
def test_who_draws_can_be_chosen(student, wanted):
    info = model(students={"four": (4,), "two": (2,)})
    found = fitted(info, Asked(num_inference_steps=4, student=student))
    assert drawn(info, found).student == wanted


def test_eta_is_for_ddim_and_1_is_no_wish():
    assert fitted(model(), Asked(solver="ddim", eta=0.5)).settings["eta"] == 0.5
    assert "eta" not in fitted(model(), Asked(solver="ddim", eta=1.0)).settings
    assert "eta" not in fitted(model(), Asked(solver="euler", eta=0.5)).settings
    assert fitted(model(), Asked(solver="ddim", eta=1.0, insist=True)).settings["eta"] == 1.0


def test_flow_models_draw_euler_by_their_own():
    schedule = dataclasses.replace(
        model().contract.schedule, name="rectified_flow", rescale_zero_terminal_snr=False
    )
    contract = dataclasses.replace(
        model().contract, schedule=schedule, prediction_type="flow_prediction", solver="flow_euler"
    )
    info = model(contract)
    assert fitted(info, Asked(solver="euler")).settings["solver"] == "flow_euler"
    assert drawn(info, fitted(info, Asked(solver="euler"))).solver == "flow_euler"
