"""Weights of another network are refused, key by key; and what is no weight file at all."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.errors import CheckpointError, DependencyError, NotFoundError
from fewstep.models import load

UNET = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "model", tiny_components, texts={}, half=False)
    return tmp_path / "model"


def rewrite(file, change):
    tensors = safetensors.load(file)
    change(tensors)
    safetensors.save(file, tensors, {"format": "pt"})


def refused(call) -> str:
    with pytest.raises(CheckpointError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    return text


def test_A10_a_missing_key(folder):
    rewrite(folder / "unet" / UNET, lambda tensors: tensors.pop("conv_in.weight"))
    text = refused(lambda: load.pipeline(folder))
    assert "conv_in.weight is missing" in text and "a model of fewstep's own" in text


def test_A10_an_unexpected_key(folder):
    rewrite(folder / "vae" / UNET, lambda tensors: tensors.update(surplus=np.zeros(2, np.float32)))
    text = refused(lambda: load.pipeline(folder))
    assert "surplus is not known" in text and "AutoencoderKL" in text


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_A10_a_transposed_tensor(part, folder):
    name = {"unet": "time_embedding.linear_1.weight", "text_encoder": "encoder.layer.0.output.dense.weight"}[
        part
    ]

    def transpose(tensors):
        tensors[name] = np.ascontiguousarray(tensors[name].T)

    rewrite(folder / part / (UNET if part == "unet" else "model.safetensors"), transpose)
    text = refused(lambda: load.pipeline(folder))
    assert f"{name} has shape" in text and "instead of" in text


def test_A10_a_network_of_another_shape_lists_ten_keys(folder):
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 8', '"cross_attention_dim": 12'))
    other = json.loads(config.read_text()) | {"block_out_channels": [16, 32]}
    config.write_text(json.dumps(other))
    text = refused(lambda: load.pipeline(folder))
    assert text.count(" has shape ") == 10 and "more)" in text


def test_A10_a_unet_of_sd1_in_the_place_of_sdxls(tmp_path):
    from diffusers import UNet2DConditionModel

    shape = {
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8, "attention_head_dim": 2,
    }  # fmt: skip
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
    }
    UNet2DConditionModel(**shape).save_pretrained(tmp_path / "sd1")
    UNet2DConditionModel(**shape, **added).save_pretrained(tmp_path / "sdxl")
    shutil.copy(tmp_path / "sd1" / UNET, tmp_path / "sdxl" / UNET)
    text = refused(lambda: load.denoiser(tmp_path / "sdxl", title="Stable Diffusion XL"))
    assert "add_embedding.linear_1.weight is missing" in text and "Stable Diffusion XL" in text


def test_A10_names_of_tensors_are_shown_harmless(folder):
    name = "<script>\x1b[31m\n" + "x" * 1000
    rewrite(folder / "unet" / UNET, lambda tensors: tensors.update({name: np.zeros(2, np.float32)}))
    text = refused(lambda: load.pipeline(folder))
    assert "x" * 200 not in text and "<script>?[31m?xxx" in text


def test_what_older_libraries_wrote_is_no_error(folder):
    def add(tensors):
        tensors["embeddings.position_ids"] = np.arange(12)[None]
        for key in [key for key in tensors if key.startswith("pooler.")]:
            del tensors[key]  # BERT's pooler, which nothing uses

    rewrite(folder / "text_encoder" / "model.safetensors", add)
    assert load.pipeline(folder).text_encoder is not None


def test_files_of_the_fp16_variant_alone_are_read(folder, tiny_components):
    for part, name in (("unet", UNET), ("vae", UNET), ("text_encoder", "model.safetensors")):
        file = folder / part / name
        file.rename(file.with_name(name.replace(".safetensors", ".fp16.safetensors")))
    loaded = load.pipeline(folder)
    ours, theirs = loaded.denoiser.state_dict(), tiny_components.denoiser.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def shards(folder, names):
    """The U-Net's weights in two files and an index that names them so."""
    file = folder / "unet" / UNET
    tensors = safetensors.load(file)
    keys = sorted(tensors)
    halves = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    for name, half in zip(("one.safetensors", "two.safetensors"), halves, strict=True):
        safetensors.save(folder / "unet" / name, {key: tensors[key] for key in half}, {"format": "pt"})
    file.unlink()
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    index = file.with_name(UNET + ".index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_read(folder, tiny_components):
    shards(folder, ("one.safetensors", "two.safetensors"))
    ours, theirs = load.pipeline(folder).denoiser.state_dict(), tiny_components.denoiser.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", ["../two.safetensors", "/etc/passwd", "a\\b.safetensors", "two.bin", ""])
def test_A13_shards_elsewhere_are_refused(name, folder):
    shards(folder, ("one.safetensors", name))
    assert "not a safetensors file beside it" in refused(lambda: load.pipeline(folder))


def test_A13_an_index_of_nothing_is_refused(folder):
    index = shards(folder, ("one.safetensors", "two.safetensors"))
    for content in ('{"weight_map": {}}', "{}", '{"weight_map": {"a": 1}}', "[]", "no"):
        index.write_text(content)
        refused(lambda: load.pipeline(folder))


def test_a_shard_that_is_missing_or_a_pickle(folder):
    shards(folder, ("one.safetensors", "two.safetensors"))
    (folder / "unet" / "two.safetensors").write_bytes(pickle.dumps({"a": 1}))
    assert "pickle" in refused(lambda: load.pipeline(folder))
    (folder / "unet" / "two.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"two\.safetensors"):
        load.pipeline(folder)


def test_pickles_alone_are_said_to_be_pickles(folder):
    (folder / "unet" / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    assert "convert" in refused(lambda: load.pipeline(folder))


def test_nothing_at_all(folder):
    (folder / "unet" / UNET).unlink()
    with pytest.raises(NotFoundError, match="no such file"):
        load.pipeline(folder)


def test_a_sentencepiece_model_names_the_package_that_reads_it(folder, monkeypatch):
    tokenizer = folder / "tokenizer"
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "spiece.model").write_bytes(b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install sentencepiece protobuf"):
        load.tokenizer(folder, "tokenizer", load.check_index(folder))


def test_a_tokenizer_that_is_broken(folder):
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    assert "tokenizer" in refused(lambda: load.tokenizer(folder, "tokenizer", load.check_index(folder)))


def test_loading_prints_nothing(folder, capfd):
    load.pipeline(folder)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""
