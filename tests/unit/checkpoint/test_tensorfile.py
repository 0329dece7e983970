"""Safetensors one tensor at a time: the library's bytes, exact headers, and number types."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import half, tensorfile
from fewstep.checkpoint.half import Oddities
from fewstep.checkpoint.naming import first, shown
from fewstep.checkpoint.tensorfile import Entry, TensorFile
from fewstep.errors import CheckpointError, OutputError

TENSORS = {
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "half": torch.tensor([1.5, float("inf"), float("nan")], dtype=torch.float16),
    "brain": torch.randn(3, 2, 2).bfloat16(),
    "e4": torch.tensor([0.5, -448.0]).to(torch.float8_e4m3fn),
    "e5": torch.tensor([0.5, -57344.0]).to(torch.float8_e5m2),
    "größe": torch.arange(4, dtype=torch.int64),
    "truth": torch.tensor([True, False]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
}


def plan(tensors: dict[str, torch.Tensor]) -> dict[str, Entry]:
    return {name: Entry(half.code_of(value.dtype), tuple(value.shape)) for name, value in tensors.items()}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_bytes_are_those_of_the_library_in_whatever_order_tensors_come(tmp_path: Path) -> None:
    ours, library = tmp_path / "ours.safetensors", tmp_path / "library.safetensors"
    save_file({name: value.contiguous() for name, value in TENSORS.items()}, library, {"note": "größer"})
    for names in (list(TENSORS), list(reversed(TENSORS))):
        tensorfile.write(ours, plan(TENSORS), ((n, TENSORS[n]) for n in names), {"note": "größer"})
        assert ours.read_bytes() == library.read_bytes()


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: value.contiguous() for name, value in TENSORS.items()}, path, {"note": "x"})
    with TensorFile(path) as file:
        assert file.metadata == {"note": "x"}
        assert set(file.entries) == set(TENSORS)
        for name, value in TENSORS.items():
            found = file.read(name)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert bits(found) == bits(value)
        assert torch.equal(file.read("turned", (1, 3)), TENSORS["turned"][1:3])
        assert torch.equal(file.read("brain", (2, 3)), TENSORS["brain"][2:3])


def test_only_one_tensor_is_in_memory_while_a_file_is_written(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def tensors():
        nonlocal most
        for i in range(20):
            value = torch.full((100,), float(i))
            alive.append(weakref.ref(value))
            yield f"t{i}", value
            del value
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    tensorfile.write(tmp_path / "a", {f"t{i}": Entry("F32", (100,)) for i in range(20)}, tensors())
    assert most <= 1
    assert load_file(tmp_path / "a")["t7"][0] == 7


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def tensors():
        yield "a", torch.zeros(2)
        raise CheckpointError("b does not fit")

    with pytest.raises(CheckpointError, match="does not fit"):
        tensorfile.write(tmp_path / "x", {"a": Entry("F32", (2,)), "b": Entry("F32", (2,))}, tensors())
    with pytest.raises(OutputError):
        tensorfile.write(tmp_path, {}, [])
    assert list(tmp_path.iterdir()) == []


def test_float16_that_would_be_infinite_is_refused_and_what_is_infinite_stays() -> None:
    with pytest.raises(CheckpointError, match=r"w: 2 of its values are too large for float16; use bf16"):
        half.cast(torch.tensor([1.0, 7e4, -1e30]), "F16", "w")
    kept = half.cast(torch.tensor([float("inf"), 1.0, float("nan")]), "F16", "w")
    assert torch.isinf(kept[0]) and kept[1] == 1 and torch.isnan(kept[2])
    assert half.cast(torch.tensor([7e4, 1e30]), "BF16", "w").isfinite().all()
    same = torch.ones(2)
    assert half.cast(same, "F32", "w") is same


def test_every_8_bit_float_is_a_float16() -> None:
    for code in ("F8_E4M3", "F8_E5M2"):
        values = torch.arange(256, dtype=torch.uint8).view(half.torch_type(code))
        as_half = half.cast(values, half.target(code, None), "w")
        assert as_half.dtype == torch.float16
        assert torch.equal(as_half.float().nan_to_num(7), values.float().nan_to_num(7))


@pytest.mark.parametrize(
    ("code", "precision", "wanted"),
    [
        ("F32", None, "F32"),
        ("F32", "fp16", "F16"),
        ("BF16", "fp32", "F32"),
        ("F64", "bf16", "BF16"),
        ("I64", "fp16", "I64"),
        ("F8_E5M2", "fp32", "F32"),
        ("F8_E4M3", None, "F16"),
    ],
)
def test_types_that_tensors_are_written_in(code: str, precision: half.Precision | None, wanted: str) -> None:
    assert half.target(code, precision) == wanted


def test_factors_of_8_bit_floats_are_recognised_and_other_quantisations_refused() -> None:
    shapes: dict[str, tuple[int, ...]] = {"a.weight": (4, 4), "a.scale_weight": (), "a.scale_input": (1,)}
    assert half.scales(shapes | {"scaled_fp8": (2,)}) == {"a.weight": "a.scale_weight"}
    assert [name for name in shapes if half.is_scale(name)] == ["a.scale_weight", "a.scale_input"]
    assert half.is_scale("model.diffusion_model.scaled_fp8") and not half.is_scale("logit_scale")
    for name in (
        "a.weight_scale",
        "a.comfy_quant",
        "a.weight.absmax",
        "a.weight.quant_state.bitsandbytes__nf4",
    ):
        with pytest.raises(CheckpointError, match="a quantisation that is not read"):
            half.scales({"a.weight": (4, 4), name: (1,)})
    for wrong in ({"a.scale_weight": ()}, {"a.weight": (4, 4), "a.scale_weight": (4, 1)}):
        with pytest.raises(CheckpointError, match="is not one factor of one weight"):
            half.scales(wrong)


def test_odd_values_are_noticed() -> None:
    odd = Oddities()
    for name, value in {
        "nan": torch.tensor([1.0, float("nan")]),
        "inf": torch.tensor([[1.0, -float("inf")]], dtype=torch.float16),
        "zero": torch.zeros(2, 2),
        "bias": torch.zeros(2),
        "fine": torch.tensor([[0.0, 1.0]]),
        "nan8": torch.tensor([0x7F], dtype=torch.uint8).view(torch.float8_e4m3fn),
        "count": torch.zeros(2, 2, dtype=torch.int64),
        "none": torch.zeros(0, 2),
    }.items():
        odd.look(name, value)
    assert odd.not_finite == ["nan", "inf", "nan8"]
    assert odd.zero == ["zero"]


def test_names_are_shown_on_one_short_printable_line() -> None:
    assert shown("a\nb\x1b[2J") == "a\\x0ab\\x1b[2J"
    assert len(shown("x" * 10**6)) == 80
    assert first([]) == "none"
    assert first([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ..."


def test_a_header_of_another_order_is_read(tmp_path: Path) -> None:
    """Offsets say where a tensor is, not the order of names; nothing need be aligned."""
    header = {
        "b": {"dtype": "F16", "shape": [1], "data_offsets": [1, 3]},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    text = json.dumps(header).encode()
    data = torch.tensor([1.5], dtype=torch.float16).numpy().tobytes()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + data)
    with TensorFile(tmp_path / "x") as file:
        assert file.read("a").tolist() == [7]
        assert file.read("b").tolist() == [1.5]
