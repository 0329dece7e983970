"""Configs of networks, told from the shapes of their tensors (in diffusers' names).

What shapes cannot say is the family's rule, and is the same in every published model of it:

- attention heads: 8 in Stable Diffusion 1, 16 in PixArt; 64 channels each in 2, XL, 3 and the text encoders;
- group normalisation: 32 groups;
- the latents' scale: 0.18215 (1, 2, PixArt-alpha), 0.13025 (XL, PixArt-Sigma), 1.5305 and shift 0.0609 (3);
- sizes: 512 pixels (1), 768 (2 with v_prediction) or 512 (2 with epsilon), 1024 (XL, 3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from fewstep.checkpoint.keymaps import pixart, sd3, text, unet, vae
from fewstep.checkpoint.keymaps.moves import numbers
from fewstep.errors import CheckpointError

Family = Literal["sd1", "sd2", "sdxl", "sd3", "pixart-alpha", "pixart-sigma"]
FAMILIES: tuple[Family, ...] = ("sd1", "sd2", "sdxl", "sd3", "pixart-alpha", "pixart-sigma")

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

SCALING: dict[Family, tuple[float, float | None]] = {
    "sd1": (0.18215, None),
    "sd2": (0.18215, None),
    "sdxl": (0.13025, None),
    "sd3": (1.5305, 0.0609),
    "pixart-alpha": (0.18215, None),
    "pixart-sigma": (0.13025, None),
}
"""Factor and shift of the latents of each family's autoencoder."""

_HEAD = 64


def pixels(family: Family, prediction_type: str | None) -> int:
    """The side of the pictures that a family was trained on."""
    if family == "sd1":
        return 512
    if family == "sd2":
        return 768 if prediction_type == "v_prediction" else 512
    return 1024


