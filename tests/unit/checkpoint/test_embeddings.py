"""Embedding files: every form that tools write, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.checkpoint.embeddings import ANY, read_header, read_vectors
from fewstep.cli.main import main
from fewstep.errors import CheckpointError, NotFoundError

TABLE = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("tensors", "token", "slots"),
    [
        ({"emb_params": TABLE}, None, {ANY: (3, 4)}),
        ({"<toy>": TABLE}, "<toy>", {ANY: (3, 4)}),
        ({"toy": TABLE[0].clone()}, "toy", {ANY: (1, 4)}),
        ({"string_to_param.*": TABLE}, None, {ANY: (3, 4)}),
        ({"string_to_param.toy": TABLE, "string_to_token.toy": torch.tensor(3)}, "toy", {ANY: (3, 4)}),
        ({"clip_l": TABLE, "clip_g": torch.ones(2, 6)}, None, {"clip_l": (3, 4), "clip_g": (2, 6)}),
        ({"clip_g": torch.ones(2, 6)}, None, {"clip_g": (2, 6)}),
    ],
)
def test_forms(
    tensors: dict[str, torch.Tensor], token: str | None, slots: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert header.token == token
    assert {slot: (one.vectors, one.width) for slot, one in header.tables.items()} == slots
    found = read_vectors(tmp_path / "a.safetensors", header)
    assert {slot: value.shape for slot, value in found.items()} == slots
    assert all(value.dtype == np.float32 for value in found.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_of_every_float_type(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"emb_params": TABLE.to(dtype)}, tmp_path / "a.safetensors")
    found = read_vectors(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(found[ANY], TABLE.numpy())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": TABLE, "b": TABLE.clone()}, "no embedding; 2 tensors, the first: a, b"),
        ({"emb_params": TABLE[None]}, r"emb_params is F32 of shape \[1, 3, 4\]"),
        ({"emb_params": TABLE.to(torch.int64)}, "emb_params is I64"),
        ({"emb_params": torch.ones(0, 4)}, r"of shape \[0, 4\]"),
        ({"emb_params": torch.ones(1025, 1)}, r"of shape \[1025, 1\]"),
        ({"toy": torch.tensor(1.0)}, r"toy is F32 of shape \[\]"),
        ({"string_to_param.a": TABLE, "string_to_param.b": TABLE + 1}, "vectors for 2 words"),
    ],
)
def test_what_is_no_embedding_is_refused(
    tensors: dict[str, torch.Tensor], message: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    save_file({"emb_params": torch.full((1, 4), value)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        read_vectors(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"))


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    save_file({"emb_params": TABLE}, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    save_file({"emb_params": torch.ones(2, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="was changed"):
        read_vectors(tmp_path / "a.safetensors", header)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["toy.pt", "toy.bin", "toy.safetensors"])
def test_A03_a_pickle_is_refused_with_what_converts_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save({"string_to_param": {"*": TABLE}}, path)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    said = f"fewstep convert {path} --allow-pickle --out {tmp_path / 'toy.safetensors'}"
    assert said in str(caught.value)


@pytest.mark.slow
def test_A03_convert_makes_an_embedding_of_it(tmp_path: Path) -> None:
    source, out = tmp_path / "toy.pt", tmp_path / "toy.safetensors"
    made = {"string_to_token": {"*": 265}, "string_to_param": {"*": TABLE}, "name": "toy", "step": 500}
    torch.save(made, source)
    assert main(["convert", str(source), "--allow-pickle", "--out", str(out), "--quiet"]) == 0
    header = read_header(out)
    assert header.token is None
    np.testing.assert_array_equal(read_vectors(out, header)[ANY], TABLE.numpy())
