"""Names of layers: kohya's underscores and CompVis's blocks, for every layer of the real architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.checkpoint.adapters import names


def sd1() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def lcm() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, time_cond_proj_dim=256)


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(qk_norm="rms_norm", dual_attention_layers=(0, 1), num_layers=3)


def clip() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig())


def clip_with_projection() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(CLIPTextConfig(num_hidden_layers=3))


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=2), add_pooling_layer=False)


MODELS: list[Callable[[], nn.Module]] = [sd1, sdxl, lcm, sd3, clip, clip_with_projection, bert]
NEED_THE_BASE = {bert: {"word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"}}


@pytest.fixture(scope="module")
def layers() -> dict[Any, list[str]]:
    with torch.device("meta"):
        return {
            make: [name.removesuffix(".weight") for name in make().state_dict() if name.endswith(".weight")]
            for make in MODELS
        }


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_C02_every_layer_comes_back_from_kohya_names(layers: dict[Any, list[str]], make: Any) -> None:
    known = names.flat_names(layers[make])
    for layer in layers[make]:
        full = names.with_text_model(layer)
        assert names.from_kohya(full.replace(".", "_"), known) == full
        if layer.rpartition(".")[2] not in NEED_THE_BASE.get(make, set()):
            assert names.from_kohya(layer.replace(".", "_")) == layer
            assert names.to_kohya(layer) == layer.replace(".", "_")


@pytest.mark.parametrize(("make", "spelling"), [(sd1, "sd1"), (sdxl, "sdxl")])
def test_C02_every_layer_of_a_unet_comes_back_from_compvis_names(layers, make: Any, spelling: Any) -> None:
    stems = {layer: names.to_kohya(layer, compvis=spelling) for layer in layers[make]}
    assert len(set(stems.values())) == len(stems)
    for layer, stem in stems.items():
        assert names.is_compvis(stem) and names.from_kohya(stem) == layer
        assert not names.is_compvis(layer.replace(".", "_"))


@pytest.mark.parametrize(
    ("stem", "layer", "slot"),
    [
        ("input_blocks_0_0", "conv_in", 2),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1", 2),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv", 2),
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            2,
        ),
        ("input_blocks_4_0_skip_connection", "down_blocks.1.resnets.0.conv_shortcut", 2),
        ("middle_block_0_emb_layers_1", "mid_block.resnets.0.time_emb_proj", 2),
        (
            "middle_block_1_transformer_blocks_9_ff_net_0_proj",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
            2,
        ),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2", 2),
        ("output_blocks_0_1_proj_in", "up_blocks.0.attentions.0.proj_in", 2),
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv", 2),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv", 1),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv", 1),
        ("output_blocks_8_0_in_layers_0", "up_blocks.2.resnets.2.norm1", 2),
        ("time_embed_2", "time_embedding.linear_2", 2),
        ("label_emb_0_0", "add_embedding.linear_1", 2),
        ("out_2", "conv_out", 2),
    ],
)
def test_compvis_names_of_known_layers(stem: str, layer: str, slot: int) -> None:
    assert names.from_kohya(stem) == layer
    assert names.to_kohya(layer, compvis="sd1" if slot == 1 else "sdxl") == stem


@pytest.mark.parametrize(
    "stem",
    ["input_blocks_0_1_x", "input_blocks_3_1_x", "middle_block_3_x", "output_blocks_1_2_x", "in_layers_2"],
)
def test_what_compvis_has_not_is_taken_for_a_plain_name(stem: str) -> None:
    assert not names.is_compvis(stem)


def test_the_base_decides_what_an_underscore_is() -> None:
    known = names.flat_names(["hidden_1", "net.0", "a.b", "a_b"])
    assert names.from_kohya("hidden_1", known) == "hidden_1"
    assert names.from_kohya("hidden_1") == "hidden.1"
    assert names.from_kohya("net_0", known) == "net.0"
    with pytest.raises(ValueError, match="two layers of the base are called 'a_b'"):
        names.from_kohya("a_b", known)


def test_names_that_would_be_lost_are_refused() -> None:
    for layer, slot in (("hidden_1", None), ("x.y", 2), ("mid_block.resnets.0.strange", 2), ("a..b", None)):
        with pytest.raises(ValueError, match=r"could not be read back|cannot be a layer"):
            names.to_kohya(layer, compvis="sdxl" if slot else None)


def test_clip_has_text_model_in_files_and_bert_has_not() -> None:
    assert names.with_text_model("encoder.layers.0.mlp.fc1") == "text_model.encoder.layers.0.mlp.fc1"
    assert (
        names.with_text_model("text_model.encoder.layers.0.mlp.fc1") == "text_model.encoder.layers.0.mlp.fc1"
    )
    for other in ("encoder.layer.0.attention.self.query", "embeddings.word_embeddings", "text_projection"):
        assert names.with_text_model(other) == other
    known = names.flat_names(["encoder.layers.0.mlp.fc1"])
    for stem in ("encoder_layers_0_mlp_fc1", "text_model_encoder_layers_0_mlp_fc1"):
        assert names.from_kohya(stem, known) == "text_model.encoder.layers.0.mlp.fc1"


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("down_blocks.0.resnets.0.conv1", "unet"),
        ("text_model.encoder.layers.0.mlp.fc1", "text_encoder"),
        ("encoder.layers.0.mlp.fc1", "text_encoder"),
        ("transformer_blocks.0.attn.to_q", "transformer"),
    ],
)
def test_parts_of_names_without_a_prefix(layer: str, part: str) -> None:
    assert names.guess_part(layer) == part
