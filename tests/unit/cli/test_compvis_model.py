"""What ``--ckpt`` names, what ``--config`` may say, and in which size an initial image is drawn."""

from __future__ import annotations

import dataclasses
import json
import pickle
import time
from pathlib import Path

import pytest

from fewstep.cli import compvis, compvis_model
from fewstep.cli.main import main
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.engine.backends.base import ModelInfo
from fewstep.engine.backends.fake import FakeBackend
from fewstep.errors import CheckpointError, NotFoundError, UsageError

FAKE = FakeBackend().info
STABLE_DIFFUSION = dataclasses.replace(
    FAKE,
    name="sd",
    contract=SamplingContract(base_family="sd15", native_sizes=((512, 512),)),
    native_size=(512, 512),
    max_size=2048,
)


def folder(path: Path, name: str) -> Path:
    path.mkdir(parents=True)
    (path / name).write_text("{}", encoding="utf-8")
    return path


# --- --ckpt ---


def test_ckpt_may_be_a_model_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compvis_model.find_model(None) is None
    assert compvis_model.find_model("emoji-128") == "emoji-128"
    pipeline = folder(tmp_path / "models" / "mine", "model_index.json")
    bundle = folder(tmp_path / "made", "bundle.json")
    assert compvis_model.find_model(str(pipeline)) == pipeline
    assert compvis_model.find_model("models/mine") == Path("models/mine")
    assert compvis_model.find_model("made") == Path("made") == bundle.relative_to(tmp_path)


def test_a_folder_that_is_no_model_does_not_hide_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji-128").mkdir()
    assert compvis_model.find_model("emoji-128") == "emoji-128"


@pytest.mark.parametrize(
    "name", ["model.ckpt", "model.PT", "model.pth", "model.bin", "model.safetensors", "model"]
)
def test_a_pickle_is_refused_whatever_its_name_and_not_read(name: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    path = tmp_path / name
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        CheckpointError, match=r"a pickle, which can run code.* --allow-pickle .* --ckpt FILE.safetensors"
    ):
        compvis_model.find_model(str(path))
    assert not (tmp_path / "sprung").exists()


def test_a_zipped_pickle_as_torch_writes_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="a pickle"):
        compvis_model.find_model(str(path))


def test_a_single_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert compvis_model.find_model(str(path)) == path


@pytest.mark.parametrize(
    "name", ["models/ldm/stable-diffusion-v1/model.ckpt", "model.ckpt", "model.safetensors", "no/folder"]
)
def test_a_path_to_nothing(name: str) -> None:
    with pytest.raises(
        NotFoundError, match=r"no such file or folder; give a file, a pipeline folder.*fewstep models"
    ):
        compvis_model.find_model(name)


@pytest.mark.parametrize("option", ["--ckpt", "--model"])
def test_an_unknown_name_lists_what_there_is(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["txt2img", option, "emoji-129"]) == 4
    assert "there are: emoji-128" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["txt2img", "--ckpt", str(tmp_path)]) == 4
    assert "no bundle.json or model_index.json here" in capsys.readouterr().err


def test_without_ckpt_the_bundled_model_is_opened() -> None:
    engine = compvis.open_engine(None)
    assert engine.info.name == "emoji-128"
    engine.close()


# --- --C and --f ---


def test_latents_are_compared() -> None:
    compvis_model.check_latents(FAKE, None, None)
    compvis_model.check_latents(FAKE, 4, 8)
    with pytest.raises(UsageError, match=r"--C is 8: fake has 4 latent channels.*leave --C out"):
        compvis_model.check_latents(FAKE, 8, 8)
    with pytest.raises(UsageError, match=r"--f is 16.*leave --f out"):
        compvis_model.check_latents(FAKE, 4, 16)


# --- --config ---

V1 = """
model:
  base_learning_rate: 1.0e-04
  target: os.system
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    channels: 4
    scale_factor: 0.18215
    cond_stage_config:
      target: subprocess.run
"""


