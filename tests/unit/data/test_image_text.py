from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.image_text import Filters, ImageText, cover
from fewstep.data.sources.folder import FolderSource
from fewstep.data.sources.huggingface import HuggingFaceSource
from fewstep.data.sources.sample import Source
from fewstep.data.sources.shards import ShardSource
from fewstep.data.sources.table import TableSource
from fewstep.errors import DataError, UsageError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def picture(colour: str, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    for name, colour in (("a", "red"), ("sub/b", "green"), ("c", "blue")):
        (root / f"{name}.png").write_bytes(picture(colour))
        (root / f"{name}.txt").write_text(f"a {colour}\n square ")
    (root / "a.json").write_text(json.dumps({"aesthetic": 6.5, "pwatermark": 0.1}))
    (root / "c.json").write_text(json.dumps({"aesthetic": 4.0, "pwatermark": 0.9}))
    (root / "notes.md").write_text("not part of the set")
    return root


def shard(path: Path, samples: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def captions(source: Source) -> list[str]:
    data = ImageText(source, width=8, height=8)
    batch = data.batch(np.arange(len(data)), np.random.default_rng(0))
    for text, image in zip(batch["captions"], batch["pixels"], strict=True):
        colour = next(name for name in COLOURS if name in text)
        assert np.allclose(image, np.array(COLOURS[colour])[:, None, None] / 127.5 - 1, atol=1e-6)
    return list(batch["captions"])


def test_folder(folder: Path) -> None:
    assert captions(FolderSource(folder)) == ["a red square", "a blue square", "a green square"]
    before = FolderSource(folder).fingerprint()
    (folder / "a.txt").write_text("something red")
    assert FolderSource(folder).fingerprint() != before


def test_captions_of_a_folder_from_metadata_and_for_all(folder: Path) -> None:
    (folder / "a.txt").unlink()
    (folder / "sub" / "b.txt").write_text(" \n")
    with pytest.raises(DataError, match="no caption file"):
        FolderSource(folder).read(0)
    before = FolderSource(folder).fingerprint()
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "from the list"}\n\n{"file_name": "c.png", "text": "not this"}\n'
    )
    source = FolderSource(folder, caption="for all")
    assert [source.caption(i).strip() for i in range(3)] == ["from the list", "a blue\n square", "for all"]
    assert before != FolderSource(folder).fingerprint() != source.fingerprint()
    for text, says in (("{", "line 1: not JSON"), ('{"file_name": "a.png"}', "no file_name with its text")):
        (folder / "metadata.jsonl").write_text(text)
        with pytest.raises(DataError, match=says):
            FolderSource(folder)


def test_a_fingerprint_of_contents_sees_another_picture_of_the_same_size(folder: Path) -> None:
    before = [FolderSource(folder, read_all=read).fingerprint() for read in (False, True)]
    image = folder / "a.png"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(bytes(content))
    after = [FolderSource(folder, read_all=read).fingerprint() for read in (False, True)]
    assert before[0] == after[0] and before[1] != after[1]


def test_view_cuts_where_it_is_told_and_says_the_size(folder: Path) -> None:
    (folder / "c.png").unlink()
    (folder / "c.txt").unlink()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, :8] = 255
    Image.fromarray(wide).save(folder / "a.png")
    data = ImageText(FolderSource(folder), width=8, height=8, limit=1.0)
    left, size = data.view(0, (0.0, 0.5))
    right, _ = data.view(0, (1.0, 0.5))
    assert size == (24, 8) and left.min() == 255 and right.max() == 0


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_table(folder: Path, kind: str) -> None:
    rows = [("a.png", "a red, square"), ("sub/b.png", "green")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": n, "text": t}) for n, t in rows)
    else:
        mark = "\t" if kind == "tsv" else ","
        text = "\n".join([f"file_name{mark}text", *(f'{n}{mark}"{t}"' for n, t in rows)])
    (folder / f"index.{kind}").write_text(text)
    assert captions(TableSource(folder / f"index.{kind}")) == ["a red, square", "green"]


def test_table_does_not_lead_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture("red"))
    (folder / "index.csv").write_text(
        f"image,caption\n../secret.png,red\n{tmp_path / 'secret.png'},red\na.png,red\n"
    )
    source = TableSource(folder / "index.csv")
    for row in (0, 1):
        with pytest.raises(DataError, match="leads out"):
            source.read(row)
    assert source.read(2).caption == "red"
    assert TableSource(folder / "index.csv", root=tmp_path).read(1).image == tmp_path / "secret.png"


