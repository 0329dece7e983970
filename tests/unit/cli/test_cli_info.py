"""``fewstep info`` of each kind of file, and of files that are not what they seem."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.checkpoint import safetensors
from fewstep.cli.main import main
from fewstep.prompt import containers

TEXT = "a red apple\nNegative prompt: blurry\nSteps: 4, Sampler: DDIM, Seed: 1, Size: 8x8"
RECORD = {"prompt": "a red apple", "seed": 1}
PIXELS = np.zeros((8, 8, 3), np.uint8)
Output = pytest.CaptureFixture[str]


def facts(path: Path, capsys: Output) -> dict[str, object]:
    assert main(["info", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("image_format", containers.FORMATS)
def test_image_prints_its_parameters(image_format: containers.Format, tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / f"a.{image_format}"
    path.write_bytes(containers.encode(PIXELS, image_format, parameters=TEXT, record=RECORD))
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out == TEXT + "\n"
    found = facts(path, capsys)
    assert found["record"] == RECORD
    assert (found["width"], found["height"], found["prompt"]) == (8, 8, "a red apple")
    assert found["fields"] == {"Steps": "4", "Sampler": "DDIM", "Seed": "1", "Size": "8x8"}


def test_image_without_parameters(tmp_path: Path, capsys: Output) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    assert main(["info", str(tmp_path / "a.png")]) == 0
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "no generation parameters" in seen.err


def test_text_of_an_image_cannot_steer_the_terminal(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(containers.encode(PIXELS, "png", parameters="red\x1b[2Japple\x9b31m"))
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().out == "red\\x1b[2Japple\\x9b31m\n"


def test_truncated_image_is_refused(tmp_path: Path, capsys: Output) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = containers.encode(noise, "png", parameters=TEXT)
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert main(["info", str(tmp_path / "a.png")]) == 6
    assert "damaged or cut off" in capsys.readouterr().err


def test_decompression_bomb_is_refused_from_its_header(bomb: bytes, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert main(["info", str(tmp_path / "bomb.png")]) == 6
    assert "too many pixels" in capsys.readouterr().err


def test_safetensors_file(tmp_path: Path, capsys: Output) -> None:
    tensors: dict[str, Any] = {
        "a": np.zeros((2, 3), np.float16),
        "b": np.zeros(5, np.float32),
        "c": np.zeros(1, np.float16),
    }
    safetensors.save(tmp_path / "w.safetensors", tensors, {"author": "x", "fewstep": '{"solver": "lcm"}'})
    found = facts(tmp_path / "w.safetensors", capsys)
    assert (found["tensors"], found["parameters"]) == (3, 12)
    assert found["types"] == {"F16": 2, "F32": 1}
    assert found["metadata"] == {"author": "x"}
    assert found["contract"] == {"fewstep": {"solver": "lcm"}}
    assert main(["info", str(tmp_path / "w.safetensors")]) == 0
    assert "tensors: 3\nparameters: 12\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors", "apple"])
def test_pickle_is_refused_and_never_run(name: str, tmp_path: Path, capsys: Output) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "sprung"),))  # type: ignore[return-value]

    (tmp_path / name).write_bytes(pickle.dumps({"weights": Trap()}))
    assert main(["info", str(tmp_path / name)]) == 3
    err = capsys.readouterr().err
    assert "fewstep convert --allow-pickle" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "sprung").exists()


def test_other_files_and_folders_are_refused(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
    assert main(["info", str(tmp_path / "a.txt")]) == 3
    assert "neither an image nor a safetensors file" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 4
    assert "neither a runtime bundle (bundle.json) nor a pipeline folder" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "nothing")]) == 4
    assert "no such file or folder" in capsys.readouterr().err


def test_pipeline_folder(tmp_path: Path, capsys: Output) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / "fewstep.json").write_text('{"solver": "ddim"}', encoding="utf-8")
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    safetensors.save(weights, {"w": np.zeros((4, 4), np.float16)})
    found = facts(tmp_path, capsys)
    assert (found["kind"], found["class"]) == ("pipeline", "StableDiffusionPipeline")
    assert found["contract"] == {"solver": "ddim"}
    assert found["hash"] == safetensors.folder_hash(tmp_path)
    assert found["parts"] == {
        "unet": {
            "class": "diffusers.UNet2DConditionModel",
            "bytes": weights.stat().st_size,
            "parameters": 16,
            "types": ["F16"],
        }
    }
