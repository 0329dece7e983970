"""Numbers and grids of CompVis' scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import compvis_files
from fewstep.errors import OutputError

RECORD: dict[str, Any] = {
    "fewstep": "0", "prompt": "a dog", "num_inference_steps": 1, "solver": "ddim", "guidance_scale": 1.0,
    "seed": 1, "width": 8, "height": 8, "model": "m", "model_hash": "0" * 64,
}  # fmt: skip
BLACK = np.zeros((8, 8, 3), np.uint8)


def image(value: int, height: int = 4, width: int = 6) -> Any:
    return np.full((height, width, 3), value, np.uint8)


def test_numbers_begin_with_the_entries_that_are_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    for name in ("a.png", "note.txt", ".hidden"):
        (out / "samples" / name).write_bytes(b"x")
    (out / "grid-0000.png").write_bytes(b"x")
    (out / "else").mkdir()
    samples, grids = compvis_files.open_folders(out)
    assert samples.write(BLACK, RECORD) == out / "samples" / "00002.png"
    assert samples.write(BLACK, RECORD) == out / "samples" / "00003.png"
    assert grids.write(BLACK, RECORD) == out / "grid-0002.png"  # grid, else and samples: 3 - 1


def test_a_new_folder_begins_with_0(tmp_path: Path) -> None:
    samples, grids = compvis_files.open_folders(tmp_path / "new")
    assert samples.write(BLACK, RECORD).name == "00000.png"
    assert grids.write(BLACK, RECORD).name == "grid-0000.png"


def test_no_file_is_ever_written_over(tmp_path: Path) -> None:
    samples, grids = compvis_files.open_folders(tmp_path)
    kept = [tmp_path / "samples" / name for name in ("00000.png", "00001.png", "00003.png")]
    kept.append(tmp_path / "grid-0000.png")
    for path in kept:
        path.write_bytes(b"mine")
    (tmp_path / "samples" / "00004.png").symlink_to(tmp_path / "nowhere")
    written = [samples.write(BLACK, RECORD).name for _ in range(2)]
    assert written == ["00002.png", "00005.png"]
    assert grids.write(BLACK, RECORD).name == "grid-0001.png"
    assert [path.read_bytes() for path in kept] == [b"mine"] * 4
    assert not list(tmp_path.rglob(".*"))


def test_two_processes_in_one_folder_take_different_numbers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from fewstep.cli import compvis_files;"
        f"record = {RECORD!r}; samples, _ = compvis_files.open_folders(Path(sys.argv[1])); input();"
        "[samples.write(np.full((8, 8, 3), int(sys.argv[2]), np.uint8), record) for _ in range(20)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), value], stdin=subprocess.PIPE)
        for value in ("10", "20")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    values = []
    for number in range(40):
        with Image.open(tmp_path / "samples" / f"{number:05d}.png") as found:
            values.append(np.asarray(found)[0, 0, 0])
    assert sorted(values) == [10] * 20 + [20] * 20


def test_a_name_that_another_process_holds_is_passed_over(tmp_path: Path) -> None:
    samples, _ = compvis_files.open_folders(tmp_path)
    with compvis_files._claimed(tmp_path / "samples" / "00000.png") as free:
        assert free
        assert samples.write(BLACK, RECORD).name == "00001.png"


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="no images can be written here"):
        compvis_files.open_folders(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples").write_bytes(b"")
    with pytest.raises(OutputError, match="samples"):
        compvis_files.open_folders(tmp_path / "out")


def test_a_folder_that_goes_away_is_an_output_error(tmp_path: Path) -> None:
    samples, _ = compvis_files.open_folders(tmp_path)
    (tmp_path / "samples").rmdir()
    with pytest.raises(OutputError, match="--outdir"):
        samples.write(BLACK, RECORD)


def test_grid_has_2_black_pixels_around_every_image() -> None:
    sheet = compvis_files.grid([image(value) for value in (10, 20, 30, 40, 50)], 3)
    assert sheet.shape == (2 + 2 * (4 + 2), 2 + 3 * (6 + 2), 3)
    expected = np.zeros(sheet.shape, np.uint8)
    for value, (top, left) in zip(
        (10, 20, 30, 40, 50), ((2, 2), (2, 10), (2, 18), (8, 2), (8, 10)), strict=True
    ):
        expected[top : top + 4, left : left + 6] = value
    np.testing.assert_array_equal(sheet, expected)


def test_grid_is_no_wider_than_its_images() -> None:
    assert compvis_files.grid([image(1), image(2)], 8).shape == (8, 18, 3)


def test_grid_of_one_image_is_the_image() -> None:
    np.testing.assert_array_equal(compvis_files.grid([image(7)], 3), image(7))
