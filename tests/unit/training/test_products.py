"""What a run leaves: folders that load, with weights of the newest checkpoint and a measured scale."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewstep.errors import RecipeError, RunError
from fewstep.models import autoencoder as autoencoders
from fewstep.models import load
from fewstep.training import checkpointing, previews, products
from fewstep.training.recipe import dump_recipe, parse_recipe

AUTOENCODER = """
kind: autoencoder
data: {source: folder, path: data, options: {width: 16, height: 16, limit: 0.0}}
model:
  down_block_types: [DownEncoderBlock2D, DownEncoderBlock2D]
  up_block_types: [UpDecoderBlock2D, UpDecoderBlock2D]
  block_out_channels: [4, 8]
  norm_num_groups: 2
  latent_channels: 4
  mid_block_add_attention: false
stop: {images: 8}
"""

DENOISER = """
kind: denoiser
data: {source: cache, path: cache}
model:
  sample_size: 8
  in_channels: 4
  out_channels: 4
  down_block_types: [DownBlock2D, CrossAttnDownBlock2D]
  up_block_types: [CrossAttnUpBlock2D, UpBlock2D]
  block_out_channels: [8, 16]
  layers_per_block: 1
  cross_attention_dim: 8
  attention_head_dim: 2
  norm_num_groups: 4
