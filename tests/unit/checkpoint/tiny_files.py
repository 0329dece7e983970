"""Small random networks of the real classes, of every family, and the single files that they make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from fewstep.checkpoint import detect, half, single_file
from fewstep.checkpoint.tensorfile import Entry

State = dict[str, torch.Tensor]


class Memory:
    """Tensors that were never in a file, as a store."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.entries = {
            name: Entry(half.code_of(value.dtype), tuple(value.shape)) for name, value in tensors.items()
        }

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        value = self.tensors[name]
        return value.clone() if rows is None else value[rows[0] : rows[1]].clone()

    def check_unchanged(self) -> None:
        pass


def unet(family: str, *, channels: int = 4) -> UNet2DConditionModel:
    common: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": 4,
        "layers_per_block": 2,
        "cross_attention_dim": 64 if family != "sdxl" else 128,
        "sample_size": {"sd1": 64, "sd2": 64, "sdxl": 128}[family],
    }
    if family == "sdxl":
        return UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 64),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(1, 1, 1),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64 + 6 * 8,
            **common,
        )
    return UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64, 64),
        attention_head_dim=8 if family == "sd1" else (1, 1, 1),
        use_linear_projection=family == "sd2",
        **common,
    )


def vae(family: str) -> AutoencoderKL:
    quantised = family != "sd3"
    scale, shift = {"sdxl": (0.13025, None), "sd3": (1.5305, 0.0609)}.get(family, (0.18215, None))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=16 if family == "sd3" else 4,
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
        scaling_factor=scale,
        shift_factor=shift,
        sample_size=512 if family in ("sd1", "sd2") else 1024,
    )


def clip(width: int = 64, *, act: str = "quick_gelu", projection: bool = False, layers: int = 2) -> Any:
    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=16,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=50,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def sd3(*, dual: tuple[int, ...] = (), qk_norm: str | None = None) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        num_layers=3,
        attention_head_dim=64,
        num_attention_heads=2,
        caption_projection_dim=128,
        joint_attention_dim=32,
        pooled_projection_dim=128,
        pos_embed_max_size=8,
        sample_size=128,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )


def pixart(*, sizes: bool = True) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_layers=2,
        attention_head_dim=6,
        num_attention_heads=16,
        cross_attention_dim=96,
        caption_channels=32,
        sample_size=128,
        interpolation_scale=2,
        use_additional_conditions=sizes,
    )


@cache
def networks(family: str) -> dict[str, Any]:
    """The networks of a tiny model by folder name; biases and norms are random too, not zeros and ones."""
    torch.manual_seed(0)
    made: dict[str, Any]
    match family:
        case "sd1":
            made = {"unet": unet("sd1"), "vae": vae("sd1"), "text_encoder": clip()}
        case "sd2":
            made = {"unet": unet("sd2"), "vae": vae("sd2"), "text_encoder": clip(act="gelu", layers=23)}
        case "sdxl":
            made = {"unet": unet("sdxl"), "vae": vae("sdxl"), "text_encoder": clip()}
            made["text_encoder_2"] = clip(act="gelu", projection=True)
        case "sd3":
            made = {
                "transformer": sd3(),
                "vae": vae("sd3"),
                "text_encoder": clip(projection=True),
                "text_encoder_2": clip(128, act="gelu", projection=True),
                "text_encoder_3": t5(),
            }
        case "sd35":
            made = {"transformer": sd3(dual=(0, 1), qk_norm="rms_norm"), "vae": vae("sd3")}
        case "pixart-alpha":
            made = {"transformer": pixart()}
        case "pixart-sigma":
            made = {"transformer": pixart(sizes=False)}
        case _:
            raise ValueError(family)
    for module in made.values():
        for value in module.parameters():
            torch.nn.init.normal_(value, std=0.5)
        module.eval()
    return made


def state(module: Any) -> State:
    """Tensors of a network as its folder has them: CLIP with ``text_model.``, T5's table once."""
    found = dict(module.state_dict())
    found.pop("encoder.embed_tokens.weight", None)
    if type(module) is CLIPTextModel:
        found = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in found.items()}
    return found


def states(family: str) -> dict[str, State]:
    return {name: state(module) for name, module in networks(family).items()}


def views(given: Mapping[str, State]) -> tuple[detect.Detected, list[single_file.PartView]]:
    """Parts of tensors in memory."""
    stores = {name: Memory(tensors) for name, tensors in given.items()}
    found = detect.detect_folder({name: store.entries for name, store in stores.items()})
    return found, [single_file.view(part, stores[name]) for name, part in found.parts.items()]


def save(path: Path, family: str, only: Iterable[str] | None = None, dtype: Any = None) -> Path:
    """Write a tiny model as its family's single file."""
    kept = {name: tensors for name, tensors in states(family).items() if only is None or name in set(only)}
    found, parts = views(kept)
    assert found.family is not None
    single_file.write(path, parts, family=found.family, dtype=dtype)
    return path
