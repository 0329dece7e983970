"""``fewstep evaluate`` with a fake model and a fake evaluator: what is printed, written and refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli import evaluate
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine

Output = pytest.CaptureFixture[str]


def world() -> Any:
    """The small world of the evaluation's own tests."""
    path = Path(__file__).resolve().parents[1] / "evaluation" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_world", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["small_world"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeBackend]:
    """Every model is a fake one; the backends that were opened."""
    small = world()
    opened: list[FakeBackend] = []

    def open_model(model: Any, engine: str, folders: Any) -> tuple[Engine, Path]:
        opened.append(FakeBackend())
        return Engine(backend=opened[-1]), tmp_path / str(model)

    monkeypatch.setattr(evaluate, "open_model", open_model)
    monkeypatch.setattr("fewstep.models.features.load_evaluator", lambda folder: small.PerfectJudge())
    monkeypatch.setattr("fewstep.data.emoji.open_drawings", lambda folder: small.make_drawings(folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "world.yaml").write_text("groups: [food-drink, animals-nature]\n", "utf-8")
    return opened


TRAINED = ("--selection", "world.yaml")
SMALL = (*TRAINED, "--n", "4", "--diversity", "1", "--quiet")


@pytest.mark.usefixtures("fakes")
def test_a_table_goes_to_stdout_and_everything_else_to_files(tmp_path: Path, capsys: Output) -> None:
    assert main(["evaluate", *SMALL, "--prompts", "seen", "--prompts", "object"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for said in ("concept first", "seen: 4 images", "object: 4 images", "chance", "evaluator: "):
        assert said in out
    folder = tmp_path / "runs" / "evaluation" / "fake"
    assert {"report.json", "report.md", "contact-seen.png", "pictures"} <= {p.name for p in folder.iterdir()}


@pytest.mark.usefixtures("fakes")
def test_json_is_the_report(tmp_path: Path, capsys: Output) -> None:
    settings = ["--steps", "2", "--guidance", "1.5", "--solver", "euler", "--seed", "9", "--out", "here"]
    assert main(["evaluate", *SMALL, *settings, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "here" / "fake" / "report.json").read_text())
    model = printed["model"]
    assert (model["num_inference_steps"], model["guidance_scale"], model["solver"], model["seed"]) == (
        2, 1.5, "euler", 9,
    )  # fmt: skip


def test_models_side_by_side_have_folders_of_their_own(
    fakes: list[FakeBackend], tmp_path: Path, capsys: Output
) -> None:
    assert main(["evaluate", *SMALL, "--compare", "one", "two", "--folder", "three", "--out", "x"]) == 0
    out = capsys.readouterr().out
    for said in ("A: fake", "B: fake", "C: fake", "B over A", "C over A", "difference [95% interval]"):
        assert said in out
    assert len(fakes) == 3
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names == {"fake", "fake-2", "fake-3", "compare.json", "compare.md", "compare-seen.png"}


def test_a_second_evaluation_draws_nothing_again(fakes: list[FakeBackend]) -> None:
    assert main(["evaluate", *SMALL]) == 0
    assert main(["evaluate", *SMALL]) == 0
    assert fakes[0].calls > 0
    assert fakes[1].calls == 0


@pytest.mark.usefixtures("fakes")
def test_a_file_of_prompts_is_a_set(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "mine.txt").write_text("a fox\na castle in the air\n", "utf-8")
    assert main(["evaluate", *SMALL, "--prompts", "mine.txt"]) == 0
    assert "mine: 2 images of 2 prompts" in capsys.readouterr().out


REFUSED = [
    (["--compare"], 2, "--compare needs two models"),
    (["--compare", "one"], 2, "--compare needs two models"),
    (["--prompts", "sean"], 4, "prompt set 'sean': give seen"),
    (["--prompts", "seen", "--prompts", "seen"], 2, "names a set twice"),
    (["--prompts", "nothing.txt"], 4, "nothing.txt: cannot be read"),
    (["--n", "0"], 2, "give --n 1 or more"),
    (["--steps", "0"], 2, "steps is 0"),
    (["--guidance", "nan"], 2, "guidance is nan"),
    (["--solver", "ddin"], 2, "ddim"),
    (["--seed", "-1"], 2, "seed is -1"),
    (["--diversity", "-1"], 2, "--diversity is -1"),
    (["--engine", "cuda"], 2, "--engine is 'cuda'"),
    (["--selection", "nothing.yaml"], 2, "nothing.yaml: not a selection"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_wrong_options_are_one_line_before_anything_is_drawn(
    arguments: list[str], code: int, message: str, fakes: list[FakeBackend], tmp_path: Path, capsys: Output
) -> None:
    assert main(["evaluate", *TRAINED, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fewstep: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [backend.calls for backend in fakes if backend.calls] == []
    assert not (tmp_path / "runs").exists()


def test_without_an_evaluator_or_drawings_it_says_how_to_get_them(tmp_path: Path, capsys: Output) -> None:
    assert main(["evaluate", "--evaluator", str(tmp_path)]) == 4
    assert "fewstep train emoji-128/evaluator" in capsys.readouterr().err


def test_ctrl_c_stops_between_steps_and_is_no_bug(
    fakes: list[FakeBackend], monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    import signal

    def interrupted(*arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return plain(*arguments, **named)

    plain = FakeBackend.denoise
    monkeypatch.setattr(FakeBackend, "denoise", interrupted)
    assert main(["evaluate", *SMALL]) == 130
    assert capsys.readouterr().err.startswith("fewstep: cancelled")
    assert fakes[0].calls == 1


def test_a_folder_and_a_run_have_names_to_tell_them_apart(tmp_path: Path) -> None:
    engine = Engine(backend=FakeBackend())
    assert evaluate._name(tmp_path / "long-run" / "pipeline", engine) == "long-run"
    assert evaluate._name(tmp_path / "emoji", engine) == "fake"


def test_importing_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; import fewstep.cli.evaluate;"
        "heavy = {'torch', 'diffusers', 'matplotlib', 'torchmetrics', 'numpy', 'pydantic'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
