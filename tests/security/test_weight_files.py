"""Headers, names and numbers of weight files that lie (A05 to A09): an error in one line, at little cost."""

from __future__ import annotations

import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny

from fewstep.checkpoint import safetensors, single_file, tensorfile
from fewstep.checkpoint.tensorfile import Entry, TensorFile
from fewstep.cli.main import main
from fewstep.errors import CheckpointError, FewstepError


def header(content: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


BROKEN = {
    "longer than the file": header({"a": tensor(0, 4)}, b"1234", length=10**6),
    "length 2**63": header({"a": tensor(0, 4)}, b"1234", length=2**63),
    "no header": header(b"", b""),
    "not UTF-8": header(b'{"\xff\xfe": 1}'),
    "not JSON": header(b"{abc}"),
    "a list": header(b"{[]}"),
    "deep": header(b'{"a":' + b"[" * 50_000),
    "duplicate": header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
    "overlap": header({"a": tensor(0, 4), "b": tensor(2, 6)}, b"123456"),
    "same bytes twice": header({"a": tensor(0, 4), "b": tensor(0, 4)}, b"1234"),
    "hole": header({"a": tensor(0, 2), "b": tensor(4, 6)}, b"123456"),
    "trailing": header({"a": tensor(0, 4)}, b"12345"),
    "too short": header({"a": tensor(0, 4)}, b"123"),
    "size of another shape": header({"a": tensor(0, 4, [5])}, b"1234"),
    "overflow": header({"a": tensor(0, 4, [2**62, 2**62])}, b"1234"),
    "overflow to fit": header({"a": tensor(0, 0, [2**32, 2**32])}),
    "negative": header({"a": tensor(0, 4, [-4])}, b"1234"),
    "negative offset": header({"a": {**tensor(0, 4), "data_offsets": [-4, 0]}}, b"1234"),
    "fraction": header({"a": tensor(0, 4, [4.0])}, b"1234"),  # type: ignore[list-item]
    "truth value": header({"a": tensor(0, 1, [True])}, b"1"),  # type: ignore[list-item]
    "unknown type": header({"a": tensor(0, 4, dtype="F4096")}, b"1234"),
    "type is a list": header({"a": {**tensor(0, 4), "dtype": ["U8"]}}, b"1234"),
    "no offsets": header({"a": {"dtype": "U8", "shape": [4]}}, b"1234"),
    "metadata of numbers": header({"__metadata__": {"a": 1}, "b": tensor(0, 1)}, b"1"),
    "metadata is a list": header({"__metadata__": [1], "b": tensor(0, 1)}, b"1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_A05_a_header_that_lies_is_an_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(BROKEN[kind])
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        TensorFile(path)
    assert time.perf_counter() - started < 5  # a second on an idle machine
    assert psutil.Process().memory_info().rss - before < 50 * 2**20
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


def test_A05_a_header_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for length in (tensorfile.MAX_HEADER + 1, 150_000_000):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", length) + b"{")
            file.truncate(length + 100)  # sparse
        before = psutil.Process().memory_info().rss
        said = "more than the 32000000 that are read" if length < 100_000_000 else "broken header"
        with pytest.raises(CheckpointError, match=said):
            TensorFile(path)
        assert psutil.Process().memory_info().rss - before < 50 * 2**20


def test_A05_the_library_refuses_what_we_refuse(tmp_path: Path) -> None:
    """Two readers of one format must not see two files in one: what ours takes, the library takes alike."""
    path = tmp_path / "model.safetensors"
    for kind, data in BROKEN.items():
        path.write_bytes(data)
        if kind in ("duplicate", "no offsets"):
            continue
        with pytest.raises(FewstepError):
            safetensors.load(path)
            pytest.fail(kind)


def test_A06_mutated_single_files_raise_only_our_errors(tmp_path: Path) -> None:
    import random

    source = tiny.save(tmp_path / "good.safetensors", "sd1", only=["unet"])
    good, rng = source.read_bytes(), random.Random(0)
    length = int.from_bytes(good[:8], "little") + 8
    path = tmp_path / "bad.safetensors"
    refused = 0
    for _ in range(60):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(length)
            data[place : place + rng.randrange(2)] = bytes([rng.randrange(256)])
        path.write_bytes(data)
        try:
            with single_file.open_file(path) as reader:
                for name in reader.detected.parts:
                    reader.part(name)
        except FewstepError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 30


@pytest.mark.parametrize("where", [0.0, 0.01, 0.2, 0.5, 0.9, 0.99999])
def test_A07_a_cut_download_is_refused(where: float, tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "whole.safetensors", "sd1", only=["unet"])
    data = source.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(len(data) * where)])
    with pytest.raises(CheckpointError, match="download"):
        single_file.open_file(tmp_path / "cut.safetensors")


def test_A08_values_that_break_pictures_are_told_when_a_file_is_converted(
    tmp_path: Path, capsys: Any
) -> None:
    source = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    tensors = load_file(source)
    tensors["model.diffusion_model.out.2.bias"][1] = float("inf")
    save_file(tensors, source)
    assert main(["convert", str(source), "--out", str(tmp_path / "unet")]) == 0
    assert "warning: 1 tensors hold values that are not finite" in capsys.readouterr().err


EVIL_NAMES = ("../../escaped", "/escaped", "a\x1b[2J\n\rb", "<script>alert(1)</script>", "x" * 10**6, "")


def test_A09_names_are_never_paths_and_are_shown_escaped(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    entries = {name: Entry("F32", (1,)) for name in EVIL_NAMES}
    metadata = {f"meta{name}"[:200]: name[:200] for name in EVIL_NAMES}
    tensorfile.write(folder / "evil", entries, ((n, torch.ones(1)) for n in EVIL_NAMES), metadata)
    assert main(["convert", str(folder / "evil"), "--out", str(folder / "out")]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 1500
    assert error.strip().isprintable() and "a\\x1b[2J" in error
    # The same names with numbers that are odd: they stand in a remark.
    nan = torch.full((1,), float("nan"))
    tensorfile.write(folder / "odd", entries, ((n, nan) for n in EVIL_NAMES))
    assert main(["convert", str(folder / "odd"), "--out", str(folder / "odd.safetensors")]) == 0
    assert len(capsys.readouterr().err) < 1500
    assert set(load_file(folder / "odd.safetensors")) == set(EVIL_NAMES)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "deep",
        "er",
        "evil",
        "odd",
        "odd.safetensors",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.999999999.0.op.weight",
        "model.diffusion_model.input_blocks.70.0.op.weight",
        "first_stage_model.encoder.down.99999.block.0.conv1.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.500.mlp.fc1.weight",
        "model.diffusion_model.input_blocks." + "9" * 5000 + ".0.op.weight",
    ],
)
def test_A09_numbers_in_names_cost_nothing(name: str, tmp_path: Path) -> None:
    """A layer of number 10**9 is not counted up to."""
    path = tiny.save(tmp_path / "model.safetensors", "sd1")
    save_file(load_file(path) | {name: torch.ones(1)}, path)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"no known network has|have no place"):
        single_file.open_file(path)
    assert time.perf_counter() - started < 10


def test_A09_dimensions_without_values_make_no_network(tmp_path: Path) -> None:
    """(2**40, 0) takes no bytes, and would make a network of 2**40 channels."""
    path = tiny.save(tmp_path / "model.safetensors", "sd1", only=["unet"])
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    with TensorFile(path) as file:
        plan = dict(file.entries) | {name: Entry("F32", (2**40, 0, 3, 3))}
        tensorfile.write(
            tmp_path / "wide.safetensors",
            plan,
            ((n, torch.zeros(plan[n].shape) if n == name else file.read(n)) for n in plan),
        )
    with pytest.raises(CheckpointError, match="have no place"):
        single_file.open_file(tmp_path / "wide.safetensors")
