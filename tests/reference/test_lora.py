"""Adapter files against diffusers: what it loads draws as ours does, and what it saves we read."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.lora import load_lora, save_lora
from fewstep.models import adapters
from fewstep.models.adapters import LoraSpec

TARGETS = {
    "unet": ("unet",),
    "attention": ("attention",),
    "mixed": ("attention", "conv1", "down_blocks.0.downsamplers.0.conv"),
}


@pytest.fixture(scope="module")
def plain() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return StableDiffusionPipeline(
        vae,
        CLIPTextModel(config),
        None,
        unet,
        DDIMScheduler(steps_offset=1, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )


def draw(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 8)))
    with torch.no_grad():
        return unet(x, torch.tensor([999.0, 10.0]), text).sample


def trained(unet: UNet2DConditionModel, spec: LoraSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in adapters.add_lora(unet, spec, seed=0).parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    return draw(unet)


@pytest.mark.parametrize("alpha", [3.0, 8.0, 0.75])
@pytest.mark.parametrize("style", ["diffusers", "kohya"])
@pytest.mark.parametrize("targets", TARGETS)
def test_check_21_lora_draws_the_same_in_diffusers(plain, tmp_path: Path, targets, style, alpha) -> None:
    ours = copy.deepcopy(plain)
    expected = trained(ours, LoraSpec(rank=3, alpha=alpha, targets=TARGETS[targets]))
    path = tmp_path / "adapter.safetensors"
    state = adapters.adapter_state(ours)
    save_lora(path, state, rank=3, alpha=alpha, contract_json='{"steps": [4]}', style=style)

    theirs = pipeline(copy.deepcopy(plain))
    theirs.load_lora_weights(str(path))
    torch.testing.assert_close(draw(theirs.unet), expected, atol=1e-5, rtol=1e-5)
    assert (draw(plain) - expected).abs().max() > 0.01

    again = copy.deepcopy(plain)
    file = load_lora(path)
    adapters.load_adapter(again, file.state, LoraSpec(rank=file.rank, alpha=file.alpha))
    assert torch.equal(draw(again), expected)

    theirs.fuse_lora()
    theirs.unload_lora_weights()
    adapters.merge(ours)
    merged = theirs.unet.state_dict()
    assert merged.keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=1e-6)


def test_a_unet_alone_loads_the_diffusers_style(plain, tmp_path: Path) -> None:
    expected = trained(ours := copy.deepcopy(plain), LoraSpec(rank=2, alpha=5.0))
    path = tmp_path / "adapter.safetensors"
    save_lora(path, adapters.adapter_state(ours), rank=2, alpha=5.0, contract_json=None)
    theirs = copy.deepcopy(plain)
    # Without use_safetensors it reads the tensors but not the header, and takes the rank for alpha.
    theirs.load_lora_adapter(str(path), prefix="unet", use_safetensors=True)
    torch.testing.assert_close(draw(theirs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", [{}, {"attn1.to_q": 1.5}])
def test_we_read_what_diffusers_saves(plain, tmp_path: Path, pattern) -> None:
    theirs = copy.deepcopy(plain)
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["to_q", "conv1"],
        alpha_pattern=pattern,
        rank_pattern={"attn1.to_q": 2} if pattern else {},
        init_lora_weights=False,
    )
    theirs.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(theirs),
        unet_lora_adapter_metadata=theirs.peft_config["default"].to_dict(),
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert json.loads(safetensors.read_metadata(path)["lora_adapter_metadata"])["unet.lora_alpha"] == 6
    file = load_lora(path)
    ours = copy.deepcopy(plain)
    adapters.load_adapter(ours, file.state, LoraSpec(rank=file.rank, alpha=file.alpha))
    torch.testing.assert_close(draw(ours), draw(theirs), atol=1e-5, rtol=1e-5)
    assert (draw(plain) - draw(ours)).abs().max() > 0.01


def test_every_layer_of_the_preset_survives_kohya_names(tmp_path: Path) -> None:
    """On the U-Net of Stable Diffusion 1, without its weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    names = adapters.target_layers(unet, ["unet"])
    assert len(names) == 278
    state = {}
    for number, name in enumerate(names):
        state[f"{name}.lora_A.weight"] = torch.full((1, 2), float(number))
        state[f"{name}.lora_B.weight"] = torch.full((2, 1), float(number))
    save_lora(tmp_path / "a", state, rank=1, alpha=1.0, contract_json=None, style="kohya")
    found = load_lora(tmp_path / "a").state
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
