"""What pictures of other tools say, as settings of Create; and nothing of types that a form cannot take."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.studio import foreign, recalled

TEXT = "a fox\nNegative prompt: blurry\nSteps: 4, Sampler: Euler a, CFG scale: 1.5, Seed: 5, Size: 512x768"


def facts(**given: Any) -> dict[str, Any]:
    empty = {"record": None, "parameters": None, "tool": None, "prompt": "", "negative_prompt": "",
             "settings": {}}  # fmt: skip
    return empty | given


def test_a_picture_that_says_nothing_gives_nothing() -> None:
    assert foreign.record(facts()) == {}


def test_the_web_uis_text() -> None:
    found = foreign.record(facts(parameters=f"{TEXT}, Model: other, Version: v1.10.1", tool="AUTOMATIC1111"))
    assert found == {
        "prompt": "a fox", "negative_prompt": "blurry", "num_inference_steps": 4, "solver": "euler_a",
        "guidance_scale": 1.5, "seed": 5, "width": 512, "height": 768, "student": {"name": "none"},
        "model": "other",  # the form says so where it is not here
    }  # fmt: skip
    ours = foreign.record(
        facts(parameters=f"{TEXT}, Model: emoji-128, Student: four, Version: fewstep 0.1.0", tool="fewstep")
    )
    assert ours["model"] == "emoji-128" and ours["student"] == {"name": "four"}


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler_name": "euler_ancestral", "seed": 5, "steps": 4, "cfg": 1.5},
        {"scheduler": "k_euler_ancestral", "noise_seed": 5, "steps": "4", "cfg_scale": "1.5"},
        {"name": "Euler a", "seed": 5, "steps": 4, "guidance_scale": 1.5},
    ],
)
def test_settings_of_other_tools(settings: dict[str, Any]) -> None:
    found = foreign.record(facts(prompt="a fox", settings=settings, tool="ComfyUI"))
    assert found == {
        "prompt": "a fox", "negative_prompt": "", "num_inference_steps": 4, "seed": 5, "guidance_scale": 1.5,
        "solver": "euler_a",
    }  # fmt: skip


@pytest.mark.parametrize("file", ["xl.safetensors", "sdxl/xl.ckpt", "a\\xl.safetensors", "xl"])
def test_a_models_file_has_the_name_that_it_would_have_here(file: str) -> None:
    given = facts(prompt="a fox", settings={"seed": 5}, tool="ComfyUI", models=[file, "other"])
    assert foreign.record(given)["model"] == "xl"
    assert "model" not in foreign.record(given | {"models": []})


def test_our_record_comes_back_whole() -> None:
    record = {
        "prompt": "a fox <lora:x:1>", "seed": 2**40, "width": 128, "height": 96, "model": "emoji-128",
        "student": {"name": "four", "hash": "ab"}, "variation": {"seed": 7, "strength": 0.25},
        "adapters": [{"name": "y", "weight": 0.5, "text_weight": 0.5, "hash": "c"}], "insist": True,
        "num_inference_steps": 4, "guidance_scale": 1.0, "solver": "lcm", "eta": 0.0,
    }  # fmt: skip
    found = recalled.of_record(foreign.record(facts(record=record)))
    wanted = recalled.of_record(record)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("bad", [None, [], {}, {"a": 1}, "x" * 50, float("nan"), float("inf"), 10**40, True])
def test_no_value_of_another_type_reaches_the_form(bad: Any) -> None:
    names = [
        "prompt", "negative_prompt", "model", "solver", "emphasis", "num_inference_steps", "seed", "width",
        "height", "clip_skip", "guidance_scale", "guidance_rescale", "eta", "student", "variation",
        "adapters",
    ]  # fmt: skip
    found = foreign.record(facts(record=dict.fromkeys(names, bad)))
    texts = {name: value for name, value in found.items() if isinstance(value, str)}
    assert set(texts) <= {"prompt", "negative_prompt", "model", "solver", "emphasis"}
    assert {name: value for name, value in found.items() if name not in texts} in ({}, {"adapters": []})
    recalled.of_record(found)
