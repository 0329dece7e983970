"""``fewstep convert``: its options reach the conversion, its remarks the user, its errors one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.checkpoint import conversion
from fewstep.cli.main import main
from fewstep.errors import CheckpointError

Output = pytest.CaptureFixture[str]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked the conversion for."""
    found: dict[str, Any] = {}

    def convert(source: Path, out: Path, options: conversion.Options, *, on_tensor: Any) -> list[str]:
        found.update(source=source, out=out, options=options)
        on_tensor(1, 2)
        return ["the first remark", "the second"]

    monkeypatch.setattr(conversion, "convert", convert)
    return found


def test_options_reach_the_conversion_and_remarks_the_user(seen: dict[str, Any], capsys: Output) -> None:
    given = ["--dtype", "bf16", "--family", "sdxl", "--prediction-type", "v_prediction", "--base", "b"]
    given += ["--vae", "v", "--tokenizer", "t", "--ema", "--allow-pickle", "--replace"]
    given += ["--lora-names", "kohya"]
    assert main(["convert", "in.safetensors", "--out", "out", *given]) == 0
    printed = capsys.readouterr()
    assert printed.out == "out\n"
    assert printed.err == "fewstep: the first remark\nfewstep: the second\n"
    assert (seen["source"], seen["out"]) == (Path("in.safetensors"), Path("out"))
    assert dataclasses.replace(seen["options"], vocabulary=None, scheduler=None) == conversion.Options(
        dtype="bf16",
        family="sdxl",
        prediction_type="v_prediction",
        base=Path("b"),
        vae=Path("v"),
        tokenizer=Path("t"),
        ema=True,
        allow_pickle=True,
        names="kohya",
        replace=True,
    )


def test_defaults_allow_nothing(seen: dict[str, Any], capsys: Output) -> None:
    assert main(["convert", "in", "--out", "out", "--quiet"]) == 0
    assert capsys.readouterr() == ("out\n", "")
    assert dataclasses.replace(seen["options"], vocabulary=None, scheduler=None) == conversion.Options()
    assert not seen["options"].allow_pickle and not seen["options"].replace


def test_the_packages_vocabulary_is_clips(seen: dict[str, Any]) -> None:
    assert main(["convert", "in", "--out", "out", "--quiet"]) == 0
    files = seen["options"].vocabulary()
    words = json.loads(files["vocab.json"])
    assert (len(words), words["!"], words["<|startoftext|>"], words["<|endoftext|>"]) == (
        49408,
        0,
        49406,
        49407,
    )
    merges = files["merges.txt"].decode().splitlines()
    assert merges[0].startswith("#version") and len(merges) == 1 + 48894


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in"], 2, "Missing option '--out'"),
        (["--out", "x"], 2, "Missing argument"),
        (["in", "--out", "x", "--dtype", "fp61"], 2, "--dtype is 'fp61': did you mean fp16?"),
        (["in", "--out", "x", "--family", "sd-xl"], 2, "--family is 'sd-xl': did you mean sdxl?"),
        (["in", "--out", "x", "--prediction-type", "velocity"], 2, "--prediction-type is 'velocity'"),
        (["none", "--out", "x"], 4, "none: no such file or folder"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: Any, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_conversion_refuses_is_the_exit_code(monkeypatch: Any, capsys: Output) -> None:
    def convert(*arguments: Any, **options: Any) -> list[str]:
        raise CheckpointError("in: is a ControlNet;\ngive a model")

    monkeypatch.setattr(conversion, "convert", convert)
    assert main(["convert", "in", "--out", "out"]) == 3
    assert capsys.readouterr() == ("", "fewstep: error: in: is a ControlNet; give a model\n")


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: Any, capsys: Output) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
    import tiny_files as tiny

    from fewstep.checkpoint import tensorfile

    source = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    real = tensorfile.TensorFile.read

    def read(self: Any, name: str, rows: Any = None) -> Any:
        if name.endswith("out.2.bias"):
            raise KeyboardInterrupt
        return real(self, name, rows)

    monkeypatch.setattr(tensorfile.TensorFile, "read", read)
    for out in ("folder", "again.safetensors"):
        assert main(["convert", str(source), "--out", str(tmp_path / out)]) == 130
        assert "cancelled" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["unet.safetensors"]
