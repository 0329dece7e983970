"""``fewstep export`` around the exporter, and ``fewstep data`` around the drawing set."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from fewstep.checkpoint import atomic
from fewstep.cli.main import main
from fewstep.models import export as exporter

Output = pytest.CaptureFixture[str]


def test_options_reach_the_exporter_and_its_report_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    seen: dict[str, Any] = {}

    def export(pipeline: Path, out: Path, **options: Any) -> exporter.ExportReport:
        seen.update(options, pipeline=pipeline)
        part = exporter.PartReport(
            precision="int8", size=2_000_000, relative_error=0.01, cosine=1.0, seconds=1.0
        )
        return exporter.ExportReport(folder=out, hash="a" * 64, size=2_000_000, parts={"denoiser": part})

    monkeypatch.setattr(exporter, "export", export)
    (tmp_path / "prompts.txt").write_text("a red apple\n\n a dog \n", encoding="utf-8")
    arguments = ["--out", str(tmp_path / "b"), "--prompts", str(tmp_path / "prompts.txt"), "--name", "mine"]
    assert main(["export", "pipe", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'b'}\n"
    assert "denoiser: int8, 2.0 MB, error 0.0100" in printed.err
    assert seen["calibration_prompts"] == ["a red apple", "a dog"]
    assert (seen["name"], seen["precision"], seen["replace"]) == ("mine", "int8", False)
    assert seen["students"] == {}
    students = ["--student", "four=runs/a/student", "--student", "one=b=c", "--quiet"]
    assert main(["export", "pipe", "--out", "b", *students]) == 0
    assert seen["students"] == {"four": Path("runs/a/student"), "one": Path("b=c")}
    assert seen["on_stage"] is None
    assert capsys.readouterr().err == ""


def test_students_go_into_a_bundle_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    seen: dict[str, Any] = {}

    def add_students(into: Path, students: dict[str, Path], **options: Any) -> exporter.ExportReport:
        seen.update(options, into=into, students=students)
        part = exporter.PartReport(
            precision="int8", size=2_000_000, relative_error=0.01, cosine=1.0, seconds=1.0
        )
        return exporter.ExportReport(folder=into, hash="a" * 64, size=9, parts={"students/four": part})

    monkeypatch.setattr(exporter, "add_students", add_students)
    assert main(["export", "--into", "bundle", "--student", "four=here", "--replace"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "bundle\n"
    assert "students/four: int8, 2.0 MB, error 0.0100" in printed.err
    assert (seen["into"], seen["students"]) == (Path("bundle"), {"four": Path("here")})
    assert (seen["precision"], seen["replace"]) == (None, True)
    assert main(["export", "--into", "bundle", "--student", "four=here", "--precision", "fp16"]) == 0
    assert seen["precision"] == "fp16"


def test_interrupted_export_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def export(pipeline: Path, out: Path, **options: Any) -> None:
        with atomic.folder(out) as folder:
            (folder / "denoiser.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "export", export)
    assert main(["export", "pipe", "--out", str(tmp_path / "bundle")]) == 130
    assert capsys.readouterr().err == "fewstep: cancelled\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "int4"], 2, "--precision is 'int4': did you mean int8?"),
        (["--prompts", "nothing.txt"], 4, "nothing.txt: no such file"),
        ([], 4, "pipe: no such folder"),
        (["--student", "four"], 2, "--student is 'four': give NAME=FOLDER"),
        (["--student", "=four"], 2, "give NAME=FOLDER"),
        (["--student", "a=x", "--student", "a=y"], 2, "--student names 'a' twice"),
        (["--student", "A/b=x"], 2, "'A/b' is not a name for a student"),
        (["--student", "a=x"], 4, "x: no such folder"),
        (["--into", "old", "--student", "a=x"], 2, "--into adds to a bundle that is there already"),
    ],
)
def test_bad_input(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "pipe", "--out", "bundle", *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_out_is_asked_for(capsys: Output) -> None:
    assert main(["export", "pipe"]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main(["export", "--out", "bundle"]) == 2
    assert "PIPELINE is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--student", "a=x", "--out", "new"], 2, "leave --out out"),
        (["--student", "a=x", "--name", "new"], 2, "leave --name out"),
        ([], 2, "--into is given without --student"),
        (["--student", "a=x"], 4, "old: no such folder"),
    ],
)
def test_bad_input_of_into(arguments: list[str], code: int, message: str, capsys: Output) -> None:
    assert main(["export", "--into", "old", *arguments]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"state_dict": {}}), "a single file, not a folder, and a pickle, which could run code"),
        (b"hello", "a single file, not a folder; give a pipeline folder in the diffusers layout"),
    ],
)
def test_a_single_file_is_said_to_be_one(
    content: bytes, message: str, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "model.ckpt").write_bytes(content)
    assert main(["export", str(tmp_path / "model.ckpt"), "--out", str(tmp_path / "out")]) == 3
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["emoji-256"], "did you mean emoji-128?"), (["emoji-128", "--style", "notto"], "noto")],
)
def test_data_names_what_there_is(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
