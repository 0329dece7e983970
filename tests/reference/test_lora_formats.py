"""Adapters in a pipeline's weights against diffusers, peft and LyCORIS, in every format that they read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import Lora, read_adapter, save_adapter
from fewstep.models.lora_apply import delta_weight, merged, shapes

TOLERANCE = {"rtol": 1e-6, "atol": 2e-7}

UNET_TARGETS = (
    "to_q to_k to_v to_out.0 proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut "
    "downsamplers.0.conv upsamplers.0.conv time_emb_proj"
).split()
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def clip(cls: Any = CLIPTextModel) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=6,
        bos_token_id=0,
        eos_token_id=1,
    )
    return cls(config).eval()


def make_sd1() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae, clip(), None, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )


def make_sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        cross_attention_dim=14,
        attention_head_dim=(2, 2, 4),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=30,
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    second = clip(CLIPTextModelWithProjection)
    return StableDiffusionXLPipeline(
        vae, clip(), second, None, None, unet.eval(), DDIMScheduler(), add_watermarker=False
    )


MAKERS: dict[str, Callable[[], Any]] = {"sd1": make_sd1, "sdxl": make_sdxl}


@pytest.fixture(scope="module", params=MAKERS)
def plain(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def networks(pipeline: Any) -> dict[str, nn.Module]:
    found = {part: getattr(pipeline, part, None) for part in ("unet", "text_encoder", "text_encoder_2")}
    return {part: module for part, module in found.items() if module is not None}


def copies(pipeline: Any) -> Any:
    """The pipeline with networks of its own."""
    return type(pipeline)(**{**pipeline.components, **copy.deepcopy(networks(pipeline))}, **extra(pipeline))


def extra(pipeline: Any) -> dict[str, Any]:
    return {"requires_safety_checker": False} if isinstance(pipeline, StableDiffusionPipeline) else {}


def weights(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Weights of the layers themselves, under plain names also while peft wraps them."""
    found = {}
    for part, module in modules.items():
        for name, value in module.state_dict().items():
            if ".lora_" not in name:
                found[f"{part}.{name.replace('.base_layer.', '.')}"] = value.clone()
    return found


class Trained(dict[str, dict[str, torch.Tensor]]):
    """peft's own state dicts by part, and the weights with them folded in by peft."""

    merged: dict[str, torch.Tensor]


def trained(
    pipeline: Any, *, seed: int, dora: bool = False, patterns: bool = False
) -> tuple[Trained, dict[str, dict[str, Any]]]:
    """Random adapters of every network, and peft's configurations; the pipeline stays as it is."""
    states, configs = Trained(), {}
    generator = torch.Generator().manual_seed(seed)
    modules = networks(copies(pipeline))
    for part, module in modules.items():
        first, second = ("to_q", "attn2.to_k") if part == "unet" else ("q_proj", "1.mlp.fc1")
        config = LoraConfig(
            r=3,
            lora_alpha=5,
            target_modules=TEXT_TARGETS if part != "unet" else UNET_TARGETS,
            use_dora=dora,
            rank_pattern={first: 2} if patterns else {},
            alpha_pattern={first: 7.0, second: 1.5} if patterns else {},
        )
        module.add_adapter(config)
        with torch.no_grad():
            for name, value in module.named_parameters():
                if ".lora_magnitude_vector" in name:
                    value.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
                elif ".lora_" in name:
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
        state = get_peft_model_state_dict(module, adapter_name="default")
        states[part] = {name: value.clone() for name, value in state.items()}
        configs[part] = module.peft_config["default"].to_dict()
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    states.merged = weights(modules)
    return states, configs


def save_as_diffusers(
    folder: Path, pipeline: Any, states: Any, configs: Any, *, metadata: bool = True
) -> Path:
    """As diffusers' own training scripts write it."""
    kwargs: dict[str, Any] = {"unet_lora_layers": states["unet"]}
    for part in states:
        if part != "unet":
            kwargs[f"{part}_lora_layers"] = states[part]
        if metadata:
            kwargs[f"{part}_lora_adapter_metadata"] = configs[part]
    type(pipeline).save_lora_weights(folder, **kwargs)
    return folder / "pytorch_lora_weights.safetensors"


