"""Writer and reader of the web UI's "parameters" text; expected texts are what version 1.10 writes."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import DataError
from fewstep.prompt import infotext

FULL = (
    "a red apple, noto style\non a table\n"
    "Negative prompt: blurry, dark\nugly\n"
    "Steps: 25, Sampler: DDIM, CFG scale: 5.0, Seed: 42, Size: 128x128, Model hash: 0123456789, "
    'Model: emoji-128, Lora hashes: "one: 0a1b2c3d4e5f, two: 001122334455", Version: v1.10.0'
)


def test_write_is_the_text_of_the_web_ui() -> None:
    fields = {
        "Steps": 25,
        "Sampler": "DDIM",
        "CFG scale": 5.0,
        "Seed": 42,
        "Size": "128x128",
        "Model hash": "0123456789",
        "VAE": None,
        "Model": "emoji-128",
        "Lora hashes": "one: 0a1b2c3d4e5f, two: 001122334455",
        "Version": "v1.10.0",
    }
    assert infotext.write("a red apple, noto style\non a table", "blurry, dark\nugly", fields) == FULL


def test_read_gives_back_what_was_written() -> None:
    text = infotext.read(FULL)
    assert text.prompt == "a red apple, noto style\non a table"
    assert text.negative_prompt == "blurry, dark\nugly"
    assert text.fields["Steps"] == "25"
    assert text.fields["Lora hashes"] == "one: 0a1b2c3d4e5f, two: 001122334455"
    assert infotext.write(text.prompt, text.negative_prompt, text.fields) == FULL


def test_a_record_becomes_the_fields_other_tools_know() -> None:
    record = {
        "prompt": "apple",
        "negative_prompt": "pear",
        "num_inference_steps": 4,
        "solver": "dpmpp_2m_sde",
        "guidance_scale": 5.0,
        "guidance_rescale": 0.7,
        "seed": 2,
        "width": 64,
        "height": 128,
        "model": "emoji-128",
        "model_hash": "0123456789abcdef",
        "strength": 0.5,
        "upscale": {"scale": 4, "name": "realesr-animevideov3-x4"},
        "fewstep": "0.1.0",
    }
    assert infotext.from_record(record) == (
        "apple\nNegative prompt: pear\n"
        "Steps: 4, Sampler: DPM++ 2M SDE, CFG scale: 5.0, Seed: 2, Size: 64x128, "
        "Model hash: 0123456789, Model: emoji-128, Denoising strength: 0.5, Guidance rescale: 0.7, "
        "Postprocess upscale by: 4, Postprocess upscaler: realesr-animevideov3-x4, Version: fewstep 0.1.0"
    )


def test_every_solver_has_a_name() -> None:
    from fewstep.diffusion.solvers import SOLVERS

    assert set(infotext.SAMPLERS) == set(SOLVERS)


def test_empty_negative_prompt_leaves_its_line_out() -> None:
    assert infotext.write("apple", "", {"Steps": 1}) == "apple\nSteps: 1"


def test_a_value_equal_to_its_key_is_written_as_the_key_alone() -> None:
    assert infotext.write("a", "", {"Tiling": "Tiling"}) == "a\nTiling"


@pytest.mark.parametrize("text", ["a cat", "a cat\nSteps: 1, Seed: 2", "", "a: b, c: d"])
def test_fewer_than_three_items_belong_to_the_prompt(text: str) -> None:
    assert infotext.read(text) == infotext.Infotext(prompt=text)


def test_bare_flags_and_empty_quotes_are_not_items() -> None:
    fields = infotext.read('p\nSteps: 3, Tiling, Empty: "", Seed: 7, CFG scale: 2').fields
    assert "Tiling" not in fields
    assert fields["Seed"] == "7"


plain = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs"]), min_size=1)


@given(prompt=plain, negative=plain, value=plain)
def test_round_trip(prompt: str, negative: str, value: str) -> None:
    if prompt.startswith("Negative prompt:"):  # the form cannot express it
        return
    fields = {"Steps": "4", "Sampler": "DDIM", "Seed": "1", "Note": f"{value}, {value}"}
    assert infotext.read(infotext.write(prompt, negative, fields)) == infotext.Infotext(
        prompt=prompt, negative_prompt=negative, fields=fields
    )


@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    infotext.read(text)


@pytest.mark.parametrize("piece", ["a", " ", 'ab: "', "ab: ,", '\\"', 'ab: "\\'])
def test_hostile_text_is_read_in_bounded_time(piece: str) -> None:
    start = time.perf_counter()
    infotext.read(piece * (262_144 // len(piece)))
    assert time.perf_counter() - start < 2


def test_endless_text_is_refused() -> None:
    with pytest.raises(DataError, match="more than 262144 are not read"):
        infotext.read("a" * 262_145)
