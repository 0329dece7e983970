"""Students on the command line: who draws, what the files say, and what models, info and doctor list."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from fewstep.checkpoint import safetensors
from fewstep.cli import generate
from fewstep.cli.main import main
from fewstep.diffusion.contract import SamplingContract
from fewstep.engine import registry
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.prompt import containers, infotext

Output = pytest.CaptureFixture[str]
DRAW = ("generate", "a red apple", "--upscale", "none")
FEW = SamplingContract(
    base_family="x", method="flash", solver="lcm", num_inference_steps=4, allowed_steps=(2, 4),
    guidance="off", native_sizes=((64, 64),),
)  # fmt: skip


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    fake = FakeBackend(students={"few": (4, 2)})
    monkeypatch.setattr(generate, "open_engine", lambda model, engine, folders: Engine(backend=fake))
    monkeypatch.chdir(tmp_path)
    return fake


def fields(path: str) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(infotext.read(containers.decode(image).parameters or "").fields)


@pytest.mark.usefixtures("backend")
def test_the_step_count_picks_the_student_and_the_file_names_it(capsys: Output) -> None:
    assert main([*DRAW, "--steps", "4", "--json"]) == 0
    seen = capsys.readouterr()
    printed = json.loads(seen.out)
    assert seen.err == "fewstep: drawn by student few; for the base model give --student none\n"
    assert printed["student"] == {"name": "few", "method": "fake", "hash": f"{1:064d}"}
    expected = {"Steps": "4", "Sampler": "LCM", "CFG scale": "1.0", "Model": "fake"}
    expected |= {"Student": "few", "Student method": "fake", "Student hash": "0" * 10}
    assert expected.items() <= fields(printed["path"]).items()
    assert main([*DRAW, "--steps", "4", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "arguments", [[], ["--steps", "3"], ["--steps", "4", "--guidance", "2"], ["--student", "none"]]
)
def test_otherwise_the_base_draws_and_nothing_speaks_of_students(
    arguments: list[str], capsys: Output
) -> None:
    assert main([*DRAW, *arguments]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    assert "Student" not in fields(seen.out.strip())


@pytest.mark.usefixtures("backend")
def test_a_named_student_draws_with_its_own_step_count(capsys: Output) -> None:
    assert main([*DRAW, "--student", "few", "--negative", "blue"]) == 0
    seen = capsys.readouterr()
    assert fields(seen.out.strip())["Steps"] == "4"
    assert "warning: the negative prompt has no effect: student 'few' does not use it" in seen.err


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--student", "more"], 4, "student 'more': model fake has no such student; there are: few"),
        (["--student", "few", "--steps", "5"], 2, "was made for 4, 2, give one of these, or --student none"),
        (["--student", "few", "--guidance", "3"], 2, "leave --guidance out"),
        (["--steps", "4", "--solver", "ddim"], 2, "leave --solver out, or give --student none"),
    ],
)
def test_what_does_not_fit_is_one_line_and_draws_nothing(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Output
) -> None:
    assert main([*DRAW, *arguments]) == code
    seen = capsys.readouterr()
    assert (seen.out, seen.err.count("\n")) == ("", 1)
    assert message in seen.err
    assert not list(tmp_path.glob("outputs/*"))


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline folder with a student, as far as it takes to list it."""
    import numpy as np

    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(registry, "user_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("FEWSTEP_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "mine"
    student = folder / "students" / "few"
    for unet in (folder / "unet", student / "unet"):
        safetensors.save(
            unet / "diffusion_pytorch_model.safetensors", {"w": np.full(4, len(unet.parts), np.float16)}
        )
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    (student / "fewstep.json").write_text(FEW.to_json(), encoding="utf-8")
    return folder


def test_models_and_doctor_list_students_and_their_steps(pipeline: Path, capsys: Output) -> None:
    assert main(["models", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["students"] == [{"name": "few", "method": "flash", "steps": [2, 4], "solver": "lcm"}]
    assert main(["models"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert "students" in heading
    assert "few 2,4" in line
    assert main(["doctor"]) == 0
    assert "few 2,4" in capsys.readouterr().out
    (pipeline / "students" / "few" / "fewstep.json").write_text("{", encoding="utf-8")
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["students"] == []


def test_info_tells_all_of_a_student(pipeline: Path, capsys: Output) -> None:
    assert main(["info", str(pipeline), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    student = facts["students"]["few"]
    assert (student["method"], student["steps"], student["solver"]) == ("flash", [2, 4], "lcm")
    assert student["contract"] == json.loads(FEW.to_json())
    assert student["hash"] == safetensors.folder_hash(pipeline / "students" / "few") != facts["hash"]
    guided = dataclasses.replace(FEW, guidance="classifier_free")
    (pipeline / "students" / "few" / "fewstep.json").write_text(guided.to_json(), encoding="utf-8")
    assert main(["info", str(pipeline)]) == 3
    assert "student 'few': its contract has guidance" in capsys.readouterr().err
