"""Hostile adapter files: a bounded error in one line, soon, no other file opened and no weight changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import struct
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import check_fits, read_adapter, save_adapter, short_hash
from fewstep.checkpoint.adapters.deltas import MAX_RANK
from fewstep.checkpoint.lora import load_lora
from fewstep.errors import CheckpointError, FewstepError
from fewstep.models.lora_apply import merged, shapes

BASE = "lora_unet_layer"


def good(rank: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{BASE}.lora_down.weight": torch.randn(rank, 6, generator=generator),
        f"{BASE}.lora_up.weight": torch.randn(8, rank, generator=generator),
        f"{BASE}.alpha": torch.tensor(1.0),
    }


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"layer": nn.Linear(6, 8)})


def hashed(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in module.state_dict().values())).hexdigest()


def write(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> Path:
    safetensors.save_torch(path, tensors, header)
    return path


def raw(path: Path, header: bytes, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    return path


def told(path: Path, *, peft_config: str | None = None) -> str:
    """The message of the error that reading or applying the file ends with; the weights are as before."""
    module = network()
    before = hashed(module)
    with pytest.raises(FewstepError) as error:
        merged({"unet": module}, [(read_adapter(path, peft_config=peft_config), 1.0, 1.0)])
    assert hashed(module) == before
    message = str(error.value)
    assert message.isprintable() and len(message) < 1000 and isinstance(error.value, CheckpointError)
    return message


def test_the_good_file_is_good(tmp_path: Path) -> None:
    module = network()
    before = hashed(module)
    with merged({"unet": module}, [(read_adapter(write(tmp_path / "a", good())), 1.0, 1.0)]):
        assert hashed(module) != before


def test_A14_a_rank_of_a_million(tmp_path: Path) -> None:
    tensors = {
        f"{BASE}.lora_down.weight": torch.zeros(10**6, 6, dtype=torch.float16),
        f"{BASE}.lora_up.weight": torch.zeros(8, 10**6, dtype=torch.float16),
    }
    message = told(write(tmp_path / "a", tensors))
    assert "its rank is 1000000, above" in message and str(MAX_RANK) in message


def test_A14_a_small_file_that_would_multiply_out_to_terabytes(tmp_path: Path) -> None:
    """Its product has 10^12 numbers; the shape is compared before anything is multiplied."""
    many = 10**6
    files = {
        "lora": {"lora_down.weight": torch.zeros(1, many), "lora_up.weight": torch.zeros(many, 1)},
        "loha": {
            **{f"hada_w{n}_a": torch.zeros(many, 1) for n in (1, 2)},
            **{f"hada_w{n}_b": torch.zeros(1, many) for n in (1, 2)},
        },
        "lokr": {"lokr_w1": torch.zeros(1000, 1000), "lokr_w2": torch.zeros(1000, 1000)},
    }
    for name, tensors in files.items():
        path = write(tmp_path / name, {f"{BASE}.{key}": value for key, value in tensors.items()})
        started = time.perf_counter()
        assert "weights of (1000000, 1000000), the base's is (8, 6)" in told(path)
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("value", [float("nan"), 0.0, -0.0, -1.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("entry", ["alpha", "scale", "header", "adapter_config.json"])
def test_A14_alpha_is_a_positive_number(tmp_path: Path, entry: str, value: float) -> None:
    tensors, header, config = good(), {}, None
    if entry in ("alpha", "scale"):
        tensors[f"{BASE}.{entry}"] = torch.tensor(value)
    else:
        del tensors[f"{BASE}.alpha"]
        text = json.dumps({"r": 2, "lora_alpha": value})
        header, config = ({"lora_adapter_metadata": text}, None) if entry == "header" else ({}, text)
    assert f"is {value}" in told(write(tmp_path / "a", tensors, header), peft_config=config)


def test_A14_duplicate_names(tmp_path: Path) -> None:
    tensors = good() | {f"unet.layer.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    assert "are the same tensor" in told(write(tmp_path / "a", tensors))
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    name = f'"{BASE}.alpha"'.encode()
    header = b"{" + name + b":" + entry + b"," + name + b":" + entry + b"}"
    told(raw(tmp_path / "b", header, b"\0" * 4))


def test_A14_unknown_keys_and_the_wrong_base(tmp_path: Path) -> None:
    message = told(write(tmp_path / "a", good() | {f"{BASE}.what": torch.zeros(1)}))
    assert "nobody knows what 'lora_unet_layer.what' is" in message
    other = {name.replace("layer", "other"): value for name, value in good().items()}
    assert "has no layer 'other'" in told(write(tmp_path / "b", good() | other))
    wide = {f"{BASE}.lora_down.weight": torch.zeros(2, 7), f"{BASE}.lora_up.weight": torch.zeros(8, 2)}
    assert "weights of (8, 7), the base's is (8, 6)" in told(write(tmp_path / "c", wide))
    attention = "lora_unet_layer_attn2_to_k"
    sdxl = {
        f"{attention}.lora_down.weight": torch.zeros(1, 2048),
        f"{attention}.lora_up.weight": torch.zeros(4, 1),
    }
    adapter = read_adapter(write(tmp_path / "d", sdxl))
    base = {"unet": {"layer.attn2.to_k.weight": (4, 768)}}
    assert check_fits(adapter, base)[0] == "it was made for SDXL and the base is SD1"


def test_A08_numbers_that_are_not_finite(tmp_path: Path) -> None:
    for name in ("lora_down.weight", "lora_up.weight"):
        for value in (float("nan"), float("inf")):
            tensors = good()
            tensors[f"{BASE}.{name}"][1, 1] = value
            assert "numbers that are not finite" in told(write(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    "name",
    [
        f"{BASE}\n.alpha",
        f"{BASE}\x1b[31m.alpha",
        f"{BASE}\x00.alpha",
        f"{BASE}\u202e.alpha",
        f"{BASE}\ud7ff.alpha",
        "lora_unet_" + "x" * 10**6 + ".alpha",
    ],
    ids=["newline", "escape", "nul", "right to left", "unassigned", "a million letters"],
)
def test_A09_names_that_are_no_names_of_layers(tmp_path: Path, name: str) -> None:
    message = told(write(tmp_path / "a", good() | {name: torch.tensor(1.0)}))
    assert "it has a tensor called" in message and message.isascii()


@pytest.mark.parametrize(
    "name", ["../../etc/x", "..\\x", "/abs", "C:\\x", "<script>alert(1)</script>", "x" * 499, "{0}%s"]
)
def test_A09_names_are_never_paths_and_are_shown_quoted(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a", good() | {name: torch.zeros(1)})
    assert read_adapter(path).unmatched == (name,)
    message = told(path)
    assert ascii(name[:40])[1:-1] in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_A09_texts_of_the_header(tmp_path: Path) -> None:
    header = {"a\nb": "x", "long": "x" * 2_000_000, "x" * 1000: "y", "html": "<b>", "ssmd_cover_images": "[]"}
    assert read_adapter(write(tmp_path / "a", good(), header)).metadata == {"html": "<b>"}
    long = {"fewstep.contract": "x" * 1_000_001}
    assert "fewstep.contract has 1000001 characters" in told(write(tmp_path / "b", good(), long))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        "[]",
        "null",
        '{"lora_alpha": 2, "x": "' + "x" * 1_000_000 + '"}',
        '{"lora_alpha": []}',
        '{"lora_alpha": "1e999999999"}',
        '{"lora_alpha": ' + "9" * 5000 + "}",
        '{"lora_alpha": 1, "alpha_pattern": {"(a+)+$": 1}}',
        '{"lora_alpha": 1, "alpha_pattern": [1]}',
        '{"lora_alpha": 1, "alpha_pattern": {"layer": null}}',
        '{"lora_alpha": 1, "alpha_pattern": {"layer": NaN}}',
        '{"lora_alpha": 1, "alpha_pattern": {"layer": 0}}',
    ],
)
def test_A14_configurations_that_cannot_be_used(tmp_path: Path, text: str) -> None:
    tensors = good()
    del tensors[f"{BASE}.alpha"]
    path = write(tmp_path / "a", tensors, {"lora_adapter_metadata": text})
    message = told(path)
    assert "lora_adapter_metadata cannot be used" in message or "alpha is" in message
    assert told(write(tmp_path / "b", tensors), peft_config=text)


def test_many_patterns_and_many_layers_are_no_trouble(tmp_path: Path) -> None:
    pattern = {f"p{number}.{number}": 1.0 for number in range(30_000)}
    text = json.dumps({"lora_alpha": 1, "alpha_pattern": pattern})
    tensors = {f"unet.l{n}.m.lora_{side}.weight": torch.zeros(1, 1) for n in range(1000) for side in "AB"}
    path = write(tmp_path / "a", tensors, {"lora_adapter_metadata": text})
    started = time.perf_counter()
    assert len(read_adapter(path).parts["unet"]) == 1000
    assert time.perf_counter() - started < 10


def test_names_that_make_patterns_slow_are_no_trouble(tmp_path: Path) -> None:
    names = [
        "lora_unet_" + "a_" * 240,
        ".lora_A" * 70 + ".weight",
        "x.lora" * 80 + "_lora.down.weight",
        "." * 499,
    ]
    started = time.perf_counter()
    for name in names:
        path = write(tmp_path / "a", good() | {name: torch.zeros(1)})
        with contextlib.suppress(CheckpointError):
            read_adapter(path)
    assert time.perf_counter() - started < 5


def test_A01_a_pickle_under_the_name_of_an_adapter(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(canary),))

    for name in ("a.safetensors", "a.pt"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps({"lora_unet_x.alpha": Evil()}))
        assert "pickle" in told(path)
        with pytest.raises(CheckpointError, match="pickle"):
            load_lora(path)
        with pytest.raises(CheckpointError, match="pickle"):
            short_hash(path)
    assert not canary.exists()


def test_a_full_checkpoint_is_refused_before_its_tensors_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"model.diffusion_model.x.weight": torch.zeros(5_000_000)})
    tracemalloc.start()
    try:
        assert "it is no adapter" in told(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


_OPENED: list[str] = []
_READER: list[int] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and threading.get_ident() in _READER and isinstance(arguments[0], str):
        _OPENED.append(arguments[0])


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Paths that this thread opens through Python; an audit hook stays for good, so it is idle outside."""
    if not hasattr(sys, "_fewstep_audit"):
        sys.addaudithook(_audit)
        sys._fewstep_audit = True  # type: ignore[attr-defined]
    _OPENED.clear()
    _READER.append(threading.get_ident())
    yield _OPENED
    _READER.clear()


