"""``convert`` of adapters to other names, and sampling contracts that travel with converted models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_files as tiny
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import read_adapter
from fewstep.checkpoint.adapters.deltas import tensors as pieces
from fewstep.checkpoint.conversion import Options, convert
from fewstep.cli.convert import _scheduler
from fewstep.diffusion.contract import SamplingContract
from fewstep.errors import CheckpointError, OutputError, UsageError

LAYERS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768),
    "lora_unet_up_blocks_1_attentions_0_proj_in": (64, 32),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (16, 16),
}
CONTRACT = SamplingContract(
    base_family="sd15",
    method="lightning",
    solver="euler",
    num_inference_steps=4,
    allowed_steps=(4,),
    guidance="off",
    guidance_scale=1.0,
    native_sizes=((512, 512),),
)


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made: dict[str, torch.Tensor] = {}
    for number, (layer, (out, into)) in enumerate(LAYERS.items()):
        made[f"{layer}.lora_down.weight"] = torch.randn(4 + number, into, dtype=torch.float16)
        made[f"{layer}.lora_up.weight"] = torch.randn(out, 4 + number, dtype=torch.float16)
        made[f"{layer}.alpha"] = torch.tensor(2.0 + number, dtype=torch.float16)
    save_file(made, tmp_path / "ink.safetensors", {"ss_output_name": "ink", "sshs_model_hash": "0" * 64})
    return tmp_path / "ink.safetensors"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("middle", ["diffusers", "kohya-compvis"])
def test_C02_names_there_and_back_change_no_bit(kohya: Path, middle: Any, tmp_path: Path) -> None:
    notes = convert(kohya, tmp_path / "there.safetensors", Options(names=middle))
    assert notes == [f"3 layers of text_encoder and unet, kohya to {middle}"]
    assert not load_file(kohya).keys() & load_file(tmp_path / "there.safetensors").keys() - {
        name for name in load_file(kohya) if name.startswith("lora_te") or middle == "diffusers"
    }
    convert(tmp_path / "there.safetensors", tmp_path / "back.safetensors", Options(names="kohya"))
    assert same(load_file(kohya), load_file(tmp_path / "back.safetensors"))
    header = safetensors.read_metadata(tmp_path / "back.safetensors")
    assert header["ss_output_name"] == "ink" and "sshs_model_hash" not in header  # true of one file only


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_types(kohya: Path, dtype: Any, tmp_path: Path) -> None:
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    convert(kohya, tmp_path / "out.safetensors", Options(names="diffusers", dtype=dtype))
    before, after = read_adapter(kohya), read_adapter(tmp_path / "out.safetensors")
    for part, layers in before.parts.items():
        for layer, delta in layers.items():
            other = dict(pieces(after.parts[part][layer]))
            assert after.parts[part][layer].alpha == delta.alpha  # type: ignore[union-attr]
            for name, value in pieces(delta):
                assert other[name].dtype == wanted and torch.equal(other[name], value.to(wanted))


def test_pefts_own_file_takes_its_alpha_from_the_file_beside_it(tmp_path: Path) -> None:
    layer = "base_model.model.down_blocks.0.attentions.0.proj_in"
    made = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
    save_file(made, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))
    convert(tmp_path / "adapter_model.safetensors", tmp_path / "out.safetensors", Options(names="kohya"))
    found = load_file(tmp_path / "out.safetensors")
    assert float(found["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"]) == 5


def test_what_has_no_such_names_is_refused_and_nothing_is_written(kohya: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], message: str, source: Path, options: Options, out: str) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(error, match=message):
            convert(source, tmp_path / out, options)
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    names = Options(names="diffusers")
    refused(UsageError, "only a safetensors file of an adapter gets other names", kohya, names, "folder")
    refused(OutputError, "exists already", kohya, names, "ink.safetensors")
    refused(UsageError, "--base has no meaning", kohya, Options(names="kohya", base=kohya), "o.safetensors")
    unet = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    refused(CheckpointError, "it is no adapter", unet, names, "o.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x04" + bytes(50))
    refused(UsageError, "only a safetensors file", tmp_path / "x.ckpt", names, "o.safetensors")
    made = load_file(kohya)
    save_file({**made, "what.is.this": torch.zeros(1)}, tmp_path / "more.safetensors")
    refused(UsageError, "have no meaning here", tmp_path / "more.safetensors", names, "o.safetensors")
    layer = next(iter(LAYERS))
    save_file({**made, f"{layer}.lora_up.weight": torch.full((320, 4), 1e6)}, tmp_path / "big.safetensors")
    half = Options(names="kohya", dtype="fp16")
    refused(CheckpointError, "too large for float16", tmp_path / "big.safetensors", half, "o.safetensors")


def test_a_contract_goes_with_a_model_there_and_back(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "sd1.safetensors", "sd1")
    convert(source, tmp_path / "folder", Options())
    (tmp_path / "folder" / "fewstep.json").write_text(CONTRACT.to_json())
    convert(tmp_path / "folder", tmp_path / "file.safetensors", Options(dtype="fp16"))
    header = safetensors.read_metadata(tmp_path / "file.safetensors")
    assert header["fewstep.contract"] == CONTRACT.to_json()
    convert(tmp_path / "file.safetensors", tmp_path / "again", Options(scheduler=_scheduler))
    assert (tmp_path / "again" / "fewstep.json").read_text() == CONTRACT.to_json()
    scheduler = json.loads((tmp_path / "again" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "EulerDiscreteScheduler"
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert scheduler["timestep_spacing"] == "trailing"


@pytest.mark.parametrize("text", ["{", '{"solver": "of mine"}', "[" * 100_000])
def test_a_contract_that_is_broken_is_left_out_and_said(text: str, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "sd1.safetensors", "sd1")
    save_file(load_file(source), tmp_path / "broken.safetensors", {"fewstep.contract": text})
    notes = convert(tmp_path / "broken.safetensors", tmp_path / "folder", Options(scheduler=_scheduler))
    assert any("its sampling contract is left out" in note for note in notes)
    assert not (tmp_path / "folder" / "fewstep.json").exists()
    (tmp_path / "folder" / "fewstep.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"fewstep\.json: cannot be read"):
        convert(tmp_path / "folder", tmp_path / "out.safetensors", Options())


def test_one_tensor_is_in_memory_while_a_folder_becomes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a fused tensor needs its members at once: three of OpenCLIP's projections."""
    import weakref

    from fewstep.checkpoint.tensorfile import TensorFile

    source = tiny.save(tmp_path / "sdxl.safetensors", "sdxl")
    convert(source, tmp_path / "folder", Options())
    living: set[int] = set()
    most = 0
    real = TensorFile.read

    def read(self: Any, name: str, rows: Any = None) -> torch.Tensor:
        nonlocal most
        value = real(self, name, rows)
        key = id(value)
        living.add(key)
        weakref.finalize(value, living.discard, key)
        most = max(most, len(living))
        return value

    monkeypatch.setattr(TensorFile, "read", read)
    convert(tmp_path / "folder", tmp_path / "back.safetensors", Options(dtype="fp16"))
    assert 1 <= most <= 4
