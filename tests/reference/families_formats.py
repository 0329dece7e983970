"""The same model in other forms than a folder, for ``test_loading.py`` and ``benchmarks/parity.py``.

``file`` is a single file with nothing beside it, ``denoiser`` other weights for a folder's denoiser in a
bare file, ``lora`` a folder with an adapter.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import families_drawing as drawing
import numpy as np
import torch
from families_builder import PIPELINES, Case, _scheduler, _settle, build, quiet, stir
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import conversion
from fewstep.engine.adapters import AdapterUse
from fewstep.models import clip_tokenizer
from fewstep.models.source import ModelSource

sys.path.append(str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny

FILES = (
    Case("sd1", "txt2img"),
    Case("sd2", "txt2img"),
    Case("sdxl", "txt2img"),
    Case("sd3", "txt2img", parts="no-t5"),
)
BARE = tuple(Case(f, "txt2img") for f in ("sd1", "sd2", "sdxl", "sd3", "pixart-alpha", "pixart-sigma"))


LORAS = tuple(Case(f, "txt2img", parts="no-t5" if f == "sd3" else "") for f in ("sd1", "sdxl", "sd3"))
FORMS = {"file": FILES, "denoiser": BARE, "lora": LORAS}


def draw(case: Case, form: str, place: Path) -> tuple[np.ndarray, np.ndarray, Path]:
    """The latents of fewstep and of diffusers, and the folder whose scheduler both follow."""
    if form == "file":
        folder = whole(case, place / "folder")
        file = place / "alone" / "model.safetensors"
        conversion.convert(folder, file, conversion.Options())
        return drawing.draw_ours(folder, case, model=file), drawing.draw_theirs(folder, case), folder
    folder = build(case, place / "folder")
    if form == "denoiser":
        file, copy = other_denoiser(folder, place)
        ours = drawing.draw_ours(folder, case, model=ModelSource(base=folder, denoiser=file))
        return ours, drawing.draw_theirs(copy, case), folder
    file = adapter(folder, place / "loras" / "style.safetensors")

    def load(pipe: Any) -> None:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        pipe.fuse_lora(lora_scale=0.7)

    use = AdapterUse(name="style", weight=0.7)
    ours = drawing.draw_ours(folder, case, loras=[file.parent], adapters=[use])
    return ours, drawing.draw_theirs(folder, case, change=load), folder


def _clip(width: int, act: str, projection: bool, layers: int = 2) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=clip_tokenizer.SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=clip_tokenizer.LENGTH,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
    )
    made = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    stir(made)
    return made.eval()


def _vae(family: str) -> Any:
    from diffusers import AutoencoderKL

    with_quant = family != "sd3"
    scale, shift = {"sdxl": (0.13025, None), "sd3": (1.5305, 0.0609)}.get(family, (0.18215, None))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=16 if family == "sd3" else 4,
        use_quant_conv=with_quant,
        use_post_quant_conv=with_quant,
        scaling_factor=scale,
        shift_factor=shift,
    )
    stir(vae)
    return vae.eval()


def _denoiser(family: str) -> Any:
    if family == "sd3":
        from diffusers import SD3Transformer2DModel

        network: Any = SD3Transformer2DModel(
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=2,
            caption_projection_dim=128,
            joint_attention_dim=192,
            pooled_projection_dim=192,
            pos_embed_max_size=8,
            sample_size=128,
        )
        given = {
            "hidden_states": torch.randn(1, 16, 8, 8),
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": torch.randn(1, 9, 192),
            "pooled_projections": torch.randn(1, 192),
        }
        _settle(network, network.proj_out, lambda: network(**given).sample)
        return network
    network = tiny.unet(family)
    width = 128 if family == "sdxl" else 64
    added = {"text_embeds": torch.randn(1, 64), "time_ids": torch.ones(1, 6)} if family == "sdxl" else None
    _settle(
        network,
        network.conv_out,
        lambda: (
            network(
                torch.randn(1, 4, 8, 8),
                torch.tensor([500]),
                torch.randn(1, 9, width),
                added_cond_kwargs=added,
            ).sample
        ),
    )
    return network


def whole(case: Case, folder: Path) -> Path:
    """A pipeline folder with CLIP's own vocabulary, in shapes that a single file's keys can tell."""
    import diffusers

    torch.manual_seed(0)
    family = case.family
    end, first = clip_tokenizer.END, clip_tokenizer.FIRST
    parts: dict[str, Any] = {"vae": _vae(family), "scheduler": _scheduler(case)}
    parts["transformer" if family == "sd3" else "unet"] = _denoiser(family)
    if family in ("sd1", "sd2"):
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        parts["text_encoder"] = (
            _clip(64, "quick_gelu", False) if family == "sd1" else _clip(64, "gelu", False, layers=23)
        )
        parts["tokenizer"] = clip_tokenizer.tokenizer(end if family == "sd1" else first)
    else:
        parts["text_encoder"] = _clip(64, "quick_gelu", family == "sd3")
        parts["text_encoder_2"] = _clip(128 if family == "sd3" else 64, "gelu", True)
        parts |= {"tokenizer": clip_tokenizer.tokenizer(end), "tokenizer_2": clip_tokenizer.tokenizer(first)}
    if family == "sd3":
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    if family == "sdxl":
        parts["add_watermarker"] = False
    kind = "sd" if family in ("sd1", "sd2") else family
    with quiet():
        getattr(diffusers, PIPELINES[kind, case.mode])(**parts).save_pretrained(folder)
    return folder


def other_denoiser(folder: Path, out: Path) -> tuple[Path, Path]:
    """A file with other weights for a folder's denoiser, and a copy of the folder that has them."""
    copy = Path(shutil.copytree(folder, out / "copy"))
    part = copy / ("unet" if (copy / "unet").is_dir() else "transformer")
    file = next(part.glob("*.safetensors"))
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)
        if value.ndim > 1
        else value
        for name, value in tensors.items()
    }
    save_file(changed, file, {"format": "pt"})
    return Path(shutil.copy(file, out / "denoiser.safetensors")), copy


def adapter(folder: Path, path: Path, seed: int = 0) -> Path:
    """A LoRA of the attention of a folder's denoiser, in diffusers' names, large enough to be seen."""
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    weights = load_file(next((folder / part).glob("*.safetensors")))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in weights.items():
        if name.endswith(("to_q.weight", "to_v.weight")) and value.ndim == 2:
            layer = f"{part}.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(2, value.shape[1], generator=generator)
            tensors[f"{layer}.lora_B.weight"] = 0.3 * torch.randn(value.shape[0], 2, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path
