"""``fewstep merge``: options reach the merge, the distilled model's contract the result, errors one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.checkpoint.merging import run
from fewstep.cli.main import main
from fewstep.diffusion.contract import SamplingContract
from fewstep.errors import CheckpointError

Output = pytest.CaptureFixture[str]
CONTRACT = SamplingContract(
    base_family="sd15",
    base_hash="0" * 64,
    method="lightning",
    solver="euler",
    num_inference_steps=4,
    allowed_steps=(4,),
    guidance="off",
    native_sizes=((512, 512),),
)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked the merge for."""
    found: dict[str, Any] = {}

    def merge(models: list[Path], out: Path | None, options: run.Options, *, on_progress: Any) -> Any:
        found.update(models=models, out=out, options=options)
        on_progress(1, 2)
        return Path("made.safetensors"), ["a remark"]

    monkeypatch.setattr(run, "merge", merge)
    return found


def distilled(folder: Path, contract: SamplingContract = CONTRACT) -> Path:
    folder.mkdir()
    (folder / "fewstep.json").write_text(contract.to_json())
    return folder


def test_options_reach_the_merge_and_remarks_the_user(
    seen: dict[str, Any], capsys: Output, tmp_path: Path
) -> None:
    given = ["--mode", "add-difference", "-M", "0.3", "--blocks", "IN00=1", "--dtype", "bf16", "--vae", "v"]
    given += ["--discard", "^x", "--copy-metadata", "--metadata", '{"k": "v"}', "--replace", "--out", "o"]
    assert main(["merge", "a", "b", "c", *given]) == 0
    assert capsys.readouterr() == ("made.safetensors\n", "fewstep: a remark\n")
    assert seen["models"] == [Path("a"), Path("b"), Path("c")] and seen["out"] == Path("o")
    assert seen["options"] == run.Options(
        mode="add-difference",
        multiplier=0.3,
        blocks="IN00=1",
        dtype="bf16",
        vae=Path("v"),
        discard="^x",
        copy_metadata=True,
        metadata={"k": "v"},
        replace=True,
    )
    assert main(["merge", "a", "b", "--quiet"]) == 0
    assert seen["options"] == run.Options() and seen["out"] is None
    assert capsys.readouterr().err == ""


def test_a_distilled_models_contract_reaches_the_result(seen: dict[str, Any], tmp_path: Path) -> None:
    student = distilled(tmp_path / "student")
    assert main(["merge", "fine", str(student), "base", "--mode", "make-few-step", "--quiet"]) == 0
    options = seen["options"]
    assert options.multiplier == 1.0
    carried = SamplingContract.from_json(options.contract.text)
    assert carried == dataclasses.replace(CONTRACT, base_hash=None), "the weights are other ones now"
    assert options.contract.scheduler == carried.scheduler_config()
    assert options.contract.scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_a_published_name_says_how_it_is_sampled(seen: dict[str, Any], tmp_path: Path) -> None:
    from fewstep.models import recognise

    file = tmp_path / "sdxl_lightning_4step_unet.safetensors"
    header = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert isinstance(recognise.recognise(file), recognise.Recognised)
    assert main(["merge", "fine", str(file), "base", "--mode", "make-few-step", "--quiet"]) == 0
    assert SamplingContract.from_json(seen["options"].contract.text).num_inference_steps == 4


def test_a_contract_can_be_given(seen: dict[str, Any], tmp_path: Path) -> None:
    file = distilled(tmp_path / "x") / "fewstep.json"
    assert main(["merge", "a", "b", "--contract", str(file), "--quiet"]) == 0
    assert SamplingContract.from_json(seen["options"].contract.text).num_inference_steps == 4


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["a", "b", "--mode", "weighted"], "--mode is 'weighted': did you mean weighted-sum?", 2),
        (["a", "b", "--dtype", "int8"], "--dtype is 'int8'", 2),
        (["a", "b", "--metadata", "[1]"], "--metadata is no JSON object of texts", 2),
        (["a", "b", "--metadata", '{"a": 1}'], "--metadata is no JSON object of texts", 2),
        (["a", "b", "--contract", "absent.json"], "--contract absent.json: no such file", 4),
        (["a", "absent", "c", "--mode", "make-few-step"], "absent: no such file or folder", 4),
        (["a", "b", "--mode", "make-few-step"], "there is no C; give 3 models", 2),
        (["absent", "b"], "absent: no such file or folder", 4),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, code: int, capsys: Output) -> None:
    assert main(["merge", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_distilled_model_that_does_not_say_how_it_is_sampled(
    seen: dict[str, Any], capsys: Output, tmp_path: Path
) -> None:
    (tmp_path / "unknown").mkdir()
    given = ["merge", "fine", str(tmp_path / "unknown"), "base", "--mode", "make-few-step"]
    assert main(given) == CheckpointError.exit_code
    assert "has no sampling contract" in capsys.readouterr().err
    (tmp_path / "unknown" / "fewstep.json").write_text("{}")
    assert main(given) == CheckpointError.exit_code
    embedded = dataclasses.replace(CONTRACT, guidance="embedded", guidance_scale=8.0)
    given[2] = str(distilled(tmp_path / "embedded", embedded))
    assert main(given) == 2
    assert "is told the guidance scale by a layer that A has not" in capsys.readouterr().err
    assert not seen
