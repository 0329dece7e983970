"""Pipeline folders: what we write opens elsewhere, and what is hostile is refused."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.diffusion.contract import ScheduleSpec
from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.noise import image_noise
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.sampler import sample
from fewstep.errors import CheckpointError, NotFoundError, OutputError, RecipeError
from fewstep.models import autoencoder as autoencoders
from fewstep.models import build, load, text


@pytest.fixture
def folder(tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "model", tiny_components, texts={"README.md": "# tiny\n"}, half=False)
    return tmp_path / "model"


def test_round_trip_is_bit_equal(folder, tiny_components):
    loaded = load.pipeline(folder)
    assert loaded.contract == tiny_components.contract
    for name in ("autoencoder", "denoiser", "text_encoder"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(tiny_components, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    prompts = ["red apples", ""]
    torch.testing.assert_close(
        text.encode(prompts, loaded.text_encoder, loaded.tokenizer),
        text.encode(prompts, tiny_components.text_encoder, tiny_components.tokenizer),
    )


def test_saved_folder_does_not_say_where_its_parts_were_loaded_from(folder, tmp_path):
    """diffusers writes a loaded network's path into the next config.json: a path of the author's machine."""
    load.save_pipeline(tmp_path / "again", load.pipeline(folder), texts={})
    for config in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in config.read_text("utf-8"), config.name


def test_plain_diffusers_draws_the_same_image(folder):
    """StableDiffusionPipeline, given our noise, guidance and rescale, ends where our sampler ends."""
    from diffusers import StableDiffusionPipeline

    ours = load.pipeline(folder)
    prompt, seed = "a red apple", 3
    noise = torch.from_numpy(image_noise(seed, (4, 8, 8)))[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt,
        latents=noise.clone(),
        num_inference_steps=5,
        guidance_scale=3.0,
        guidance_rescale=0.7,
        height=16,
        width=16,
        output_type="np",
    ).images

    schedule, contract = ours.contract.make_schedule(), ours.contract
    both = text.encode(["", prompt], ours.text_encoder, ours.tokenizer)

    def denoise(condition):
        def call(x_t, t):
            out = ours.denoiser(x_t, torch.tensor(float(schedule.model_time(t))), condition).sample
            return to_prediction(out, x_t, t, schedule, contract.prediction_type)

        return call

    guided = classifier_free(
        denoise(both[1:]), denoise(both[:1]), scale=3.0, rescale=0.7, schedule=schedule,
        prediction_type=contract.prediction_type,
    )  # fmt: skip
    with torch.no_grad():
        latents = sample(guided, noise, contract.grid(5), contract.make_solver(), schedule=schedule)
    image = (autoencoders.decode(ours.autoencoder, latents.numpy()).transpose(0, 2, 3, 1) + 1) / 2
    assert image.std() > 0.02
    np.testing.assert_allclose(image, theirs, atol=2e-4)


def test_half_precision_files(tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "half", tiny_components, texts={})
    tensors = safetensors.load(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"float16"}
    assert load.pipeline(tmp_path / "half").denoiser.dtype == torch.float32
    assert tiny_components.denoiser.dtype == torch.float32  # the caller's networks stay as they were


def test_existing_folder_is_kept_unless_replaced(folder, tiny_components):
    with pytest.raises(OutputError, match="exists already"):
        load.save_pipeline(folder, tiny_components, texts={})
    load.save_pipeline(folder, tiny_components, texts={"README.md": "new"}, replace=True)
    assert (folder / "README.md").read_text() == "new"


def test_missing_folder(tmp_path):
    with pytest.raises(NotFoundError, match="no such folder"):
        load.pipeline(tmp_path / "none")


@pytest.mark.parametrize(
    "entry",
    [["os", "system"], ["diffusers", "LDMPipeline"], "AutoencoderKL", None, ["custom", "AutoencoderKL"], 7],
)
def test_foreign_classes_are_refused_and_nothing_is_imported(folder, entry):
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = entry
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "custom.py").write_text("raise SystemExit('imported')")
    with pytest.raises(CheckpointError, match=r"only diffusers\.AutoencoderKL is accepted"):
        load.pipeline(folder)


def test_code_of_the_folder_is_refused(folder):
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="auto_map"):
        load.pipeline(folder)


def test_pickle_under_a_safetensors_name_is_refused(folder, tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Canary()))
    with pytest.raises(CheckpointError, match="pickle"):
        load.pipeline(folder)
    assert not (tmp_path / "canary").exists()


def test_without_contract_it_is_derived_from_the_scheduler(folder):
    (folder / "fewstep.json").unlink()
    derived = load.contract(folder)
    assert derived.base_family == "fewstep-emoji"
    assert derived.solver == "ddim" and derived.spacing == "trailing"
    assert derived.schedule == ScheduleSpec(rescale_zero_terminal_snr=True)
    assert derived.prediction_type == "v_prediction"
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json: not readable"):
        load.contract(folder)


def test_broken_config(folder):
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load.pipeline(folder)


def test_unknown_model_setting_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'latent_channels'"):
        build.autoencoder({"latent_chanels": 4})
    with pytest.raises(RecipeError, match="no such setting"):
        build.denoiser({"zzz": 4})


def test_latent_scale_gives_unit_mean_square(tiny_components):
    images = np.random.default_rng(0).uniform(-1, 1, (8, 3, 16, 16)).astype(np.float32)
    vae = tiny_components.autoencoder
    before = vae.config.scaling_factor
    scale = autoencoders.latent_scale(vae, images)
    latents = autoencoders.encode(vae, images) / before * scale
    assert np.mean(latents**2) == pytest.approx(1, rel=1e-5)


def test_a_single_file_is_said_to_be_one(tmp_path):
    file = tmp_path / "model.ckpt"
    file.write_bytes(pickle.dumps({"state_dict": {}}))
    with pytest.raises(CheckpointError, match=r"a single file, not a folder, and a pickle") as caught:
        load.pipeline(file)
    assert "\n" not in str(caught.value)
    safetensors.save(tmp_path / "model.safetensors", {"w": np.zeros(80, np.float16)})
    with pytest.raises(CheckpointError, match=r"a single file, not a folder; give a pipeline folder"):
        load.pipeline(tmp_path / "model.safetensors")
