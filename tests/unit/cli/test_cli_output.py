"""Numbered files: nothing is overwritten, and nothing is left behind."""

import os
import time
from pathlib import Path

import pytest

from fewstep.cli import output
from fewstep.errors import OutputError


def test_numbers_go_on_after_the_highest_in_the_folder(tmp_path: Path) -> None:
    for name in ("00002-7.png", "00007-1.webp", "notes.txt", "9-9.png"):
        (tmp_path / name).touch()
    with output.numbers(tmp_path / "new" / "folder", 2) as fresh:
        assert fresh == [1, 2]
    with output.numbers(tmp_path, 3) as found:
        assert found == [8, 9, 10]
    assert not list(tmp_path.glob(".*"))


def test_two_writers_never_get_one_number(tmp_path: Path) -> None:
    with output.numbers(tmp_path, 2) as first, output.numbers(tmp_path, 2) as second:
        assert not set(first) & set(second)


def test_a_number_written_by_another_process_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "00001-5.png").touch()
    monkeypatch.setattr(output, "_highest", lambda folder: 0)  # what a listing before that write says
    with output.numbers(tmp_path, 1) as found:
        assert found == [2]


def test_the_claim_of_a_killed_process_is_stepped_over_and_later_removed(tmp_path: Path) -> None:
    claim = tmp_path / ".00004.claim"
    claim.touch()
    with output.numbers(tmp_path, 1) as found:
        assert found == [5]
    old = time.time() - 2 * 86_400
    os.utime(claim, (old, old))
    with output.numbers(tmp_path, 1) as found:
        assert found == [1]
    assert not list(tmp_path.iterdir())


def test_numbers_are_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), output.numbers(tmp_path, 2):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="choose another folder with --out"),
        output.numbers(tmp_path / "file" / "sub", 1),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fewstep.cli.output.os.open", refuse)
    with pytest.raises(OutputError, match="Permission denied"), output.numbers(tmp_path, 1):
        pass
