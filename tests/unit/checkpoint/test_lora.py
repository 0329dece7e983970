"""Adapter files: both styles of names, rank and alpha, the contract, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.lora import LoraFile, load_lora, save_lora
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

CONTRACT = '{"format_version": 1, "steps": [1, 2]}'

LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 6),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": (8, 8),
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": (16, 8),
    "down_blocks.0.attentions.0.proj_in": (8, 8),
    "down_blocks.0.downsamplers.0.conv": (8, 8, 3, 3),
    "mid_block.resnets.1.time_emb_proj": (8, 16),
    "mid_block.resnets.1.conv1": (8, 8, 3, 3),
    "up_blocks.1.resnets.2.conv_shortcut": (8, 16, 1, 1),
}
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA_Q = "lora_unet_" + Q.replace(".", "_")


def make(rank: int = 3, layers: dict[str, tuple[int, ...]] | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, (out, *inputs) in (layers or LAYERS).items():
        state[f"{name}.lora_A.weight"] = torch.randn(rank, *inputs, generator=generator)
        ones = (1,) * (len(inputs) - 1)
        state[f"{name}.lora_B.weight"] = torch.randn(out, rank, *ones, generator=generator)
    return state


def deltas(file: LoraFile) -> dict[str, torch.Tensor]:
    """What the file adds to every layer's weight, as matrices."""
    return {
        name.removesuffix(".lora_A.weight"): file.alpha
        / file.rank
        * file.state[name.replace("lora_A", "lora_B")].flatten(1)
        @ value.flatten(1)
        for name, value in file.state.items()
        if ".lora_A." in name
    }


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
@pytest.mark.parametrize(("alpha", "contract"), [(3.0, CONTRACT), (8.0, None), (0.5, CONTRACT)])
def test_check_21_lora_files_come_back(
    tmp_path: Path, style: Any, alpha: float, contract: str | None
) -> None:
    state, path = make(), tmp_path / "adapter.safetensors"
    about = {"licence": "MIT"}
    save_lora(path, state, rank=3, alpha=alpha, contract_json=contract, style=style, metadata=about)
    file = load_lora(path)
    assert (file.rank, file.alpha, file.style, file.contract_json) == (3, alpha, style, contract)
    assert file.metadata == about
    assert file.state.keys() == state.keys()
    assert all(torch.equal(file.state[name], state[name]) for name in state)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_names_and_header_of_the_diffusers_style(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, make(), rank=3, alpha=6.0, contract_json=CONTRACT)
    names = safetensors.load(path).keys()
    assert len(names) == 2 * len(LAYERS)
    assert {f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight"} <= names
    header = safetensors.read_metadata(path)
    assert header.keys() == {"format", "fewstep.contract", "lora_adapter_metadata"}
    assert header["fewstep.contract"] == CONTRACT
    assert json.loads(header["lora_adapter_metadata"]) == {
        "unet.r": 3,
        "unet.lora_alpha": 6.0,
        "unet.target_modules": sorted(LAYERS),
    }


def test_names_and_header_of_the_kohya_style(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lora(path, make(), rank=3, alpha=6.0, contract_json=CONTRACT, style="kohya")
    tensors = safetensors.load(path)
    assert len(tensors) == 3 * len(LAYERS)
    assert tensors[f"{KOHYA_Q}.lora_down.weight"].shape == (3, 6)
    assert tensors[f"{KOHYA_Q}.lora_up.weight"].shape == (8, 3)
    assert tensors[f"{KOHYA_Q}.alpha"].shape == () and tensors[f"{KOHYA_Q}.alpha"] == 6.0
    assert safetensors.read_metadata(path) == {"format": "pt", "fewstep.contract": CONTRACT}


def test_half_precision_stays(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in make().items()}
    for style in ("diffusers", "kohya"):
        save_lora(tmp_path / "a", state, rank=3, alpha=3.0, contract_json=None, style=style)
        found = load_lora(tmp_path / "a").state
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert {value.dtype for value in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("style", ["diffusers", "kohya"])
def test_ranks_and_alphas_of_every_layer_are_brought_to_one(tmp_path: Path, style: str) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors, expected, pattern = {}, {}, {}
    for (name, (out, *inputs)), rank, alpha in zip(
        LAYERS.items(), [1, 2, 4, 4, 3, 4, 2, 1], [1.0, 2.0, 4.0, 8.0, 0.5, 4.0, 4.0, 4.0], strict=True
    ):
        a = torch.randn(rank, *inputs, generator=generator)
        b = torch.randn(out, rank, *(1 for _ in inputs[1:]), generator=generator)
        expected[name] = alpha / rank * b.flatten(1) @ a.flatten(1)
        if style == "kohya":
            base = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{base}.lora_down.weight": a, f"{base}.lora_up.weight": b}
            tensors[f"{base}.alpha"] = torch.tensor(alpha)
        else:
            tensors |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
            pattern[f"^{name}" if rank == 2 else name] = alpha
    config = {"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": pattern}
    header = {"lora_adapter_metadata": json.dumps(config)} if style == "diffusers" else None
    safetensors.save_torch(tmp_path / "a", tensors, header)
    file = load_lora(tmp_path / "a")
    assert {len(value) for name, value in file.state.items() if ".lora_A." in name} == {4} == {file.rank}
    assert file.state[f"{Q}.lora_A.weight"].shape == (4, 6)
    found = deltas(file)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (f"{OUT}.lora_A.weight", f"{OUT}.lora_B.weight"),
        (f"unet.{OUT}.lora_A.weight", f"unet.{OUT}.lora_B.weight"),
        (f"base_model.model.{OUT}.lora_A.weight", f"base_model.model.{OUT}.lora_B.weight"),
        (f"unet.{OUT}.lora.down.weight", f"unet.{OUT}.lora.up.weight"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
        ),
        (
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
            "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
        ),
    ],
    ids=["peft", "diffusers", "peft saved", "diffusers before peft", "its first names", "kohya"],
)
def test_files_of_other_tools_without_alpha(tmp_path: Path, a: str, b: str) -> None:
    """Alpha is the rank where nobody says otherwise."""
    down, up = torch.randn(3, 8), torch.randn(8, 3)
    safetensors.save_torch(tmp_path / "a", {a: down, b: up})
    file = load_lora(tmp_path / "a")
    assert (file.rank, file.alpha, file.contract_json) == (3, 3.0, None)
    assert file.state.keys() == {f"{OUT}.lora_A.weight", f"{OUT}.lora_B.weight"}
    assert torch.equal(file.state[f"{OUT}.lora_A.weight"], down)
    assert torch.equal(file.state[f"{OUT}.lora_B.weight"], up)


def test_layers_of_sdxl_may_have_their_authors_names(tmp_path: Path) -> None:
    layers = {
        "input_blocks_4_1_proj_out": "down_blocks.1.attentions.0.proj_out",
        "input_blocks_8_0_in_layers_2": "down_blocks.2.resnets.1.conv1",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "output_blocks_3_0_skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
    }
    tensors = {}
    for name in layers:
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(2, 4)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(4, 2)
    safetensors.save_torch(tmp_path / "a", tensors)
    state = load_lora(tmp_path / "a").state
    assert len(state) == 2 * len(layers)
    for theirs, ours in layers.items():
        assert torch.equal(state[f"{ours}.lora_A.weight"], tensors[f"lora_unet_{theirs}.lora_down.weight"])


def test_rank_stabilised_scale(tmp_path: Path) -> None:
    """alpha / sqrt(rank) in place of alpha / rank (Kalajdzievski 2023, 2312.03732)."""
    state = make(rank=4, layers={Q: (8, 6)})
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 6, "use_rslora": True})}
    safetensors.save_torch(tmp_path / "a", state, header)
    file = load_lora(tmp_path / "a")
    assert file.alpha / file.rank == pytest.approx(6 / 4**0.5)


