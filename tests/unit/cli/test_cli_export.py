"""``fewstep export`` around the exporter, and ``fewstep data`` around the drawing set."""

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
        ([], 4, "pipe"),
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
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["emoji-256"], "did you mean emoji-128?"), (["emoji-128", "--style", "notto"], "noto")],
)
def test_data_names_what_there_is(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