def test_no_other_file_is_opened(tmp_path: Path, opened: list[str]) -> None:
    header = {"ss_sd_model_name": "/etc/passwd", "modelspec.thumbnail": "file:///etc/passwd"}
    path = write(tmp_path / "adapter_model.safetensors", good(), header)
    (tmp_path / "adapter_config.json").write_text("{}")
    read_adapter(path)  # modules are imported
    opened.clear()
    read_adapter(path, base=shapes({"unet": network()}))
    assert set(opened) <= {str(path)} and opened


def test_mutated_files_raise_only_our_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a", good(), {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 3}', "k": "v"})
    original, rng = path.read_bytes(), random.Random(0)
    module = network()
    before, read = hashed(module), 0
    for _ in range(150):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 2, 6))):
            place = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place : place + rng.randrange(1, 9)]
                case 2:
                    data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
                case _:
                    data[place : place + 8] = (2 ** rng.randrange(64)).to_bytes(8, "little")
        path.write_bytes(data)
        try:
            adapter = read_adapter(path)
            read += 1
            with merged({"unet": module}, [(adapter, 1.0, 1.0)]):
                pass
            save_adapter(tmp_path / "b", adapter, style="diffusers")
        except FewstepError as error:
            assert str(error).isprintable()
        assert hashed(module) == before
    assert read > 10
