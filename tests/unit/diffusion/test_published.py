"""Published checkpoints by name, and settings that do not fit them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.published import find, guide_table, named, plain, published
from fewstep.diffusion.solvers import SOLVERS
from fewstep.diffusion.timesteps import SPACINGS
from fewstep.diffusion.unfit import describe, unfit
from fewstep.errors import NotFoundError

GUIDE = (Path(__file__).parents[3] / "docs/guides/fewstep-checkpoints.md").read_text(encoding="utf-8")
ROWS = published()
KEYS = [row.key for row in ROWS]


def contract(key):
    return find(key).contract


def sentences(key, **asked):
    return [wrong.sentence for wrong in unfit(contract(key), **asked)]


def test_keys_and_names_are_each_given_once():
    assert len(KEYS) == len(set(KEYS)) == 67
    names = [plain(file) for row in ROWS for file in row.files]
    assert len(names) == len(set(names))
    alone = [row.repository for row in ROWS if not row.files]
    assert len(alone) == len(set(alone)), "a repository without names of files holds one checkpoint"


def test_a_row_is_found_by_its_key():
    assert find("dmd2-sdxl-1step-unet").contract.timesteps == {1: (399.0,)}
    with pytest.raises(NotFoundError, match=r"'dmd2-sdxl-1step'.*did you mean dmd2-sdxl-1step-unet\?"):
        find("dmd2-sdxl-1step")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sdxl_lightning_4step_lora.safetensors", "sdxl-lightning-4step-lora"),
        ("ByteDance/SDXL-Lightning/sdxl_lightning_1step_unet_x0.safetensors", "sdxl-lightning-1step-unet"),
        ("sdxl_lightning_8step", "sdxl-lightning-8step-full"),
        ("SDXL_Lightning_4step_LoRA (1).SAFETENSORS", "sdxl-lightning-4step-lora"),
        ("Hyper-SDXL-8steps-CFG-lora.safetensors", "hyper-sdxl-8steps-cfg-lora"),
        ("Hyper-SDXL-8steps-lora.safetensors", "hyper-sdxl-8steps-lora"),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors", "hyper-sdxl-1step-unet-comfyui"),
        ("Hyper-SDXL-1step-Unet.safetensors", "hyper-sdxl-1step-unet"),
        ("pcm_sd15_smallcfg_2step_converted.safetensors", "pcm-sd15-smallcfg-2step"),
        ("pcm_sdxl_normalcfg_16step_converted_fp16.safetensors", "pcm-sdxl-normalcfg-16step"),
        ("dmd2_sdxl_4step_unet_fp16.bin", "dmd2-sdxl-4step-unet"),
        ("sd_xl_turbo_1.0_fp16.safetensors", "sdxl-turbo"),
        ("stabilityai/sdxl-turbo", "sdxl-turbo"),
        ("sd_turbo.safetensors", "sd-turbo"),
        ("latent-consistency/lcm-lora-sdv1-5", "lcm-lora-sdv1-5"),
        ("lcm-lora-sdxl.safetensors", "lcm-lora-sdxl"),
        ("SimianLuo/LCM_Dreamshaper_v7", "lcm-dreamshaper-v7"),
        ("LCM_Dreamshaper_v7_4k.safetensors", "lcm-dreamshaper-v7-unet"),
        ("h1t/TCD-SDXL-LoRA", "tcd-sdxl-lora"),
        ("jasperai/flash-sd3", "flash-sd3"),
    ],
)
def test_published_names_are_known(name, key):
    assert [row.key for row in named(name)] == [key]


@pytest.mark.parametrize(
    "name",
    [
        "DreamShaperXL_Lightning.safetensors",  # a merge, with its makers' own settings
        "DreamShaperXL_Turbo_v2.safetensors",
        "sd-community/sdxl-flash",  # another method than jasperai/flash-sdxl
        "my_sdxl_lightning_4step_lora.safetensors",
        "sdxl_lightning_4step_lora_v2.safetensors",
        "Hyper-FLUX.1-dev-8steps-lora.safetensors",
        "pytorch_lora_weights.safetensors",
        "",
        "fp16.safetensors",
    ],
)
def test_names_that_only_resemble_are_not(name):
    assert named(name) == ()


def test_a_repository_of_many_stands_for_all_of_them():
    assert {row.repository for row in named("ByteDance/Hyper-SD")} == {"ByteDance/Hyper-SD"}
    assert len(named("Hyper-SD")) == 17
    assert len(named("SDXL-Lightning")) == 11


@pytest.mark.parametrize("row", ROWS, ids=KEYS)
def test_contracts_survive_as_text_and_fit_themselves(row):
    own = row.contract
    assert SamplingContract.from_json(own.to_json()) == own
    for steps in own.allowed_steps or (own.num_inference_steps,):
        assert (
            unfit(
                own,
                num_inference_steps=steps,
                guidance_scale=own.guidance_scale,
                guidance_rescale=own.guidance_rescale,
                solver=own.solver,
                spacing="explicit" if steps in own.timesteps else own.spacing,
                prediction_type=own.prediction_type,
                size=own.native_sizes[0],
                strength=1.0,
            )
            == []
        )
    if row.named_steps is not None:
        assert row.named_steps in own.allowed_steps


@pytest.mark.parametrize("row", ROWS, ids=KEYS)
def test_what_is_wanted_fits(row):
    asked = [
        *({"num_inference_steps": n} for n in (1, 3, 5, 25, 60, 999)),
        *({"guidance_scale": g} for g in (0.0, 0.5, 1.5, 4.0, 7.5, 20.0, float("nan"))),
        *({"solver": name} for name in SOLVERS),
        *({"spacing": name} for name in SPACINGS),
        *({"prediction_type": name} for name in ("epsilon", "sample", "v_prediction", "flow_prediction")),
        *({"size": size} for size in ((64, 64), (512, 512), (1024, 1024), (4096, 64))),
        *({"strength": s, "num_inference_steps": n} for s in (0.01, 0.2, 0.5) for n in (4, 8)),
        {"guidance_rescale": 0.7},
        {"negative_prompt": "blurry"},
    ]
    for given in asked:
        for wrong in unfit(row.contract, **given):
            assert wrong.asked is given[wrong.setting]
            assert wrong.wanted != wrong.asked
            steps = {k: v.wanted for v in unfit(row.contract, **given) if (k := v.setting) in given}
            again = unfit(row.contract, **{**given, **steps})
            assert again == [], given
            assert "\n" not in wrong.sentence
            assert not wrong.sentence.endswith(".")


def test_guidance_on_a_model_that_draws_without():
    (wrong,) = unfit(contract("sdxl-lightning-4step-lora"), guidance_scale=7)
    assert (wrong.setting, wrong.asked, wrong.wanted) == ("guidance_scale", 7, 1.0)
    assert wrong.sentence == "guidance 7 on SDXL-Lightning oversaturates: it draws without guidance; use 1"
    for key, who in (("sdxl-turbo", "SDXL-Turbo"), ("dmd2-sdxl-4step-unet", "SDXL DMD2")):
        assert sentences(key, guidance_scale=7) == [
            f"guidance 7 on {who} oversaturates: it draws without guidance; use 1"
        ]


def test_a_model_cards_zero_is_our_one():
    assert sentences("sdxl-turbo", guidance_scale=0) == [
        "guidance 0 on SDXL-Turbo leaves the prompt out: a model card's 0 for none is 1 here; use 1"
    ]
    assert sentences("sdxl-turbo", guidance_scale=1) == []


def test_guidance_within_a_range():
    assert sentences("lcm-lora-sdxl", guidance_scale=1.5) == []
    assert sentences("lcm-lora-sdxl", guidance_scale=7) == [
        "guidance 7 on SDXL LCM oversaturates: guidance is in its weights already, and 1 to 2 is all it "
        "takes; use 2"
    ]
    assert sentences("hyper-sdxl-8steps-cfg-lora", guidance_scale=7) == []
    assert sentences("hyper-sdxl-8steps-cfg-lora", guidance_scale=3) == [
        "guidance 3 on Hyper-SDXL is not what it was made for: that is 5 to 8; use 5"
    ]
    assert sentences("hyper-sdxl-8steps-cfg-lora", guidance_scale=1) == [], "none is always possible"
    assert sentences("lcm-sdxl", guidance_scale=12) == [], "embedded, and no range is published"


def test_wrong_step_counts():
    assert sentences("sdxl-lightning-4step-unet", num_inference_steps=30) == [
        "30 steps on SDXL-Lightning: its weights were made for 4 steps; use 4"
    ]
    (wrong,) = unfit(contract("sd-turbo"), num_inference_steps=20)
    assert (wrong.asked, wrong.wanted) == (20, 4)
    (wrong,) = unfit(contract("flash-sd"), num_inference_steps=3)
    assert wrong.wanted == 2, "of two as near, the fewer"
    assert sentences("sdxl-lightning-1step-unet", num_inference_steps=4) == [
        "4 steps on SDXL-Lightning: its weights were made for 1 step; use 1"
    ]
    assert sentences("tcd-sdxl-lora", num_inference_steps=50) == []
    assert sentences("tcd-sdxl-lora", num_inference_steps=51) == [
        "51 steps on SDXL TCD: there are not so many times to visit; use 4"
    ]


def test_wrong_spacing():
    assert sentences("sdxl-lightning-4step-unet", spacing="leading") == [
        "leading spacing on SDXL-Lightning visits 750, 500, 250, 0: it was made for 999, 749, 499, 249; "
        "use trailing"
    ]
    (wrong,) = unfit(contract("dmd2-sdxl-4step-lora"), spacing="lcm")
    assert wrong.wanted == "explicit"
    assert sentences("dmd2-sdxl-4step-lora", spacing="trailing") == [], "the same times"
    assert sentences("hyper-sdxl-1step-lora", spacing="trailing", num_inference_steps=1) == []
    assert "…" in sentences("pcm-sdxl-normalcfg-16step", spacing="leading")[0]
    assert sentences("flash-sd3", spacing="leading") == [
        "leading spacing on Flash SD3: there are no such times for it; use linspace"
    ]


def test_wrong_solver():
    assert sentences("sdxl-lightning-4step-unet", solver="ddim") == [], "Euler by another name"
    assert sentences("sdxl-turbo", solver="euler") == [], "its authors draw SD-Turbo so"
    assert sentences("sdxl-lightning-4step-unet", solver="dpmpp_2m") == [
        "solver dpmpp_2m on SDXL-Lightning goes where its weights were not trained: each step is one "
        "straight jump to the next of its times; use euler"
    ]
    (wrong,) = unfit(contract("lcm-sdxl"), solver="euler")
    assert wrong.wanted == "lcm"
    (wrong,) = unfit(contract("lcm-sdxl"), solver="no such solver")
    assert wrong.wanted == "lcm"
    noisy = replace(contract("hyper-sdxl-4steps-lora"), eta=0.5)
    assert [wrong.wanted for wrong in unfit(noisy, solver="euler")] == ["ddim"]


def test_wrong_prediction_type():
    assert sentences("sdxl-lightning-1step-unet", prediction_type="epsilon") == [
        "prediction type epsilon on SDXL-Lightning draws noise: its network gives sample; use sample"
    ]
    assert sentences("sdxl-lightning-2step-unet", prediction_type="epsilon") == []


def test_wrong_size():
    assert sentences("sdxl-turbo", size=(1024, 1024)) == [
        "1024x1024 pixels on SDXL-Turbo repeats things: it was made for 512x512; use 512x512"
    ]
    assert sentences("sdxl-lightning-4step-unet", size=(512, 512)) == [
        "512x512 pixels on SDXL-Lightning loses shapes: it was made for 1024x1024; use 1024x1024"
    ]
    assert sentences("sdxl-lightning-4step-unet", size=(1216, 832)) == []
    assert sentences("flash-sd", size=(512, 768)) == [], "1.5 times as many, the most that fits"
    assert len(sentences("flash-sd", size=(520, 768))) == 1


def test_negative_prompts_without_effect():
    assert sentences("sdxl-turbo", negative_prompt="blurry") == [
        "the negative prompt has no effect on SDXL-Turbo: it draws without guidance; leave it out"
    ]
    assert "guidance is inside the network" in sentences("lcm-sdxl", negative_prompt="blurry")[0]
    assert "it works through guidance, and 1 is none" in sentences("lcm-lora-sdxl", negative_prompt="x")[0]
    assert sentences("lcm-lora-sdxl", negative_prompt="x", guidance_scale=1.5) == []
    assert sentences("hyper-sdxl-8steps-cfg-lora", negative_prompt="x") == []
    assert len(sentences("hyper-sdxl-8steps-cfg-lora", negative_prompt="x", guidance_scale=0)) == 2


def test_a_rescale_without_guidance():
    (wrong,) = unfit(contract("sdxl-turbo"), guidance_rescale=0.7)
    assert wrong.wanted == 0.0


def test_strength_leaves_at_least_one_step():
    assert sentences("sdxl-lightning-4step-unet", strength=0.2) == [
        "strength 0.2 leaves none of 4 steps, so one is run; use 0.25 or more"
    ]
    assert len(sentences("sdxl-lightning-4step-unet", strength=0.24)) == 1
    assert sentences("sdxl-lightning-4step-unet", strength=0.25) == []
    (wrong,) = unfit(contract("sdxl-lightning-1step-unet"), strength=0.75)
    assert wrong.wanted == 1.0
    # of the steps that fit, not of the 30 that were asked for
    settings = [w.setting for w in unfit(contract("sd-turbo"), strength=0.2, num_inference_steps=30)]
    assert settings == ["num_inference_steps", "strength"]


def test_a_base_model_takes_what_the_code_takes():
    base = SamplingContract(base_family="sdxl", native_sizes=((1024, 1024),))
    assert describe(base) == "this model"
    assert unfit(
        base, num_inference_steps=30, guidance_scale=7, guidance_rescale=0.7, negative_prompt="x",
        solver="dpmpp_2m", spacing="karras", size=(512, 512), strength=0.5,
    ) == []  # fmt: skip
    assert [wrong.setting for wrong in unfit(base, guidance_scale=0, prediction_type="v_prediction")] == [
        "guidance_scale", "prediction_type",
    ]  # fmt: skip


def test_names_in_sentences():
    own = replace(contract("flash-sd"), base_family="fewstep-emoji")
    assert describe(own) == "this flash student"
    assert unfit(own, guidance_scale=2, name="student 'four'")[0].sentence.startswith(
        "guidance 2 on student 'four' oversaturates"
    )


def test_the_guides_sentences_are_said():
    lightning = {"guidance_scale": 7, "num_inference_steps": 30, "spacing": "leading"}
    for sentence in (
        *sentences("sdxl-lightning-4step-lora", **lightning, strength=0.2),
        *sentences("sdxl-lightning-1step-unet", prediction_type="epsilon"),
        *sentences("sdxl-turbo", size=(1024, 1024), negative_prompt="blurry"),
    ):
        assert f"| {sentence} |\n" in GUIDE


def test_the_guides_table_is_generated():
    found = re.search(r"<!-- table of contracts -->\n\n(.*?)\n<!-- end of table -->", GUIDE, re.DOTALL)
    assert found, "the marks are missing"
    command = (
        "python -c 'from fewstep.diffusion.published import guide_table; print(guide_table(), end=\"\")'"
    )
    assert found[1] == guide_table(), f"paste what this prints between the marks: {command}"