objective: {prediction_type: v_prediction, schedule: {rescale_zero_terminal_snr: true}}
samples: {prompts: [red, apple], num_inference_steps: 4, guidance_scale: 2.0, guidance_rescale: 0.5}
stop: {images: 8}
"""


@pytest.fixture
def parts(tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "parts", tiny_components, texts={}, half=False)
    return tmp_path / "parts"


def _run(folder, recipe, role, module):
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    state = {f"{role}.ema": module.state_dict(), role: {k: v * 0 for k, v in module.state_dict().items()}}
    checkpointing.save(folder / "checkpoints", 1234, state, {"images_seen": 1234})
    return folder


def test_pipeline_folder_holds_the_averaged_weights_and_the_recipes_contract(
    parts, tiny_components, tmp_path
):
    recipe = parse_recipe(DENOISER)
    run = _run(tmp_path / "run", recipe, "denoiser", tiny_components.denoiser)
    contract = products.pipeline_folder(
        run,
        tmp_path / "out",
        autoencoder=parts / "vae",
        text_folder=parts,
        family="tiny",
        texts={"README.md": "{images_seen} images, {parameters}", "NOTICE": "n"},
    )
    loaded = load.pipeline(tmp_path / "out")
    assert loaded.contract == contract
    assert (contract.num_inference_steps, contract.guidance_scale, contract.guidance_rescale) == (4, 2.0, 0.5)
    assert contract.prediction_type == "v_prediction"
    assert contract.schedule.rescale_zero_terminal_snr
    assert contract.native_sizes == ((16, 16),)
    for name, value in tiny_components.denoiser.state_dict().items():
        torch.testing.assert_close(loaded.denoiser.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "out" / "README.md").read_text().startswith("1,234 images, 0.1 M")


def test_finish_uses_the_recipes_pipeline_section(parts, tiny_components, tmp_path):
    text = DENOISER + f"pipeline: {{autoencoder: {parts / 'vae'}, text: {parts}, family: tiny}}\n"
    run = _run(tmp_path / "run", parse_recipe(text), "denoiser", tiny_components.denoiser)
    assert products.finish(run) == run / "pipeline"
    assert load.pipeline(run / "pipeline").contract.base_family == "tiny"
    plain = _run(tmp_path / "plain", parse_recipe(DENOISER), "denoiser", tiny_components.denoiser)
    assert products.finish(plain) is None


def test_autoencoder_folder_has_the_scale_of_its_latents(tiny_components, tmp_path):
    run = _run(tmp_path / "run", parse_recipe(AUTOENCODER), "autoencoder", tiny_components.autoencoder)
    images = np.random.default_rng(0).uniform(-1, 1, (16, 3, 16, 16)).astype(np.float32)
    scale = products.autoencoder_folder(run, tmp_path / "vae", images)
    network = load.autoencoder(tmp_path / "vae")
    assert network.config.scaling_factor == scale
    assert np.mean(autoencoders.encode(network, images) ** 2) == pytest.approx(1, rel=1e-3)


def test_wrong_kind_and_no_run(tiny_components, tmp_path):
    run = _run(tmp_path / "run", parse_recipe(DENOISER), "denoiser", tiny_components.denoiser)
    with pytest.raises(RunError, match="kind autoencoder"):
        products.autoencoder_folder(run, tmp_path / "vae", np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        products.finish(tmp_path)


def test_flow_and_prediction_type_must_agree():
    recipe = parse_recipe(DENOISER, ["objective.schedule.kind=flow"])
    with pytest.raises(RecipeError, match="flow_prediction"):
        products.sampling_contract(recipe, "x", 16)


def test_previews_are_reproducible_and_depend_on_the_prompt(parts, tiny_components):
    recipe = parse_recipe(DENOISER)
    draw = previews.denoiser_sampler(parts / "vae", parts)
    modules = {"denoiser": tiny_components.denoiser}
    first = draw(modules, recipe, 0)
    assert first.shape == (2 + 18, 2 + 2 * 18, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw(modules, recipe, 0))
    other = draw(modules, parse_recipe(DENOISER, ["samples.prompts=[apple, apple]"]), 0)
    assert (first[:, :19] != other[:, :19]).any()
    np.testing.assert_array_equal(first[:, 20:], other[:, 20:])
    assert draw(modules, parse_recipe(DENOISER, ["samples.prompts=[]"]), 0) is None


def test_preview_grid_layout():
    images = np.stack([np.full((3, 4, 4), v, np.float32) for v in (-1.0, 0.0, 1.0)])
    sheet = previews.grid(images, columns=2)
    assert sheet.shape == (2 + 2 * 6, 2 + 2 * 6, 3)
    assert (sheet[2:6, 2:6] == 0).all()
    assert (sheet[2:6, 8:12] == 128).all()
    assert (sheet[8:12, 2:6] == 255).all()


def test_recipe_without_pipeline_has_no_sampler(parts):
    assert previews.sampler_for(parse_recipe(DENOISER)) is None
    text = DENOISER + f"pipeline: {{autoencoder: {parts / 'vae'}, text: {parts}, family: tiny}}\n"
    assert previews.sampler_for(parse_recipe(text)) is not None


def test_bundled_recipe_is_one_whole():
    """The denoiser's recipe must fit the autoencoder's, and its model card must be there."""
    from fewstep.data.backgrounds import recipe_folder
    from fewstep.training.recipe import load_recipe

    vae, denoiser = load_recipe("emoji-128/autoencoder"), load_recipe("emoji-128/denoiser")
    assert denoiser.model["in_channels"] == vae.model["latent_channels"]
    factor = 2 ** (len(vae.model["block_out_channels"]) - 1)
    assert denoiser.model["sample_size"] * factor == vae.model["sample_size"] == 128
    card = (recipe_folder(denoiser.pipeline.card) / "card.md").read_text()
    assert json.dumps(card)
    assert "{images_seen}" in card
    assert products.sampling_contract(denoiser, "fewstep-emoji", 128).schedule.rescale_zero_terminal_snr


def test_legal_texts_beside_the_bundled_weights_are_the_projects():
    """NOTICE must go with the weights wherever they go, and say what the drawing sets' own table says."""
    from pathlib import Path

    from fewstep.data import emoji_sets
    from fewstep.data.backgrounds import recipe_folder

    root = Path(__file__).resolve().parents[3]
    # CLIP's vocabulary lies in the package and not beside the weights.
    whole = (root / "NOTICE").read_text("utf-8")
    before, _, rest = whole.partition("CLIP'S VOCABULARY\n")
    after = rest[rest.index("NOT DISTRIBUTED\n") :]
    assert (recipe_folder() / "NOTICE").read_text("utf-8") == before + after
    entries = json.loads((recipe_folder() / "attribution.json").read_text("utf-8"))
    for style, source in emoji_sets.SOURCES.items():
        assert emoji_sets.terms(style, source.version) in entries