def check(path: Path, info: ModelInfo) -> None:
    compvis_model.check_config(path, compvis_model.read_config(path), info)


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_config_of_the_model_is_accepted(tmp_path: Path) -> None:
    check(config(tmp_path, V1), STABLE_DIFFUSION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("    channels", "    parameterization: v\n    channels"),
            "parameterization is 'v', and sd has epsilon",
        ),
        (("timesteps: 1000", "timesteps: 500"), "timesteps is 500, and sd has 1000"),
        (("0.00085", "0.0015"), "linear_start is 0.0015, and sd has 0.00085"),
        (("0.0120", "0.0195"), "linear_end is 0.0195, and sd has 0.012"),
        (("channels: 4", "channels: 3"), "channels is 3, and sd has 4"),
        (("channels: 4", "channels: four"), "channels is 'four'"),
        (("channels: 4", "channels: true"), "channels is True"),
        (("timesteps: 1000", "timesteps: [1000]"), r"timesteps is \[1000\]"),
        (("    channels", "    parameterization: [eps]\n    channels"), r"parameterization is \['eps'\]"),
    ],
)
def test_the_config_of_another_model_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    assert V1.replace(*change) != V1
    with pytest.raises(UsageError, match=message):
        check(config(tmp_path, V1.replace(*change)), STABLE_DIFFUSION)


def test_betas_are_compared_with_models_that_have_some(tmp_path: Path) -> None:
    contract = dataclasses.replace(
        FAKE.contract, schedule=ScheduleSpec(name="rectified_flow"), prediction_type="sample", solver="euler"
    )
    flow = dataclasses.replace(FAKE, contract=contract)
    text = V1.replace("    channels", "    parameterization: x0\n    channels")
    check(config(tmp_path, text), flow)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "model: 3",
        "model: {params: [a]}",
        "a: b: c",
        "[" * 20_000,
        f"{V1}\nx: {'[' * 17}{']' * 17}",
        f"{V1}\n{'#' * 100_000}",
        "x: &a {channels: 4}\nmodel: {params: *a}",
    ],
)
def test_what_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a config of CompVis"):
        check(config(tmp_path, text), STABLE_DIFFUSION)


def test_a_config_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    text = V1.replace("timesteps: 1000", f"timesteps: !!python/object/apply:os.mkdir ['{made}']")
    with pytest.raises(UsageError, match="not a config of CompVis"):
        check(config(tmp_path, text), STABLE_DIFFUSION)
    assert not made.exists()


def test_a_config_that_would_grow_without_bound_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    start = time.monotonic()
    with pytest.raises(UsageError, match="not a config of CompVis"):
        check(config(tmp_path, "\n".join(lines)), STABLE_DIFFUSION)
    assert time.monotonic() - start < 1.0


def test_a_config_that_is_not_there() -> None:
    with pytest.raises(NotFoundError, match=r"v1-inference.yaml: no such file; leave --config out"):
        check(Path("configs/stable-diffusion/v1-inference.yaml"), STABLE_DIFFUSION)


# --- the size of an initial image ---


@pytest.mark.parametrize(
    ("info", "image", "size"),
    [
        (STABLE_DIFFUSION, (512, 512), (512, 512)),
        (STABLE_DIFFUSION, (1023, 770), (992, 768)),  # the script draws large images as they are
        (STABLE_DIFFUSION, (4000, 3000), (None, None)),
        (FAKE, (64, 64), (64, 64)),
        (FAKE, (70, 50), (64, 48)),
        (FAKE, (512, 512), (None, None)),
        (FAKE, (300, 8), (None, None)),
    ],
)
def test_an_initial_image_is_shrunk_to_a_multiple(
    info: ModelInfo, image: tuple[int, int], size: tuple[int | None, int | None]
) -> None:
    assert compvis_model.shrunk(info, *image) == size


def test_a_stable_diffusion_with_a_larger_multiple_gets_its_own() -> None:
    info = dataclasses.replace(STABLE_DIFFUSION, size_multiple=64)
    assert compvis_model.shrunk(info, 600, 500) == (576, 448)


def test_whose_defaults_hold() -> None:
    base = STABLE_DIFFUSION.contract
    assert compvis_model.follows_script(base)
    assert not compvis_model.follows_script(dataclasses.replace(base, method="lcm"))
    assert not compvis_model.follows_script(dataclasses.replace(base, base_family="sdxl"))
    assert not compvis_model.follows_script(FAKE.contract)