def header(**changes: Any) -> Callable[[dict, dict], object]:
    def change(_tensors: dict, texts: dict) -> None:
        config = json.loads(texts["lora_adapter_metadata"]) | {f"unet.{k}": v for k, v in changes.items()}
        texts["lora_adapter_metadata"] = json.dumps(config)

    return change


def tensors(style: str = "diffusers", **changes: Any) -> Callable[[dict, dict], object]:
    def change(found: dict, _texts: dict) -> None:
        base = f"unet.{Q}" if style == "diffusers" else KOHYA_Q
        for name, value in changes.items():
            key = f"{base}.{name.replace('__', '.')}"
            found[key] = value
            if value is None:
                del found[key]

    return change


@pytest.mark.parametrize(
    ("style", "change", "told"),
    [
        ("diffusers", lambda found, texts: found.clear(), "it is empty"),
        ("diffusers", tensors(lora_A__weight=None), "only one of the two"),
        ("diffusers", tensors(lora_A__weight=torch.zeros(2, 6)), "do not multiply"),
        ("diffusers", tensors(lora_A__weight=torch.zeros(3)), "do not multiply"),
        (
            "diffusers",
            tensors(lora_A__weight=torch.zeros(0, 6), lora_B__weight=torch.zeros(8, 0)),
            "multiply",
        ),
        ("diffusers", tensors(lora_magnitude_vector=torch.zeros(8)), "lora_magnitude_vector"),
        ("diffusers", tensors(weight=torch.zeros(8, 6)), "to_q.weight"),
        (
            "diffusers",
            lambda found, texts: found.update(
                {f"text_encoder.a.lora_{side}.weight": torch.zeros(3, 3) for side in "AB"}
            ),
            "text_encoder",
        ),
        ("diffusers", lambda found, texts: texts.update(lora_adapter_metadata="["), "lora_adapter_metadata"),
        ("diffusers", lambda found, texts: texts.update(lora_adapter_metadata="[" * 9999), "Recursion"),
        (
            "diffusers",
            lambda found, texts: texts.update(lora_adapter_metadata="{}"),
            "KeyError: 'lora_alpha'",
        ),
        ("diffusers", header(lora_alpha=None), "TypeError"),
        ("diffusers", header(lora_alpha="many"), "could not convert"),
        ("diffusers", header(lora_alpha=0), "is 0.0"),
        ("diffusers", header(lora_alpha=float("nan")), "is nan"),
        ("diffusers", header(lora_alpha=float("inf")), "is inf"),
        ("diffusers", header(alpha_pattern={"(a+)+$": 3}), "alpha_pattern"),
        ("diffusers", header(alpha_pattern=[3]), "alpha_pattern|AttributeError"),
        ("kohya", tensors("kohya", lora_down__weight=None), "only one of the two"),
        ("kohya", tensors("kohya", lora_up__weight=None), "only one of the two"),
        ("kohya", tensors("kohya", lora_up__weight=torch.zeros(8, 2)), "do not multiply"),
        ("kohya", tensors("kohya", lora_mid__weight=torch.zeros(3, 3, 3, 3)), "lora_mid"),
        ("kohya", tensors("kohya", hada_w1_a=torch.zeros(3, 3)), "hada_w1_a"),
        ("kohya", tensors("kohya", dora_scale=torch.zeros(8)), "dora_scale"),
        ("kohya", tensors("kohya", alpha=torch.tensor(-1.0)), "is -1.0"),
        ("kohya", tensors("kohya", alpha=torch.ones(2)), "not one number"),
        (
            "kohya",  # one layer under names of both kinds
            lambda found, texts: found.update(
                {
                    f"lora_unet_input_blocks_1_1_proj_in.lora_{s}.weight": torch.zeros(3, 3)
                    for s in ("down", "up")
                }
            ),
            "are the same tensor",
        ),
        (
            "kohya",
            lambda found, texts: found.update({"lora_te_a.lora_down.weight": torch.zeros(3, 3)}),
            "text_encoder layer 'a'",
        ),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    tmp_path: Path, style: Any, change: Callable[[dict, dict], object], told: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    save_lora(path, make(), rank=3, alpha=3.0, contract_json=None, style=style)
    found, texts = safetensors.load_torch(path), safetensors.read_metadata(path)
    change(found, texts)
    safetensors.save_torch(path, found, texts)
    with pytest.raises(CheckpointError, match=told) as error:
        load_lora(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and "give a plain LoRA" in message


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    state = make(rank=1, layers={f"layers.{number}": (2, 2) for number in range(100)})
    state |= make(rank=5000, layers={"large": (1, 1)})
    safetensors.save_torch(tmp_path / "a", state)
    with pytest.raises(CheckpointError, match="largest is 5000"):
        load_lora(tmp_path / "a")


def test_pickles_broken_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="pickle"):
        load_lora(path)
    save_lora(path, make(), rank=3, alpha=3.0, contract_json=None)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=str(path)):
        load_lora(path)
    with pytest.raises(NotFoundError):
        load_lora(tmp_path / "none.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        save_lora(tmp_path / "folder", make(), rank=3, alpha=3.0, contract_json=None)


def test_names_that_kohya_keys_would_lose_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for layers in ({"hidden_1": (4, 4)}, {"a.b": (4, 4), "a_b": (4, 4)}):
        state = make(layers=layers)
        with pytest.raises(UsageError, match="use the style diffusers"):
            save_lora(path, state, rank=3, alpha=3.0, contract_json=None, style="kohya")
        assert not path.exists()
        save_lora(path, state, rank=3, alpha=3.0, contract_json=None)
        assert load_lora(path).state.keys() == state.keys()
        path.unlink()


def test_header_texts_of_ours_are_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"fewstep\.contract"):
        save_lora(
            tmp_path / "a", make(), rank=3, alpha=3.0, contract_json=None, metadata={"fewstep.contract": "{}"}
        )
