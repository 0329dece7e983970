from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fewstep.checkpoint import safetensors
from fewstep.errors import CheckpointError, NotFoundError, OutputError

CANARY: list[str] = []


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return CANARY.append, ("ran",)


def pickles() -> dict[str, bytes]:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    return {
        "zip": zipped.getvalue(),
        **{f"protocol {p}": pickle.dumps(Payload(), protocol=p) for p in (0, 2, 4, 5)},
    }


def test_arrays_come_back_with_types_shapes_and_metadata(tmp_path: Path) -> None:
    tensors = {
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.float64(3.5) * np.ones(()),
        "half": np.ones((1, 2), np.float16),
        "empty": np.zeros((0, 4), np.int64),
    }
    path = tmp_path / "a.safetensors"
    safetensors.save(path, tensors, {"note": "größer"})
    loaded = safetensors.load(path)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], value)
    assert safetensors.read_metadata(path) == {"note": "größer"}
    safetensors.save(path, {})
    assert safetensors.load(path) == {} and safetensors.read_metadata(path) == {}


def test_tensors_of_any_layout_come_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"a": base, "same": base, "view": base[1], "bf16": base.bfloat16(), "scalar": torch.tensor(2.0)}
    path = tmp_path / "a.safetensors"
    safetensors.save_torch(path, tensors)
    loaded = safetensors.load_torch(path)
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
    with pytest.raises(CheckpointError, match="numpy has no such type"):
        safetensors.load(path)


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a.SafeTensors", "a", "a.bin"])
@pytest.mark.parametrize("kind", list(pickles()))
def test_a_pickle_is_refused_under_any_name_and_never_run(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickles()[kind])
    for read in (safetensors.load, safetensors.load_torch, safetensors.read_metadata):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert "fewstep convert --allow-pickle" in str(error.value)
    assert CANARY == []


def header(content: object, length: int | None = None) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        header({}, 2**63),
        header({}, 0),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}) + b"\0" * 8,
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({}) + b"trailing",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    ],
    ids=["empty", "short", "huge", "zero", "cut", "type", "shape", "trailing", "png"],
)
def test_a_broken_file_is_a_checkpoint_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        safetensors.load(path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="check the path"):
        safetensors.load(tmp_path / "none.safetensors")
    with pytest.raises(NotFoundError):
        safetensors.sha256_file(tmp_path / "none")


def test_t03_a_serialiser_that_fails_midway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.numpy as library

    def half(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise library_error("No space left on device")

    library_error = __import__("safetensors").SafetensorError
    monkeypatch.setattr(library, "save_file", half)
    with pytest.raises(OutputError, match="No space left"):
        safetensors.save(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_hash_is_that_of_its_sorted_list(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"unet")
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / ".a.bin.tmp-1-00000000").mkdir()
    (tmp_path / ".a.bin.tmp-1-00000000" / "b.bin").write_bytes(b"b")
    sha = lambda data: hashlib.sha256(data).hexdigest()  # noqa: E731
    expected = sha(f"{sha(b'a')}  a.bin\n{sha(b'unet')}  unet/model.safetensors\n".encode())
    assert safetensors.folder_hash(tmp_path) == expected
    (tmp_path / "a.bin").write_bytes(b"A")
    assert safetensors.folder_hash(tmp_path) != expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no weight files"):
        safetensors.folder_hash(tmp_path / "empty")