def test_shards(tmp_path: Path) -> None:
    first = shard(
        tmp_path / "0.tar",
        {
            "x/1.png": picture("red"),
            "x/1.txt": b"red",
            "2.png": picture("blue"),
            "2.json": b'{"caption": "blue"}',
        },
    )
    second = shard(tmp_path / "1.tar", {"1.txt": b"green", "1.png": picture("green")})
    source = ShardSource([first, second])
    assert [source.key(i) for i in range(3)] == ["0.tar/x/1", "0.tar/2", "1.tar/1"]
    assert captions(source) == ["red", "blue", "green"]


def test_shards_of_webdataset_itself(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        writer.write({"__key__": "s1", "png": picture("red"), "txt": "red", "json": {"aesthetic": 3}})
    source = ShardSource([tmp_path / "w.tar"])
    assert captions(source) == ["red"]
    assert source.read(0).metadata == {"aesthetic": 3}


def test_cut_shard_gives_what_came_before(tmp_path: Path) -> None:
    whole = shard(
        tmp_path / "0.tar",
        {f"{i}.{k}": d for i in range(4) for k, d in (("txt", b"red"), ("png", picture("red")))},
    )
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: int(512 * 9.1)])
    data = ImageText(ShardSource([cut]), width=8, height=8, limit=1)
    assert len(data) == 2
    assert data.bad.reasons["cut.tar/(damaged)"].startswith("shard damaged")
    (tmp_path / "x.tar").write_bytes(b"\x1f\x8b rubbish")
    with pytest.raises(DataError, match="uncompressed"):
        ShardSource([tmp_path / "x.tar"])
    with pytest.raises(DataError, match="no such shard"):
        ShardSource([tmp_path / "missing.tar"])


@pytest.mark.slow
def test_huggingface_saved_and_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"image": [{"bytes": picture(c), "path": None} for c in COLOURS], "caption": list(COLOURS)}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(columns, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "files").mkdir()
    rows.to_parquet(str(tmp_path / "files" / "train.parquet"))
    for path in (tmp_path / "saved", tmp_path / "files", tmp_path / "files" / "train.parquet"):
        assert captions(HuggingFaceSource(path)) == list(COLOURS)
    with pytest.raises(DataError, match="caption"):
        HuggingFaceSource(tmp_path / "saved", caption_column="prose")
    with pytest.raises(DataError, match="no such data set"):
        HuggingFaceSource(tmp_path / "missing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="parquet"):
        HuggingFaceSource(tmp_path / "broken")


def test_filters(folder: Path) -> None:
    def left(**filters: float) -> list[str]:
        data = ImageText(FolderSource(folder), width=4, height=4, filters=Filters(**filters))  # type: ignore[arg-type]
        assert not data.bad.reasons
        return [data.captions(i)[0].split()[1] for i in range(len(data))]

    assert left(min_aesthetic=5) == ["red", "green"], "green has no score"
    assert left(max_watermark=0.5) == ["red", "green"]
    assert left(min_width=12, min_height=8) == ["red", "blue", "green"]
    with pytest.raises(DataError, match="3 filtered"):
        left(min_height=9)


def test_cover_keeps_proportions() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (cover(image, 10, 10) > 250).all()
    assert (cover(image, 10, 10, place=(0, 0)) < 5).all()
    assert cover(image, 7, 50).shape == (50, 7, 3)
    assert cover(np.zeros((1, 1, 3), np.uint8), 8, 8).shape == (8, 8, 3)


def test_batches_follow_from_the_generator(folder: Path) -> None:
    wave = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(wave).save(folder / "a.png")
    data = ImageText(FolderSource(folder), width=8, height=8, random_crop=True, mirror=True)
    indices = np.zeros(16, np.int64)
    batch = data.batch(indices, np.random.default_rng(1))["pixels"]
    generator = np.random.default_rng(1)
    singles = [data.batch(indices[:1], generator)["pixels"] for _ in range(16)]
    assert np.array_equal(batch, np.concatenate(singles))
    assert len({image.tobytes() for image in batch}) == 16
    with pytest.raises(UsageError):
        ImageText(FolderSource(folder), width=0, height=8)
