"""``fewstep info`` of weight files: adapters, parts, ancestry, contracts; headers that lie cost little."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters.summary import trained_words
from fewstep.cli.main import main
from fewstep.diffusion.contract import SamplingContract

Output = pytest.CaptureFixture[str]
UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def facts(path: Path, capsys: Output, *options: str) -> dict[str, Any]:
    assert main(["info", str(path), "--json", *options]) == 0
    return dict(json.loads(capsys.readouterr().out))


def zeros(*shape: int, dtype: Any = np.float16) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


def low_rank(width: int, rank: int = 8, layer: str = UNET) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{layer}.lora_down.weight": zeros(rank, width), f"{layer}.lora_up.weight": zeros(320, rank)}


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_lora_tells_ranks_alphas_base_and_words(tmp_path: Path, capsys: Output) -> None:
    tensors = {
        **low_rank(768),
        f"{UNET}.alpha": np.float16(4.0),
        **low_rank(768, 4, TEXT),
        f"{TEXT}.alpha": np.float64(1.5),
        f"{TEXT}.dora_scale": zeros(320, 1),
        "strange.tensor": zeros(1),
    }
    words = {"5_ink": {"ink style": 30, "fox": 7}, "x": {"fox": 1, " fox ": 2, "bad": "no", "worse": -1}}
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_tag_frequency": json.dumps(words),
        "ss_output_name": "ink",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.trigger_phrase": "ink style",
        "author": "x",
    }
    safetensors.save(tmp_path / "ink.safetensors", tensors, metadata)
    found = facts(tmp_path / "ink.safetensors", capsys, "--hash")
    assert found["kind"] == "lora" and found["tensors"] == 8
    assert found["hash"] == safetensors.sha256_file(tmp_path / "ink.safetensors")
    assert found["adapter"] == {
        "style": "kohya",
        "base": "SD1",  # by its widths, whatever the header says
        "layers": {"unet": 1, "text_encoder": 1},
        "kinds": {"lora": 2},
        "ranks": {"8": 1, "4": 1},
        "alphas": {"4": 1, "1.5": 1},
        "dora": 1,
        "unmatched": 1,
        "training": {
            "module": "networks.lora",
            "rank": "8",
            "base_version": "sdxl_base_v1-0",
            "name": "ink",
            "trigger_phrase": "ink style",
        },
        "words": {"ink style": 30, "fox": 10},
    }
    assert found["metadata"] == {"author": "x"}


@pytest.mark.parametrize(("width", "base"), [(768, "SD1"), (1024, "SD2"), (2048, "SDXL")])
def test_the_base_is_told_by_the_width_of_the_text(
    width: int, base: str, tmp_path: Path, capsys: Output
) -> None:
    safetensors.save(tmp_path / "a.safetensors", low_rank(width))
    found = facts(tmp_path / "a.safetensors", capsys)["adapter"]
    assert found["base"] == base and found["alphas"] == {"8": 1}  # no alpha: the rank


def test_alpha_of_pefts_names_stands_in_the_header_and_bfloat16_is_read(
    tmp_path: Path, capsys: Output
) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{layer}.lora_A.weight": zeros(2, 768), f"{layer}.lora_B.weight": zeros(320, 2)}
    config = json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.target_modules": ["to_k"]})
    safetensors.save(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config})
    found = facts(tmp_path / "a.safetensors", capsys)["adapter"]
    assert (found["style"], found["alphas"], found["ranks"]) == ("diffusers", {"6": 1}, {"2": 1})
    entry = {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}
    down = {"dtype": "F16", "shape": [1, 2], "data_offsets": [2, 6]}
    data = struct.pack("<f", 0.75)[2:] + bytes(4)
    raw(tmp_path / "b.safetensors", {f"{UNET}.alpha": entry, f"{UNET}.lora_down.weight": down}, data)
    assert facts(tmp_path / "b.safetensors", capsys)["adapter"]["alphas"] == {"0.75": 1}


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"a": 3}', '{"a": {"b": 1e400}}', "[" * 100_000])
def test_a_list_of_words_of_another_form_gives_none(text: str) -> None:
    assert trained_words({"ss_tag_frequency": text}) == {}


def test_a_model_tells_family_prediction_and_parts(tmp_path: Path, capsys: Output) -> None:
    pytest.importorskip("diffusers")
    sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
    import tiny_files as tiny

    path = tiny.save(tmp_path / "sd1.safetensors", "sd1")
    found = facts(path, capsys)
    assert (found["kind"], found["family"], found["variant"]) == ("checkpoint", "sd1", "text")
    assert (found["prediction_type"], found["prediction_told_by"]) == ("epsilon", "its family")
    assert set(found["parts"]) == {"unet", "vae", "text_encoder"}
    unet = tiny.networks("sd1")["unet"]
    assert found["parts"]["unet"]["parameters"] == sum(value.numel() for value in unet.parameters())
    assert found["parts"]["unet"]["class"] == "UNet2DConditionModel"
    assert sum(part["bytes"] for part in found["parts"].values()) < found["bytes"]
    assert sum(part["parameters"] for part in found["parts"].values()) == found["parameters"]


def test_a_contract_and_a_published_name_are_told(tmp_path: Path, capsys: Output) -> None:
    contract = SamplingContract(
        base_family="sd15",
        method="lightning",
        solver="euler",
        num_inference_steps=4,
        allowed_steps=(2, 4),
        native_sizes=((512, 512),),
    )
    path = tmp_path / "a.safetensors"
    safetensors.save(path, low_rank(768), {"fewstep.contract": contract.to_json()})
    found = facts(path, capsys)
    assert found["contract"]["fewstep.contract"] == json.loads(contract.to_json())
    assert (found["recognised"]["method"], found["recognised"]["steps"]) == ("lightning", [2, 4])
    path = tmp_path / "sdxl_lightning_4step_lora.safetensors"
    safetensors.save(path, low_rank(2048))
    found = facts(path, capsys)["recognised"]
    assert found["method"] == "lightning" and found["steps"] == [4] and "name" in found["by"]


def test_a_merge_tells_its_ancestors(tmp_path: Path, capsys: Output) -> None:
    a, b = "a" * 64, "b" * 64
    recipe = {"type": "webui", "primary_model_hash": a, "secondary_model_hash": b, "multiplier": 0.3,
              "interp_method": "Weighted sum"}  # fmt: skip
    models = {
        a: {"name": "first"},
        b: {"name": "sec\x1b[2Jond", "sd_merge_recipe": {"primary_model_hash": b}},
    }
    metadata = {"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)}
    safetensors.save(tmp_path / "m.safetensors", {"x": zeros(1)}, metadata)
    found = facts(tmp_path / "m.safetensors", capsys)
    assert [one["name"] for one in found["merged_from"]["models"]] == ["first", "sec\x1b[2Jond"]
    assert found["merged_from"]["multiplier"] == 0.3 and "metadata" not in found
    assert main(["info", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "merged_from:\n" in out and f"A: first [{a[:10]}]" in out and "\x1b" not in out


def test_what_is_unknown_is_still_counted(tmp_path: Path, capsys: Output) -> None:
    entry = {"dtype": "U16", "shape": [2], "data_offsets": [0, 4]}
    found = facts(raw(tmp_path / "x.safetensors", {"a": entry}, bytes(4)), capsys)
    assert (found["kind"], found["types"], found["parameters"]) == ("unknown", {"U16": 1}, 2)
    assert "no weight file of a known kind" in found["note"]


def test_hostile_texts_are_shown_on_lines_of_their_own(tmp_path: Path, capsys: Output) -> None:
    texts = {
        "a\x1b[2J\nkind": "checkpoint\nkind: lora\x9b",
        "lone": "\ud800",
        "long": "x" * 2_000_000,
        "fewstep.contract": '{"a": NaN, "b": 1e999, "c": ' + "[" * 5000 + "]" * 5000 + "}",
        "fewstep.deep": "[" * 100_000,
        "ss_tag_frequency": "{" * 100_000,
        "sd_merge_recipe": "[" * 100_000,
    }
    header = json.dumps({"__metadata__": texts, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    path = raw(tmp_path / "x.safetensors", header.encode(), b"1")
    started = time.perf_counter()
    found = facts(path, capsys)
    assert found["metadata"]["lone"] == "\\ud800" and len(found["metadata"]["long"]) < 1000
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert [line for line in out.splitlines() if line.startswith("kind:")] == ["kind: unknown"]
    assert time.perf_counter() - started < 20  # a second on an idle machine


@pytest.mark.parametrize("names", ["short", "long", "kohya"])
def test_a_header_of_many_or_endless_names_is_soon_read(names: str, tmp_path: Path, capsys: Output) -> None:
    count = {"short": 10_000, "long": 20, "kohya": 2_000}[names]
    make = {
        "short": lambda i: f"lora_unet_{i}.lora_down.weight",
        "long": lambda i: f"lora_unet_{'a_' * 100_000}{i}.lora_down.weight",
        "kohya": lambda i: f"lora_unet_{'down_blocks_' * 30}{i}.lora_down.weight",
    }[names]
    header = {make(i): {"dtype": "U8", "shape": [1, 1], "data_offsets": [i, i + 1]} for i in range(count)}
    path = raw(tmp_path / "x.safetensors", header, bytes(count))
    started = time.process_time()
    assert facts(path, capsys)["kind"] == "lora"
    assert time.process_time() - started < 15
