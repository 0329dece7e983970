"""Which folders are read as which family, what is derived for them, and what is refused. No networks here."""

from __future__ import annotations

import json
import sys

import pytest

from fewstep.errors import CheckpointError
from fewstep.models import families, load

CLIP = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
UNET = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
T5 = {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
POOLED = ["transformers", "CLIPTextModelWithProjection"]
PNDM = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
DPM = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "timestep_spacing": "linspace",
}
EULER = {**PNDM, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}

FOLDERS = {
    "sd1": ("StableDiffusionPipeline", {**UNET, **CLIP}, {"sample_size": 64}, PNDM),
    "sd2": (
        "StableDiffusionPipeline",
        {**UNET, **CLIP},
        {"sample_size": 96, "use_linear_projection": True},
        {**PNDM, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {**UNET, **CLIP, "text_encoder_2": POOLED, "tokenizer_2": CLIP["tokenizer"]},
        {"sample_size": 128},
        EULER,
    ),
    "sd3": (
        "StableDiffusion3Pipeline",
        {
            "vae": UNET["vae"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "text_encoder": POOLED,
            "text_encoder_2": POOLED,
            "text_encoder_3": T5["text_encoder"],
            "tokenizer": CLIP["tokenizer"],
            "tokenizer_2": CLIP["tokenizer"],
            "tokenizer_3": ["transformers", "T5TokenizerFast"],
        },
        {"sample_size": 128},
        FLOW,
    ),
    "pixart-alpha": (
        "PixArtAlphaPipeline",
        {"vae": UNET["vae"], "transformer": ["diffusers", "PixArtTransformer2DModel"], **T5},
        {"sample_size": 128},
        DPM,
    ),
    "pixart-sigma": (
        "PixArtSigmaPipeline",
        {"vae": UNET["vae"], "transformer": ["diffusers", "PixArtTransformer2DModel"], **T5},
        {"sample_size": 64},
        DPM,
    ),
    "fewstep-emoji": (
        "StableDiffusionPipeline",
        {
            **UNET,
            "text_encoder": ["transformers", "BertModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
        },
        {"sample_size": 16},
        {**PNDM, "_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    ),
}


@pytest.fixture
def make(tmp_path):
    """A folder of configurations without weights."""

    def made(name, *, pipeline=None, network=(), scheduler=(), parts=()):
        class_name, own, config, schedule = FOLDERS[name]
        schedule = {**schedule, **dict(scheduler)}
        index = {"_class_name": pipeline or class_name, "_diffusers_version": "0.42.0", **own, **dict(parts)}
        index.setdefault("scheduler", ["diffusers", schedule["_class_name"]])
        root = tmp_path / name
        for part, content in (
            (families.named(name).denoiser, {**config, **dict(network)}),
            ("vae", {"block_out_channels": [4, 4, 8, 8]}),
        ):
            (root / part).mkdir(parents=True)
            (root / part / "config.json").write_text(json.dumps(content))
        (root / "scheduler").mkdir()
        (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
        (root / "model_index.json").write_text(json.dumps(index))
        return root

    return made


def change(root, **entries):
    path = root / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


EXPECTED = {
    # solver, spacing, steps, guidance, side
    "sd1": ("dpmpp_2m", "leading", 25, 7.5, 512),
    "sd2": ("dpmpp_2m", "leading", 25, 7.5, 768),
    "sdxl": ("dpmpp_2m", "leading", 25, 5.0, 1024),
    "sd3": ("flow_euler", "linspace", 28, 7.0, 1024),
    "pixart-alpha": ("dpmpp_2m", "linspace", 20, 4.5, 1024),
    "pixart-sigma": ("dpmpp_2m", "linspace", 20, 4.5, 512),
    "fewstep-emoji": ("ddim", "trailing", 25, 7.5, 128),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_a_contract_gets_its_familys(name, make):
    root = make(name)
    assert load.check_index(root).family.name == name
    made = load.contract(root)
    found = (
        made.solver,
        made.spacing,
        made.num_inference_steps,
        made.guidance_scale,
        made.native_sizes[0][0],
    )
    assert found == EXPECTED[name]
    assert made.base_family == name
    assert made.prediction_type == {"sd2": "v_prediction", "sd3": "flow_prediction"}.get(name, "epsilon")
    # Its own solver can be asked for, and visits the times that it visits in diffusers.
    if name == "sd1":
        assert made.grid(4, "plms").tolist() == [751.0, 501.0, 251.0, 1.0, 0.0]


def test_a_contract_in_the_folder_goes_first(make):
    root = make("sd1")
    contract = load.contract(root)
    text = contract.to_json().replace('"num_inference_steps": 25', '"num_inference_steps": 7')
    (root / "fewstep.json").write_text(text)
    assert load.contract(root).num_inference_steps == 7


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        ("sd1", "StableDiffusionInpaintPipeline"),
        ("sd1", "StableDiffusionInstructPix2PixPipeline"),
        ("sd1", "StableDiffusionImg2ImgPipeline"),
        ("sd1", "LatentConsistencyModelPipeline"),
        ("sd2", "StableDiffusionInpaintPipeline"),
        ("sdxl", "StableDiffusionXLInpaintPipeline"),
        ("sdxl", "StableDiffusionXLInstructPix2PixPipeline"),
        ("sdxl", "StableDiffusionXLImg2ImgPipeline"),
        ("sd3", "StableDiffusion3InpaintPipeline"),
        ("sd3", "StableDiffusion3Img2ImgPipeline"),
    ],
)
def test_pipelines_of_other_modes_are_the_same_family(name, pipeline, make):
    assert load.check_index(make(name, pipeline=pipeline)).family.name == name


def test_a_latent_consistency_model_is_told_the_guidance(make):
    scheduler = {"_class_name": "LCMScheduler", "original_inference_steps": 50}
    root = make("sd1", network={"time_cond_proj_dim": 256}, scheduler=scheduler)
    made = load.contract(root)
    assert (made.solver, made.spacing, made.num_inference_steps) == ("lcm", "lcm", 4)
    assert made.guidance == "embedded" and not made.negative_prompt_effective


def test_a_folder_for_few_steps_keeps_its_solver(make):
    """SDXL-Lightning and Turbo: trailing spacing; DPM-Solver would not be what they were made for."""
    assert load.contract(make("sdxl", scheduler={"timestep_spacing": "trailing"})).solver == "euler"


def test_pipelines_offset_stable_diffusions_times(make):
    """diffusers' StableDiffusionPipeline sets steps_offset to 1 whatever the file says; SDXL's does not."""
    assert load.contract(make("sd1", scheduler={"steps_offset": 0})).steps_offset == 1
    assert load.contract(make("sdxl", scheduler={"steps_offset": 0})).steps_offset == 0


def test_sd3_comes_without_t5(make):
    for missing in ([None, None], None):
        root = make("sd3", parts={"text_encoder_3": missing, "tokenizer_3": missing})
        index = load.check_index(root)
        assert "text_encoder_3" not in index.classes and "tokenizer_2" in index.classes
        import shutil

        shutil.rmtree(root)
    with pytest.raises(CheckpointError, match=r"text_encoder_2 is \[None, None\]"):
        load.check_index(make("sd3", parts={"text_encoder_2": [None, None]}))


def test_zeros_for_an_empty_negative_prompt_are_the_folders_to_say(make):
    root = make("sdxl")
    assert load.check_index(root).zero_empty_negative
    change(root, force_zeros_for_empty_prompt=False)
    assert not load.check_index(root).zero_empty_negative
    assert not load.check_index(make("sd1")).zero_empty_negative


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(
    "entry", [["os", "system"], ["diffusers", "LDMPipeline"], "x", 7, ["diffusers"], ["a", "b", "c"], {}]
)
def test_A11_every_part_of_every_family_is_a_closed_list(name, entry, make):
    root = make(name)
    for part in families.named(name).parts:
        kept = json.loads((root / "model_index.json").read_text())[part]
        change(root, **{part: entry})
        with pytest.raises(CheckpointError, match=f"{part} is .*only .* is accepted"):
            load.check_index(root)
        change(root, **{part: kept})
    assert load.check_index(root)


@pytest.mark.parametrize(
    "entries",
    [
        {"_class_name": ["custom", "Pipeline"]},
        {"_class_name": "FluxPipeline"},
        {"_class_name": None},
        {"controlnet": ["diffusers", "ControlNetModel"]},
        {"safety_checker": ["custom", "Checker"]},
        {"anything": ["evil", "Class"]},
    ],
)
def test_A11_pipelines_and_further_parts_are_closed_lists_too(entries, make):
    root = make("sd1")
    for file in ("pipeline.py", "custom.py", "evil.py"):
        (root / file).write_text("raise SystemExit('imported')")
    change(root, **entries)
    before = set(sys.modules)
    with pytest.raises(CheckpointError):
        load.check_index(root)
    assert not {"pipeline", "custom", "evil"} & (set(sys.modules) - before)


def test_parts_that_are_not_used_may_be_there(make):
    root = make("sd1")
    change(
        root,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
        image_encoder=[None, None],
        requires_safety_checker=True,
    )
    assert load.check_index(root).family.name == "sd1"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_an_index_that_is_none(text, make):
    root = make("sd1")
    (root / "model_index.json").write_text(text)
    with pytest.raises(CheckpointError):
        load.check_index(root)


@pytest.mark.parametrize("size", [0, -8, 10**9, "64", True, [[]], 1.5])
def test_a_sample_size_that_is_none(size, make):
    with pytest.raises(CheckpointError, match="sample_size"):
        load.contract(make("sd1", network={"sample_size": size}))


def test_a_scheduler_of_another_class_than_the_index_says(make):
    root = make("sd1")
    path = root / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(EULER))
    with pytest.raises(CheckpointError, match="not a PNDMScheduler"):
        load.contract(root)


def test_a_schedule_that_cannot_be_followed_names_the_file(make):
    root = make("sd1", scheduler={"trained_betas": [0.1]})
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: .*trained_betas"):
        load.contract(root)


def test_every_published_contract_names_one_of_these_families():
    from fewstep.diffusion.published import published

    names = {row.contract.base_family for row in published()}
    assert {name: family.name for name in names if (family := families.named(name))}.keys() == names
    assert families.named("sd15") is families.SD1 and families.named("nothing") is None


def test_only_drawing_is_possible_with_families_of_more_parts(make):
    with pytest.raises(CheckpointError, match="Stable Diffusion XL has other parts"):
        load.pipeline(make("sdxl"))
