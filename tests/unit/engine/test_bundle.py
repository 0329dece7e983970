import json

import pytest

from fewstep.checkpoint import atomic, bundle
from fewstep.checkpoint.safetensors import folder_hash
from fewstep.errors import CheckpointError, NotFoundError


def change(folder, **changes):
    file = folder / bundle.FILE_NAME
    raw = json.loads(file.read_text())
    raw.update(changes)
    file.write_text(json.dumps(raw))


def test_what_is_written_is_read(ir_bundle):
    read = bundle.open_bundle(ir_bundle, verify=True)
    assert read.name == "hand"
    assert read.native_size == (64, 64)
    assert read.contract["base_family"] == "hand"
    assert read.attribution == ({"author": "nobody", "url": "none"},)
    assert read.hash == folder_hash(ir_bundle)
    before = (ir_bundle / bundle.FILE_NAME).read_bytes()
    bundle.write(read)
    assert (ir_bundle / bundle.FILE_NAME).read_bytes() == before


def test_part_hashes_tell_parts_apart(ir_bundle):
    read = bundle.open_bundle(ir_bundle)
    assert len({read.part_hash(part) for part in bundle.PARTS}) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 3}, "format version 3, this fewstep reads 1 and 2"),
        ({"format_version": 2}, "lacks 'students'"),
        ({"students": []}, "unknown key 'students'"),
        ({"format_version": "1"}, "format version '1'"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"latent_channels": True}, "latent_channels is True"),
        ({"scaling_factor": 0}, "scaling_factor is 0"),
        ({"scaling_factor": "1"}, "scaling_factor"),
        ({"native_size": [64]}, "native_size"),
        ({"text_mask": 1}, "text_mask"),
        ({"contract": []}, "contract"),
        ({"precision": {"denoiser": "int8"}}, "precision"),
        ({"attribution": [{"author": 3}]}, "attribution"),
        ({"files": {}}, "files"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "size": 1}}}, "files"),
        ({"name": ""}, "name"),
        ({"made_by": None}, "made_by"),
    ],
)
def test_a_foreign_or_broken_description_is_refused(ir_bundle, changes, words):
    change(ir_bundle, **changes)
    with pytest.raises(CheckpointError, match="fewstep export") as caught:
        bundle.open_bundle(ir_bundle)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '{"format_version"', "\x00", '{"a": ' + "[" * 100_000]
)
def test_a_file_that_is_no_description_is_refused(ir_bundle, text):
    (ir_bundle / bundle.FILE_NAME).write_text(text)
    with pytest.raises(CheckpointError):
        bundle.open_bundle(ir_bundle)


def test_a_missing_key_is_refused(ir_bundle):
    file = ir_bundle / bundle.FILE_NAME
    raw = json.loads(file.read_text())
    del raw["licence"]
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="lacks 'licence'"):
        bundle.open_bundle(ir_bundle)


def test_a_huge_description_is_not_read(ir_bundle):
    (ir_bundle / bundle.FILE_NAME).write_text(" " * 2_000_000)
    with pytest.raises(CheckpointError, match="too large"):
        bundle.open_bundle(ir_bundle)


def test_missing_cut_and_damaged_files_are_found(ir_bundle):
    weights = ir_bundle / "denoiser.bin"
    data = weights.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    weights.write_bytes(flipped)
    bundle.open_bundle(ir_bundle)  # the size alone cannot show it
    with pytest.raises(CheckpointError, match="recorded hash"):
        bundle.open_bundle(ir_bundle, verify=True)
    weights.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="instead of"):
        bundle.open_bundle(ir_bundle)
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        bundle.open_bundle(ir_bundle)


def test_a_folder_without_description_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=r"no bundle\.json here"):
        bundle.open_bundle(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder"):
        bundle.open_bundle(tmp_path / "none")


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    final = tmp_path / "bundle"
    with pytest.raises(KeyboardInterrupt), atomic.folder(final) as folder:
        (folder / "denoiser.bin").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