def unet_config(
    shapes: Shapes, family: Family, *, prediction_type: str | None, pooled: int | None = None
) -> Config:
    """Config of a ``UNet2DConditionModel``.

    Args:
        shapes: in diffusers' names.
        family: ``sd1``, ``sd2`` or ``sdxl``.
        prediction_type: of Stable Diffusion 2, where the size goes with it.
        pooled: width of the pooled text of ``sdxl``, when the second text encoder is at hand. Six numbers
            (sizes and crops) are embedded beside it, in 256 dimensions each when it is not known.

    Raises:
        CheckpointError: a tensor that says a number of this config is missing, or the numbers contradict.
    """
    structure = unet.from_diffusers(shapes.keys())
    count = structure.blocks
    channels = [_dim(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(count)]
    depths = [_transformers(shapes, f"down_blocks.{i}") for i in range(count)]
    crossed = next((f"down_blocks.{i}" for i in range(count) if depths[i]), "mid_block")
    stem = f"{crossed}.attentions.0"
    config: Config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": pixels(family, prediction_type) // 8,
        "in_channels": _dim(shapes, "conv_in.weight", 1),
        "out_channels": _dim(shapes, "conv_out.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": structure.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [
            "CrossAttnUpBlock2D" if i in structure.attention else "UpBlock2D" for i in range(count)
        ],
        "transformer_layers_per_block": _one_if_all([max(depth, 1) for depth in depths]),
        "cross_attention_dim": _dim(shapes, f"{stem}.transformer_blocks.0.attn2.to_k.weight", 1),
        "attention_head_dim": 8 if family == "sd1" else [max(size // _HEAD, 1) for size in channels],
        "use_linear_projection": len(_shape(shapes, f"{stem}.proj_in.weight")) == 2,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "center_input_sample": False,
    }
    if family == "sd2":
        # 2.1 needs it in float16 and 2.0 does not mind; the two have the same keys
        config["upcast_attention"] = True
    if "time_embedding.cond_proj.weight" in shapes:  # the guidance scale of LCM students
        config["time_cond_proj_dim"] = _dim(shapes, "time_embedding.cond_proj.weight", 1)
    if family == "sdxl":
        width = _dim(shapes, "add_embedding.linear_1.weight", 1)
        numbers, left = divmod(width - pooled, 6) if pooled is not None else (256, 0)
        if left or numbers <= 0:
            raise CheckpointError(
                f"the U-Net takes {width} numbers of text and sizes, which is not {pooled} of the text "
                "encoder and six more; the parts are of different models"
            )
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": numbers,
            "projection_class_embeddings_input_dim": width,
        }
    return config


def vae_config(shapes: Shapes, family: Family, *, prediction_type: str | None) -> Config:
    """Config of an ``AutoencoderKL``; raises as `unet_config`."""
    levels, layers = vae.from_diffusers(shapes.keys())
    channels = [_dim(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(levels)]
    scale, shift = SCALING[family]
    config: Config = {
        "_class_name": "AutoencoderKL",
        "sample_size": pixels(family, prediction_type),
        "in_channels": _dim(shapes, "encoder.conv_in.weight", 1),
        "out_channels": _dim(shapes, "decoder.conv_out.weight", 0),
        "latent_channels": _dim(shapes, "decoder.conv_in.weight", 1),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "scaling_factor": scale,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "decoder.mid_block.attentions.0.to_q.weight" in shapes,
        "force_upcast": True,
    }
    return config if shift is None else config | {"shift_factor": shift}


def clip_config(shapes: Shapes, *, act: Literal["quick_gelu", "gelu"], class_name: str) -> Config:
    """Config of a ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.

    Args:
        shapes: in transformers' names.
        act: ``quick_gelu`` of OpenAI's CLIP-L, ``gelu`` of OpenCLIP.
        class_name: of the two.

    Raises:
        CheckpointError: as `unet_config`.
    """
    vocabulary, width = _pair(shapes, "text_model.embeddings.token_embedding.weight")
    project = shapes.get("text_projection.weight")
    return {
        "architectures": [class_name],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": project[0] if project else width,
        "intermediate_size": _dim(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": text.clip_layers(shapes.keys()),
        "num_attention_heads": max(width // _HEAD, 1),
        "max_position_embeddings": _dim(shapes, "text_model.embeddings.position_embedding.weight", 0),
        "hidden_act": act,
        "layer_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        # As published: 2 makes transformers take the token of the largest number for the end of the text.
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def t5_config(shapes: Shapes) -> Config:
    """Config of a ``T5EncoderModel`` of version 1.1, with gated GELU; raises as `unet_config`."""
    vocabulary, width = _pair(shapes, "shared.weight")
    first = "encoder.block.0.layer"
    heads = _dim(shapes, f"{first}.0.SelfAttention.relative_attention_bias.weight", 1)
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": _dim(shapes, f"{first}.1.DenseReluDense.wi_0.weight", 0),
        "d_kv": _dim(shapes, f"{first}.0.SelfAttention.q.weight", 0) // max(heads, 1),
        "num_heads": heads,
        "num_layers": len(layers),
        "num_decoder_layers": len(layers),
        "relative_attention_num_buckets": _dim(
            shapes, f"{first}.0.SelfAttention.relative_attention_bias.weight", 0
        ),
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "layer_norm_epsilon": 1e-06,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def sd3_config(shapes: Shapes) -> Config:
    """Config of an ``SD3Transformer2DModel``; raises as `unet_config`."""
    width, channels, patch, _ = _of_rank(shapes, "pos_embed.proj.weight", 4)
    layers = sd3.layers_of(shapes.keys())
    twice = numbers(shapes, r"transformer_blocks\.(\d+)\.attn2\.")
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": _dim(shapes, "proj_out.weight", 0) // (patch * patch or 1),
        "num_layers": layers,
        "attention_head_dim": _HEAD,
        "num_attention_heads": width // _HEAD,
        "joint_attention_dim": _dim(shapes, "context_embedder.weight", 1),
        "caption_projection_dim": _dim(shapes, "context_embedder.weight", 0),
        "pooled_projection_dim": _dim(shapes, "time_text_embed.text_embedder.linear_1.weight", 1),
        "pos_embed_max_size": math.isqrt(_dim(shapes, "pos_embed.pos_embed", 1)),
        "dual_attention_layers": sorted(twice),
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in shapes else None,
    }


def pixart_config(shapes: Shapes, family: Family, *, positions: int | None) -> Config:
    """Config of a ``PixArtTransformer2DModel``.

    Args:
        shapes: in diffusers' names.
        family: ``pixart-alpha`` or ``pixart-sigma``.
        positions: length of the authors' position table; without it the size is taken to be 1024 pixels.

    Raises:
        CheckpointError: as `unet_config`.
    """
    width, channels, patch, _ = _of_rank(shapes, "pos_embed.proj.weight", 4)
    size = 128 if positions is None else math.isqrt(positions) * patch
    return {
        "_class_name": "PixArtTransformer2DModel",
        "sample_size": size,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": _dim(shapes, "proj_out.weight", 0) // (patch * patch or 1),
        "num_layers": pixart.layers_of(shapes.keys()),
        "num_attention_heads": 16,
        "attention_head_dim": width // 16,
        "cross_attention_dim": width,
        "caption_channels": _dim(shapes, "caption_projection.linear_1.weight", 1),
        "use_additional_conditions": "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes,
        # Sigma stretches the positions of its 512 pixel model in every size; alpha does not shrink them.
        "interpolation_scale": size / 64 if family == "pixart-sigma" else max(size // 64, 1),
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-06,
        "num_embeds_ada_norm": 1000,
    }


def _transformers(shapes: Shapes, block: str) -> int:
    return len(numbers(shapes, re.escape(block) + r"\.attentions\.0\.transformer_blocks\.(\d+)\."))


def _one_if_all(depths: list[int]) -> int | list[int]:
    return 1 if set(depths) == {1} else depths


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"{name} is missing, so it is no whole network; download or export it again")
    return shapes[name]


def _of_rank(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = _shape(shapes, name)
    if len(shape) != rank:
        raise CheckpointError(f"{name} has the shape {shape}, and {rank} dimensions are expected")
    return shape


def _pair(shapes: Shapes, name: str) -> tuple[int, int]:
    rows, columns = _of_rank(shapes, name, 2)
    return rows, columns


def _dim(shapes: Shapes, name: str, index: int) -> int:
    shape = _shape(shapes, name)
    if index >= len(shape):
        raise CheckpointError(f"{name} has the shape {shape}; it is the tensor of another network")
    return shape[index]