def fused_by_diffusers(pipeline: Any, files: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    theirs = copies(pipeline)
    for number, (file, _) in enumerate(files):
        theirs.load_lora_weights(str(file), adapter_name=f"a{number}", use_safetensors=True)
    adapters = [f"a{number}" for number in range(len(files))]
    theirs.set_adapters(adapters, [weight for _, weight in files])
    parts = [part for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(theirs, part)]
    theirs.fuse_lora(components=parts, adapter_names=adapters)
    return weights(networks(theirs))


def fused_by_us(pipeline: Any, files: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    ours = networks(copies(pipeline))
    before = weights(ours)
    read = [(read_adapter(file, base=shapes(ours)), weight, weight) for file, weight in files]
    with merged(ours, read):
        found = weights(ours)
    after = weights(ours)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(not torch.equal(before[name], found[name]) for name in before) > 20
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("patterns", [False, True], ids=["one rank", "patterns"])
def test_diffusers_files_merge_as_in_diffusers(
    plain: Any, tmp_path: Path, dora: bool, patterns: bool
) -> None:
    states, configs = trained(plain, seed=3, dora=dora, patterns=patterns)
    file = save_as_diffusers(tmp_path, plain, states, configs)
    found = fused_by_us(plain, [(file, 1.0)])
    assert_same(found, states.merged)
    if dora:  # transformers does not read the magnitudes that diffusers saves of a text encoder; ours it does
        save_adapter(file, read_adapter(file), style="diffusers")
    assert_same(found, fused_by_diffusers(plain, [(file, 1.0)]))


def test_diffusers_files_without_alpha_have_scale_1(plain: Any, tmp_path: Path) -> None:
    states, configs = trained(plain, seed=4, patterns=True)
    file = save_as_diffusers(tmp_path, plain, states, configs, metadata=False)
    assert safetensors.read_metadata(file) == {"format": "pt"}
    assert_same(fused_by_us(plain, [(file, 0.7)]), fused_by_diffusers(plain, [(file, 0.7)]))


def test_several_adapters_add_up_as_in_diffusers(plain: Any, tmp_path: Path) -> None:
    files = []
    for seed, weight in ((5, 0.8), (6, -0.5), (7, 1.3)):
        folder = tmp_path / str(seed)
        states, configs = trained(plain, seed=seed, patterns=seed == 6)
        files.append((save_as_diffusers(folder, plain, states, configs), weight))
    assert_same(fused_by_us(plain, files), fused_by_diffusers(plain, files))


def old_names(states: Mapping[str, Mapping[str, torch.Tensor]], text: str) -> dict[str, torch.Tensor]:
    """The names of diffusers before it used peft; ``text`` says which of two generations of CLIP's names."""
    found: dict[str, torch.Tensor] = {}
    for part, state in states.items():
        for name, value in state.items():
            layer, _, side = name.removesuffix(".weight").rpartition(".lora_")
            side = {"A": "down", "B": "up"}[side]
            parent, _, last = layer.removesuffix(".0").rpartition(".")
            if part == "unet" and ".attn" in layer:
                found[f"unet.{parent}.processor.{last}_lora.{side}.weight"] = value
            elif part == "unet":
                found[f"unet.{layer}.lora.{side}.weight"] = value
            elif text == "first" and "self_attn" in layer:
                short = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[last]
                found[f"{part}.{parent}.{short}_lora.{side}.weight"] = value
            else:
                found[f"{part}.{layer}.lora_linear_layer.{side}.weight"] = value
    return found


@pytest.mark.parametrize("text", ["first", "second"])
def test_old_names_of_diffusers(plain: Any, tmp_path: Path, text: str) -> None:
    states, _ = trained(plain, seed=8)
    file = tmp_path / "old.safetensors"
    safetensors.save_torch(file, old_names(states, text))
    assert read_adapter(file).style == "diffusers-old"
    assert_same(fused_by_us(plain, [(file, 0.9)]), fused_by_diffusers(plain, [(file, 0.9)]))


@pytest.mark.parametrize("style", ["kohya", "kohya-compvis"])
def test_kohya_files_merge_as_in_diffusers(plain: Any, tmp_path: Path, style: Any) -> None:
    """Alphas are all alike here: of other kohya files diffusers gives attention the most common alpha."""
    states, configs = trained(plain, seed=9)
    for config in configs.values():
        config["lora_alpha"] = 2
    file = save_as_diffusers(tmp_path, plain, states, configs)
    kohya = tmp_path / "kohya.safetensors"
    save_adapter(kohya, read_adapter(file), style=style)
    assert read_adapter(kohya).style == style
    expected = fused_by_diffusers(plain, [(file, 0.6)])
    assert_same(fused_by_us(plain, [(kohya, 0.6)]), expected)
    if style == "kohya" or isinstance(plain, StableDiffusionXLPipeline):  # of SD1 it does not read CompVis's
        assert_same(fused_by_diffusers(plain, [(kohya, 0.6)]), expected)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_C02_what_we_convert_diffusers_reads(plain: Any, tmp_path: Path, dora: bool) -> None:
    """kohya with ranks and alphas of every layer's own -> diffusers, also in text encoders and with DoRA."""
    states, configs = trained(plain, seed=10, patterns=True, dora=dora)
    file = save_as_diffusers(tmp_path, plain, states, configs)
    kohya, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    save_adapter(kohya, read_adapter(file), style="kohya")
    save_adapter(back, read_adapter(kohya), style="diffusers")
    assert_same(fused_by_us(plain, [(kohya, 1.0)]), states.merged)
    assert_same(fused_by_diffusers(plain, [(back, 1.0)]), states.merged)


def test_raw_peft_folders(tmp_path: Path) -> None:
    """peft's own file, whose alpha stands in adapter_config.json beside it."""
    unet = make_sd1().unet
    expected = copy.deepcopy(unet)
    model = get_peft_model(expected, LoraConfig(r=2, lora_alpha=9, target_modules=["to_q", "conv1"]))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.normal_()
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    config = (tmp_path / "adapter_config.json").read_text()
    adapter = read_adapter(file, peft_config=config)
    assert adapter.style == "peft" and {d.alpha for d in adapter.parts["unet"].values()} == {9.0}
    assert {d.alpha for d in read_adapter(file).parts["unet"].values()} == {2.0}
    found = copy.deepcopy(unet)
    merged({"unet": found}, [(adapter, 1.0, 1.0)])
    assert_same(weights({"unet": found}), weights({"unet": model.merge_and_unload()}))


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 12)
        self.small = nn.Conv2d(6, 8, 1)
        self.conv = nn.Conv2d(6, 8, 3)


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, alpha=3, target_modules=["linear", "small", "conv"], init_weights=False),
        LoHaConfig(r=2, alpha=3, target_modules=["conv"], init_weights=False, use_effective_conv2d=True),
        LoKrConfig(r=1, alpha=3, target_modules=["linear", "small", "conv"], init_weights=False),
        LoKrConfig(
            r=1,
            alpha=3,
            target_modules=["linear", "conv"],
            init_weights=False,
            decompose_both=True,
            decompose_factor=4,
        ),
        LoKrConfig(r=1, alpha=3, target_modules=["conv"], init_weights=False, use_effective_conv2d=True),
        LoraConfig(r=2, lora_alpha=3, target_modules=["linear", "small", "conv"], init_lora_weights=False),
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["linear", "small", "conv"],
            init_lora_weights=False,
            use_dora=True,
        ),
        LoraConfig(
            r=4,
            lora_alpha=3,
            target_modules=["linear", "small", "conv"],
            init_lora_weights=False,
            use_rslora=True,
        ),
    ],
    ids=["loha", "loha tucker", "lokr", "lokr both", "lokr tucker", "lora", "dora", "rslora"],
)
def test_every_kind_is_what_peft_computes(tmp_path: Path, config: Any) -> None:
    torch.manual_seed(2)
    plain = Layers()
    model = get_peft_model(copy.deepcopy(plain), config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_magnitude_vector" in name:
                value.mul_(1.7)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(
        tmp_path / "adapter_model.safetensors", peft_config=(tmp_path / "adapter_config.json").read_text()
    )
    assert not adapter.unmatched and len(adapter.parts["unet"]) == len(config.target_modules)
    found = copy.deepcopy(plain)
    merged({"unet": found}, [(adapter, 1.0, 1.0)])
    expected = model.merge_and_unload()
    assert_same(weights({"x": found}), weights({"x": expected}))
    assert not torch.equal(found.conv.weight, plain.conv.weight)


def test_dora_between_off_and_full_is_not_peft_s() -> None:
    """We go straight from W to the full DoRA; peft scales inside the norm. Both agree at 1."""
    torch.manual_seed(3)
    layer = nn.Linear(4, 5, bias=False)
    delta = Lora(down=torch.randn(2, 4), up=torch.randn(5, 2), alpha=2.0, dora_scale=torch.rand(5, 1) + 0.5)
    from fewstep.checkpoint.adapters import AdapterFile

    adapter = AdapterFile(name="dora", parts={"unet": {"layer": delta}})
    weight = layer.weight.detach().clone()
    full = weight + delta.up @ delta.down
    full = delta.dora_scale * full / full.norm(dim=1, keepdim=True)
    with merged({"unet": nn.ModuleDict({"layer": layer})}, [(adapter, 0.25, 0.0)]):
        torch.testing.assert_close(layer.weight, weight + 0.25 * (full - weight), **TOLERANCE)


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
@pytest.mark.parametrize("tucker", [False, True])
def test_lycoris_computes_the_same(tmp_path: Path, kernel: tuple[int, ...], tucker: bool) -> None:
    """Its functions; its LohaModule multiplies by the scale twice when it merges, but not when it trains."""
    from lycoris import functional
    from lycoris.functional import locon, loha, lokr

    tucker = tucker and kernel == (3, 3)
    generator = torch.Generator().manual_seed(4)

    def fill(pieces: Any) -> list[torch.Tensor | None]:
        return [p if p is None else torch.randn(p.shape, generator=generator) * 0.5 for p in pieces]

    weight = torch.randn(16, 24, *kernel, generator=generator)
    down, up, mid = fill(locon.weight_gen(weight, 4, tucker))
    if kernel and not tucker:  # its generator forgets the kernel
        down, up = torch.randn(4, 24, *kernel, generator=generator), up.reshape(16, 4, *(1 for _ in kernel))
    base = "lora_unet_layer"
    files: dict[str, tuple[dict[str, torch.Tensor | None], torch.Tensor]] = {}
    locon_delta = locon.diff_weight(down, up, mid, gamma=0.75).reshape(weight.shape)
    files["locon"] = ({"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid}, locon_delta)
    w1d, w1u, w2d, w2u, t1, t2 = fill(loha.weight_gen(weight.flatten(1) if not tucker else weight, 4, tucker))
    loha_delta = loha.diff_weight(w1d, w1u, w2d, w2u, t1, t2, gamma=torch.tensor(0.75)).reshape(weight.shape)
    files["loha"] = (
        {
            "hada_w1_a": w1u,
            "hada_w1_b": w1d,
            "hada_w2_a": w2u,
            "hada_w2_b": w2d,
            "hada_t1": t1,
            "hada_t2": t2,
        },
        loha_delta,
    )
    w1, w1a, w1b, w2, w2a, w2b, t = fill(lokr.weight_gen(weight, 4 if tucker else 1, tucker, factor=2))
    if w2a is not None:
        gamma = 0.75 * w2a.shape[1]  # it divides by the second size, which with t is not the rank
        lokr_delta = lokr.diff_weight(w1, w1a, w1b, w2, w2a, w2b, t, gamma=gamma).reshape(weight.shape)
        files["lokr"] = (
            {"lokr_w1": w1, "lokr_w2_a": w2a, "lokr_w2_b": w2b if tucker else w2b.flatten(1), "lokr_t2": t},
            lokr_delta,
        )
    assert "lokr" in files
    for name, (pieces, expected) in files.items():
        rank = 4 if name != "lokr" else len(w2b)
        dora = functional.weight_decompose(
            weight + expected, torch.rand(16, *(1 for _ in weight.shape[1:])) + 1
        )
        for scale_axis in (None, 0, 1):
            tensors = {f"{base}.{key}": value for key, value in pieces.items() if value is not None}
            tensors[f"{base}.alpha"] = torch.tensor(0.75 * rank)
            if scale_axis is not None:
                sizes = [1] * weight.ndim
                sizes[scale_axis] = weight.shape[scale_axis]
                magnitude = torch.rand(sizes, generator=generator) + 0.5
                tensors[f"{base}.dora_scale"] = magnitude
                dora = functional.weight_decompose(weight + expected, magnitude, wd_on_out=scale_axis == 0)
            safetensors.save_torch(tmp_path / "a.safetensors", tensors)
            delta = read_adapter(tmp_path / "a.safetensors").parts["unet"]["layer"]
            found, _ = delta_weight(delta, weight)
            wanted = expected if scale_axis is None else dora - weight
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
