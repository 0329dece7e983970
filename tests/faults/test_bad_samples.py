"""Reliability id T16: bad samples are skipped, counted, listed, and too many of them stop the run."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.image_text import ImageText
from fewstep.data.quality import BadSamples
from fewstep.data.sources.folder import FolderSource
from fewstep.data.sources.table import TableSource
from fewstep.errors import DataError


def png(mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (40, 40)).save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


BAD: dict[str, tuple[bytes | None, bytes | None, str]] = {
    # name: (image, caption, how the reason starts)
    "corrupt.png": (png()[:45] + b"\xff" * 30 + png()[75:], b"a", "damaged or cut off"),
    "cut.jpg": (png(kind="JPEG")[:300], b"a", "damaged or cut off"),
    "zero.png": (b"", b"a", "empty file"),
    "page.jpg": (b"<html>404</html>", b"a", "not an image"),
    "bomb.png": (bomb(), b"a", "too many pixels"),
    "float.tif": (png("F", "TIFF"), b"a", "colour mode F"),
    "uncaptioned.png": (png(), None, "no caption file"),
    "empty.png": (png(), b"", "empty caption"),
    "blank.png": (png(), b" \n\t", "empty caption"),
    "latin.png": (png(), b"caf\xe9", "caption not UTF-8"),
    "folder.png": (None, b"a", "no such file"),  # a link to nothing
}
GOOD = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for name, (image, caption, _) in BAD.items():
        path = root / name
        if image is None:
            path.symlink_to(root / "gone.bin")
        else:
            path.write_bytes(image)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)
    for number in range(GOOD):
        (root / f"good{number}.png").write_bytes(png())
        (root / f"good{number}.txt").write_text(f"number {number}")
    return root


def test_t16_ten_kinds_are_skipped_counted_and_listed(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    data = ImageText(FolderSource(folder), width=8, height=8, limit=0.5, report=report)
    assert len(data) == GOOD and len(BAD) >= 10
    written = json.loads(report.read_text("utf-8"))
    assert (written["total"], written["bad"]) == (GOOD + len(BAD), len(BAD))
    reasons = {sample["sample"]: sample["reason"] for sample in written["samples"]}
    assert set(reasons) == set(BAD)
    for name, (_, _, start) in BAD.items():
        assert reasons[name].startswith(start), (name, reasons[name])
    batch = data.batch(np.arange(GOOD), np.random.default_rng(0))
    assert sorted(batch["captions"]) == sorted(f"number {n}" for n in range(GOOD))


def test_t16_more_than_one_percent_stops_the_run(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with pytest.raises(DataError, match=r"1 of 41 .*1\.00%.*report\.json"):
        ImageText(FolderSource(folder), width=8, height=8, report=report)
    assert json.loads(report.read_text("utf-8"))["bad"] == 1


@pytest.mark.parametrize(
    ("total", "bad", "stops"), [(100, 1, False), (100, 2, True), (99, 1, True), (1000, 10, False)]
)
def test_t16_limit_is_a_fraction_of_the_whole_set(total: int, bad: int, stops: bool) -> None:
    log = BadSamples(total=total)
    for number in range(bad - 1):
        log.add(str(number), "x")
    if stops:
        with pytest.raises(DataError, match=f"{bad} of {total}"):
            log.add("last", "x")
    else:
        log.add("last", "x")
        log.add("last", "met again in the next epoch")
        assert len(log.reasons) == bad


def test_t16_missing_files_and_broken_rows_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    lines = ['{"image": "a.png", "text": "fine"}', '{"image": "gone.png", "text": "x"}', '{"image": ', "[1]"]
    lines += ['{"image": null, "text": "x"}', '{"image": "a.png"}', '{"image": "a\\u0000.png", "text": "x"}']
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = ImageText(TableSource(tmp_path / "t.jsonl"), width=8, height=8, limit=1)
    assert len(data) == 1 and len(data.bad.reasons) == 6


def test_t16_sample_that_goes_bad_during_training_is_replaced_and_counted(folder: Path) -> None:
    for name in BAD:
        (folder / name).unlink()
    source = FolderSource(folder)
    data = ImageText(source, width=8, height=8, limit=0.05)
    first = data.captions(0)[0]
    (folder / source.key(0)).write_bytes(b"rubbish")
    batch = data.batch(np.array([0, 1]), np.random.default_rng(0))
    assert batch["captions"] == [data.captions(1)[0]] * 2 and first not in batch["captions"]
    assert list(data.bad.reasons) == [source.key(0)]
    again = data.batch(np.array([0, 1]), np.random.default_rng(0))
    assert np.array_equal(batch["pixels"], again["pixels"]) and len(data.bad.reasons) == 1
    (folder / source.key(1)).unlink()
    with pytest.raises(DataError, match="limit"):
        data.batch(np.array([1]), np.random.default_rng(0))
