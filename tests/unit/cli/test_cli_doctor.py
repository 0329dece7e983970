"""``fewstep doctor`` and what it knows of installed packages."""

import json
import sys
from pathlib import Path

import pytest

from fewstep.cli import installed
from fewstep.cli.main import main
from fewstep.engine import registry, upscale
from fewstep.errors import DependencyError

Output = pytest.CaptureFixture[str]

REQUIREMENTS = [
    "numpy>=2.0",
    'no-such-package>=1; extra == "upscale"',
    'torch>=2; extra == "torch"',
    'fewstep[torch,upscale]; extra == "train"',
    'pytest; extra == "train"',
]


@pytest.fixture
def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(registry, "user_folder", lambda: tmp_path / "none")
    monkeypatch.delenv("FEWSTEP_MODELS", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def test_extras_hold_the_packages_of_the_extras_they_name() -> None:
    found = {extra.name: extra for extra in installed.extras(REQUIREMENTS)}
    assert list(found["base"].packages) == ["numpy"]
    assert list(found["train"].packages) == ["torch", "no-such-package", "pytest"]
    assert found["upscale"].missing == ["no-such-package"]
    assert found["train"].packages["pytest"] == pytest.__version__


def test_pip_line_is_for_this_python_and_where_fewstep_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "_source_folder", lambda: None)
    monkeypatch.setattr(sys, "executable", "/there/python")
    line = installed.pip_line("upscale")
    assert line.split()[:4] == ["/there/python", "-m", "pip", "install"]
    assert "fewstep[upscale]" in line
    (tmp_path / "constraints.txt").touch()
    monkeypatch.setattr(installed, "_source_folder", lambda: tmp_path)
    assert f"-c {tmp_path / 'constraints.txt'} -e" in installed.pip_line("upscale")


def test_c04_a_missing_package_names_the_command_that_installs_it() -> None:
    with pytest.raises(DependencyError, match=r"no_such_package, which is not installed; run: .*pip install"):
        installed.require("train", "no_such_package", "training")


@pytest.mark.usefixtures("no_model")
def test_missing_model_is_a_problem_and_strict_makes_it_an_error(capsys: Output) -> None:
    assert main(["doctor"]) == 0
    seen = capsys.readouterr()
    assert "problem: no model found" in seen.out
    assert seen.err == ""
    assert main(["doctor", "--strict"]) == 1


@pytest.mark.usefixtures("no_model")
def test_report_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output) -> None:
    monkeypatch.setattr(upscale, "available", list)
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["engine"]["name"] is None
    assert facts["upscaler"]["name"] is None
    assert "pip install" in facts["upscaler"]["why"]
    assert len(facts["problems"]) == 2
    assert facts["cache"] == {"folder": str(tmp_path / "cache"), "bytes": 0, "writable": True}
    assert not (tmp_path / "cache").exists()  # looking changes nothing
    assert facts["python"]["executable"] == sys.executable


@pytest.mark.usefixtures("no_model")
def test_a_broken_model_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "models" / "cut").mkdir(parents=True)
    (tmp_path / "models" / "cut" / "bundle.json").write_text('{"format_version": 1', encoding="utf-8")
    assert main(["doctor", "--json", "--models-dir", str(tmp_path / "models")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["engine"]["name"] is None
    assert "not readable as JSON" in facts["engine"]["why"]
    assert any("nothing can draw" in problem for problem in facts["problems"])
