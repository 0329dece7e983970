"""Reading adapter files: every format's names, what alpha means in each, and what is told of the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import AdapterFile, Full, LoHa, LoKr, Lora, read_adapter
from fewstep.checkpoint.adapters import deltas as kinds
from fewstep.errors import CheckpointError, NotFoundError

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
FF = "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj"
PROJ = "text_model.encoder.layers.0.self_attn.out_proj"
FC = "text_model.encoder.layers.1.mlp.fc1"


def write(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> Path:
    safetensors.save_torch(path, tensors, header)
    return path


def pair(down: str, up: str, rank: int = 3) -> dict[str, torch.Tensor]:
    return {down: torch.randn(rank, 8), up: torch.randn(8, rank)}


def peft(base: str, rank: int = 3, middle: str = "") -> dict[str, torch.Tensor]:
    return pair(f"{base}.lora_A{middle}.weight", f"{base}.lora_B{middle}.weight", rank)


def kohya(base: str, rank: int = 3) -> dict[str, torch.Tensor]:
    return pair(f"{base}.lora_down.weight", f"{base}.lora_up.weight", rank)


def old(base: str, join: str) -> dict[str, torch.Tensor]:
    return pair(f"{base}{join}.down.weight", f"{base}{join}.up.weight")


JOINT = "transformer_blocks.3.attn.to_q"
SHORT = PROJ.removeprefix("text_model.")
FIRST = f"text_encoder.{PROJ}".replace("out_proj", "to_out")  # diffusers' first name of it
COMPVIS = "middle_block.1.transformer_blocks.0.attn1.to_out.0"


@pytest.mark.parametrize(
    ("tensors", "part", "layer", "style"),
    [
        (peft(f"unet.{Q}"), "unet", Q, "diffusers"),
        (peft(f"text_encoder.{PROJ}"), "text_encoder", PROJ, "diffusers"),
        (peft(f"text_encoder.{SHORT}"), "text_encoder", PROJ, "diffusers"),
        (peft(f"text_encoder_2.{FC}"), "text_encoder_2", FC, "diffusers"),
        (peft(f"transformer.{JOINT}"), "transformer", JOINT, "diffusers"),
        (peft(Q), "unet", Q, "peft"),
        (peft(f"base_model.model.{Q}"), "unet", Q, "peft"),
        (peft(f"base_model.model.{Q}", middle=".default"), "unet", Q, "peft"),
        (peft(f"base_model.model.{FC}"), "text_encoder", FC, "peft"),
        (peft(JOINT), "transformer", JOINT, "peft"),
        (old(f"unet.{FF}", ".lora"), "unet", FF, "diffusers-old"),
        (old(f"unet.{Q}".replace(".to_q", ".processor.to_q"), "_lora"), "unet", Q, "diffusers-old"),
        (old(f"unet.{OUT}".replace(".to_out.0", ".processor.to_out"), "_lora"), "unet", OUT, "diffusers-old"),
        (old(FIRST, "_lora"), "text_encoder", PROJ, "diffusers-old"),
        (old(f"text_encoder.{FC}", ".lora_linear_layer"), "text_encoder", FC, "diffusers-old"),
        (kohya(f"lora_unet_{OUT.replace('.', '_')}"), "unet", OUT, "kohya"),
        (kohya(f"lora_unet_{COMPVIS.replace('.', '_')}"), "unet", OUT, "kohya-compvis"),
        (kohya(f"lora_te_{PROJ.replace('.', '_')}"), "text_encoder", PROJ, "kohya"),
        (kohya(f"lora_te1_{PROJ.replace('.', '_')}"), "text_encoder", PROJ, "kohya"),
        (kohya(f"lora_te2_{FC.replace('.', '_')}"), "text_encoder_2", FC, "kohya"),
        (kohya(f"lora_transformer_{JOINT.replace('.', '_')}"), "transformer", JOINT, "kohya"),
        (kohya(f"lycoris_{Q.replace('.', '_')}"), "unet", Q, "kohya"),
        (kohya(f"diffusion_model.{COMPVIS}"), "unet", OUT, "comfyui"),
        (kohya(f"text_encoders.clip_l.transformer.{FC}"), "text_encoder", FC, "comfyui"),
        (kohya(f"text_encoders.clip_g.transformer.{FC}"), "text_encoder_2", FC, "comfyui"),
    ],
)
def test_C02_every_format_names_its_layers(
    tmp_path: Path, tensors: dict[str, torch.Tensor], part: str, layer: str, style: str
) -> None:
    found = read_adapter(write(tmp_path / "a", tensors))
    assert (found.style, found.unmatched, list(found.parts)) == (style, (), [part])
    assert list(found.parts[part]) == [layer]
    delta = found.parts[part][layer]
    down, up = tensors.values()
    assert isinstance(delta, Lora) and torch.equal(delta.down, down) and torch.equal(delta.up, up)
    assert delta.alpha == 3.0 and kinds.scale(delta) == 1.0  # nobody gave one


def scales(found: AdapterFile) -> dict[str, float]:
    return {layer: kinds.scale(delta) for layers in found.parts.values() for layer, delta in layers.items()}


def test_alpha_comes_from_scale_then_alpha_then_the_header_then_the_rank(tmp_path: Path) -> None:
    tensors = {
        **peft("unet.a", 2),
        **peft("unet.b", 4),
        **peft("unet.c", 4),
        **peft("text_encoder.d", 4),
        "unet.a.scale": torch.tensor(0.25),
        "unet.a.alpha": torch.tensor(100.0),
        "unet.b.alpha": torch.tensor(2.0),
    }
    config = {"unet.r": 4, "unet.lora_alpha": 12}
    header = {"lora_adapter_metadata": json.dumps(config)}
    found = read_adapter(write(tmp_path / "a", tensors, header))
    assert scales(found) == {"a": 0.25, "b": 0.5, "c": 3.0, "d": 1.0}  # the header is silent about d


def test_alphas_of_diffusers_in_memory_names(tmp_path: Path) -> None:
    """``network_alphas``, as its converter from kohya calls them."""
    base = f"unet.{Q}".replace(".to_q", ".processor.to_q_lora")
    tensors = {f"{base}.down.weight": torch.zeros(2, 8), f"{base}.up.weight": torch.zeros(8, 2)}
    tensors[f"{base}.down.weight.alpha"] = torch.tensor(1.0)
    assert scales(read_adapter(write(tmp_path / "a", tensors))) == {Q: 0.5}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"a.to_q": 8}, {"x.a.to_q": 2, "x.b.to_q": 1}),
        ({"to_q": 8, "x.a.to_q": 2}, {"x.a.to_q": 2, "x.b.to_q": 2}),  # the first that fits
        ({"x.a.to_q": 2, "to_q": 8}, {"x.a.to_q": 0.5, "x.b.to_q": 2}),
        ({"^x.b.to_q": 8, "^to_q": 2}, {"x.a.to_q": 1, "x.b.to_q": 2}),  # from the beginning
        (
            {"o_q": 8, "not.there": 3},
            {"x.a.to_q": 1, "x.b.to_q": 1},
        ),  # no end of a name; ignored, as peft does
    ],
)
def test_alpha_patterns_are_ends_of_names(tmp_path: Path, pattern: Any, expected: Any) -> None:
    from peft.utils.other import get_pattern_key

    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": pattern}
    tensors = {**peft("x.a.to_q", 4), **peft("x.b.to_q", 4)}
    found = read_adapter(write(tmp_path / "a", tensors), peft_config=json.dumps(config))
    assert scales(found) == expected
    assert {name: pattern.get(get_pattern_key(pattern, name), 4) / 4 for name in expected} == expected


def test_peft_s_own_configuration_is_given_as_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "adapter_model.safetensors", peft(f"base_model.model.{Q}", 4))
    assert scales(read_adapter(path)) == {Q: 1.0}
    assert scales(read_adapter(path, peft_config='{"lora_alpha": 2}')) == {Q: 0.5}
    assert scales(read_adapter(path, peft_config='{"lora_alpha": 2, "use_rslora": true}')) == {Q: 1.0}
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2}')
    assert scales(read_adapter(path)) == {Q: 1.0}  # no other file is opened
    for text in ("[1]", "{", '{"lora_alpha": "x"}', '{"r": 4}'):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be used"):
            read_adapter(path, peft_config=text)


def test_ranks_of_layers_stay_their_own(tmp_path: Path) -> None:
    tensors = {**peft("unet.a", 1), **peft("unet.b", 5)}
    found = read_adapter(write(tmp_path / "a", tensors))
    assert {name: kinds.rank(delta) for name, delta in found.parts["unet"].items()} == {"a": 1, "b": 5}


def test_dora_magnitudes_of_peft_and_of_kohya_become_one_form(tmp_path: Path) -> None:
    conv = {
        "unet.c.lora_A.weight": torch.zeros(2, 8, 3, 3),
        "unet.c.lora_B.weight": torch.zeros(8, 2, 1, 1),
        "unet.c.lora_magnitude_vector": torch.arange(8.0).reshape(
            1, 8, 1, 1
        ),  # outputs, though it looks like inputs
    }
    linear = {**peft("unet.l"), "unet.l.lora_magnitude_vector.default.weight": torch.arange(8.0)}
    both = read_adapter(write(tmp_path / "a", conv | linear)).parts["unet"]
    assert isinstance(both["c"], Lora) and isinstance(both["l"], Lora)
    assert both["c"].dora_scale is not None and both["l"].dora_scale is not None
    assert both["c"].dora_scale.shape == (8, 1, 1, 1) and both["l"].dora_scale.shape == (8, 1)
    inputs = {**kohya("lora_unet_x"), "lora_unet_x.dora_scale": torch.ones(1, 8)}
    found = read_adapter(write(tmp_path / "b", inputs)).parts["unet"]["x"]
    assert isinstance(found, Lora) and found.dora_scale is not None and found.dora_scale.shape == (1, 8)


def test_kinds_of_lycoris(tmp_path: Path) -> None:
    tensors = {
        **{f"lora_unet_a.hada_{n}": torch.zeros(4, 2) for n in ("w1_a", "w2_a")},
        **{f"lora_unet_a.hada_{n}": torch.zeros(2, 6) for n in ("w1_b", "w2_b")},
        "lora_unet_a.alpha": torch.tensor(1.0),
        "lora_unet_b.lokr_w1": torch.zeros(2, 3),
        "lora_unet_b.lokr_w2": torch.zeros(2, 2, 3, 3),
        "lora_unet_b.alpha": torch.tensor(1e10),  # LyCORIS writes anything there, and it means nothing
        "lora_unet_c.diff": torch.zeros(4, 6),
        "lora_unet_d.w_norm": torch.zeros(4),
        "lora_unet_d.b_norm": torch.zeros(4),
        "lora_unet_e.diff_b": torch.zeros(4),
        **kohya("lora_unet_f"),
        "lora_unet_f.diff_b": torch.ones(8),  # as ComfyUI extracts them
    }
    found = read_adapter(write(tmp_path / "a", tensors)).parts["unet"]
    assert [type(found[name]) for name in "abcde"] == [LoHa, LoKr, Full, Full, Full]
    assert [kinds.shape(found[name]) for name in "abcde"] == [(4, 6), (4, 6, 3, 3), (4, 6), (4,), None]
    assert [kinds.scale(found[name]) for name in "abc"] == [0.5, 1.0, 1.0]
    assert isinstance(found["d"], Full) and found["d"].norm
    assert isinstance(found["f"], Lora) and torch.equal(
        dict(kinds.tensors(found["f"]))["diff_b"], torch.ones(8)
    )


def test_what_is_not_understood_is_told_not_dropped(tmp_path: Path) -> None:
    strange = {
        "bundle_emb.cat.string_to_param.*": torch.zeros(2, 8),
        "lora_unet_x.what": torch.zeros(2),
        "lora_unet___y.lora_down.weight": torch.zeros(2, 2),
        "lora_nowhere_y.lora_dawn.weight": torch.zeros(2, 2),
        "unet.conv_in.weight": torch.zeros(2, 2),
        "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_up.weight": torch.zeros(2, 2),
        "unet..lora_A.weight": torch.zeros(2, 2),
        ".lora_A.weight": torch.zeros(2, 2),
    }
    found = read_adapter(write(tmp_path / "a", kohya("lora_unet_a") | strange))
    assert set(found.unmatched) == strange.keys() and list(found.parts["unet"]) == ["a"]


def test_the_base_settles_underscores_and_the_denoiser_s_name(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_hidden_1_net_0")
    path = write(tmp_path / "a", tensors)
    assert list(read_adapter(path).parts["unet"]) == ["hidden.1.net.0"]
    base = {"unet": {"hidden_1.net.0.weight": (8, 8), "hidden_1.net.0.bias": (8,)}}
    assert list(read_adapter(path, base=base).parts["unet"]) == ["hidden_1.net.0"]
    base = {"transformer": {"hidden_1.net.0.weight": (8, 8)}}
    assert list(read_adapter(path, base=base).parts["transformer"]) == ["hidden_1.net.0"]
    peft_path = write(tmp_path / "b", peft("base_model.model.x"))
    assert list(read_adapter(peft_path, base=base).parts) == ["transformer"]
    twice = {"unet": {"hidden_1.net.0.weight": (8, 8), "hidden.1.net.0.weight": (8, 8)}}
    assert set(
        read_adapter(write(tmp_path / "c", tensors | kohya("lora_unet_b")), base=twice).unmatched
    ) == set(tensors)


def test_texts_of_the_header(tmp_path: Path) -> None:
    header = {
        "format": "pt",
        "fewstep.contract": "{}",
        "lora_adapter_metadata": '{"unet.lora_alpha": 3, "unet.r": 3}',
        "ss_output_name": "cat",
        "ssmd_cover_images": "x" * 1000,
        "ss_tag_frequency": "x" * 1_000_001,
    }
    found = read_adapter(write(tmp_path / "a", peft("unet.a"), header))
    assert found.metadata == {"ss_output_name": "cat"} and found.contract_json == "{}"


HADA = {
    **{f"lora_unet_a.hada_{n}": torch.zeros(4, 2) for n in ("w1_a", "w2_a")},
    **{f"lora_unet_a.hada_{n}": torch.zeros(2, 6) for n in ("w1_b", "w2_b")},
}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"x.weight": torch.zeros(2)}, r"it is no adapter, it has 'x\.weight'"),
        ({"lora_unet_a.on_input": torch.zeros(1)}, "IA3.*not supported"),
        ({"lora_unet_a.a1.weight": torch.zeros(1)}, "GLoRA.*not supported"),
        ({"lora_unet_a.oft_blocks": torch.zeros(1, 2, 2)}, "OFT.*not supported"),
        ({**peft("unet.a"), "unet.a.lora_B.bias": torch.zeros(8)}, "LoRA with biases"),
        ({"lora_unet_a.alpha": torch.tensor(1.0)}, "'lora_unet_a.alpha', which make no layer"),
        ({**kohya("lora_unet_a"), "lora_unet_a.diff": torch.zeros(8, 8)}, "lora_unet_a.diff.*make no layer"),
        (
            {"lora_unet_a.diff": torch.zeros(8, 8), "lora_unet_a.scale": torch.tensor(1.0)},
            "whose meaning is not known",
        ),
        ({name: v for name, v in HADA.items() if "w2_b" not in name}, "too few tensors: w2_b is missing"),
        (HADA | {"lora_unet_a.hada_t1": torch.zeros(2, 2, 3, 3)}, "do not multiply"),
        (HADA | {"lora_unet_a.hada_w2_b": torch.zeros(3, 6)}, "do not multiply"),
        ({"lora_unet_a.lokr_w1": torch.zeros(2, 2)}, "do not multiply"),
        (
            {"lora_unet_a.lokr_w1": torch.zeros(2, 2), "lora_unet_a.lokr_w2_a": torch.zeros(2, 2)},
            "do not multiply",
        ),
        (
            {
                "lora_unet_a.lokr_w1": torch.zeros(2, 2, 3, 3),
                "lora_unet_a.lokr_w2": torch.zeros(2, 2),
            },
            "do not multiply",
        ),
        (kohya("lora_unet_a") | {"lora_unet_a.lora_mid.weight": torch.zeros(2, 3, 3, 3)}, "do not multiply"),
        (kohya("lora_unet_a") | {"lora_unet_a.lora_up.weight": torch.zeros(8, 3, 3, 3)}, "do not multiply"),
        (kohya("lora_unet_a") | {"lora_unet_a.lora_up.weight": torch.zeros(0, 3)}, "do not multiply"),
        ({n: v.int() for n, v in kohya("lora_unet_a").items()}, "not of floating point"),
        (
            {
                **peft("unet.a"),
                "unet.a.dora_scale": torch.ones(8, 1),
                "unet.a.lora_magnitude_vector": torch.ones(8),
            },
            "two DoRA magnitudes",
        ),
        (peft("unet.a") | peft("a"), "are the same tensor"),
        (peft("unet.a", middle=".one") | peft("unet.a", middle=".two"), "are the same tensor"),
        (kohya("lora_te_a") | kohya("lora_te1_a"), "are the same tensor"),
        (
            kohya("lora_unet_middle_block_1_proj_in") | kohya("lora_unet_mid_block_attentions_0_proj_in"),
            "are the same tensor",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], told: str
) -> None:
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError, match=told) as error:
        read_adapter(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "; give a LoRA" in message


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_adapter(tmp_path / "none.safetensors")
