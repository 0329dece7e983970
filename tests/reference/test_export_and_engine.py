"""Export and both real backends on one small diffusers model with random weights."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, OutputError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

SIZES = [(64, 64), (96, 64), (72, 104)]
PROMPT = "a red apple"

FP16_OUTPUT = 2e-4
"""Largest absolute difference of a raw output, over the larger of 1 and its own largest value: both sides
compute in float32 from the same half-precision weights, so only the order of the sums differs."""


@pytest.fixture(scope="module")
def fp16(pipeline, tmp_path_factory):
    from fewstep.models.export import export

    out = tmp_path_factory.mktemp("fp16") / "bundle"
    return out, export(pipeline, out, precision="fp16")


@pytest.fixture(scope="module")
def int8(pipeline, tmp_path_factory):
    from fewstep.models.export import export

    out = tmp_path_factory.mktemp("int8") / "bundle"
    prompts = ["red apple", "a dog", "", "a red car", "e", "an apple"]
    return out, export(pipeline, out, precision="int8", calibration_prompts=prompts, name="small")


@pytest.fixture(scope="module")
def engines(pipeline, fp16):
    torch_engine, openvino_engine = Engine(pipeline, "torch"), Engine(fp16[0], "openvino")
    yield torch_engine, openvino_engine
    torch_engine.close()
    openvino_engine.close()


@pytest.mark.parametrize("size", SIZES)
def test_c03_torch_and_openvino_networks_agree(engines, size):
    width, height = size
    rng = np.random.default_rng(0)
    first, second = (engine.backend for engine in engines)
    x = rng.standard_normal((2, 4, height // 8, width // 8), dtype=np.float32)
    ids = rng.integers(0, 34, (2, 12))
    mask = (np.arange(12) < np.array([[2], [7]])).astype(np.int64)
    text = first.encode_text([ids], [mask])
    pixels = rng.uniform(-1, 1, (1, 3, height, width)).astype(np.float32)
    for call in (
        lambda backend: backend.encode_text([ids], [mask]).tokens,
        lambda backend: backend.denoise(x, np.array([999.0, 40.0], dtype=np.float32), text),
        lambda backend: backend.encode_image(pixels),
        lambda backend: backend.decode(x[:1]),
    ):
        want, got = call(first), call(second)
        assert 0.3 < want.std() < 3, f"the test needs outputs of ordinary size, not {want.std()}"
        assert want.shape == got.shape
        assert np.abs(want - got).max() <= FP16_OUTPUT * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
def test_c03_torch_and_openvino_pictures_agree(engines, size, task):
    width, height = size
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2] = 255
    given = {
        "txt2img": {},
        "img2img": {"init_image": image, "strength": 0.6},
        "inpaint": {"init_image": image},
    }
    if task == "inpaint":
        given["inpaint"]["mask"] = mask
    pictures = []
    for engine in engines:
        request = resolve(engine.info, prompt=PROMPT, width=width, height=height, seed=4, n=2, **given[task])
        pictures.append(engine.generate(request).images)
    for want, got in zip(*pictures, strict=True):
        assert want.std() > 5
        assert np.abs(want.astype(int) - got).max() <= 1


def test_torch_alone_and_in_a_batch(engines):
    engine = engines[0]
    batch = engine.generate(resolve(engine.info, prompt=PROMPT, n=4, seed=2)).images
    exact = engine.generate(resolve(engine.info, prompt=PROMPT, n=4, seed=2, deterministic=True)).images
    for index in range(4):
        alone = engine.generate(resolve(engine.info, prompt=PROMPT, seed=2 + index)).images[0]
        assert np.array_equal(exact[index], alone)
        assert np.abs(batch[index].astype(int) - alone).max() <= 1


def test_the_bundle_says_where_it_comes_from(pipeline, fp16):
    from fewstep.checkpoint.safetensors import folder_hash

    out, report = fp16
    made = bundle.open_bundle(out, verify=True)
    assert made.licence == "Apache-2.0 AND MIT"
    assert made.attribution == ({"author": "A. Artist", "url": "https://example.org"},)
    assert made.made_by["source"] == folder_hash(pipeline)
    assert made.name == "tiny" and made.hash == report.hash
    assert (out / "README.md").read_text().startswith("---")
    assert all(part.relative_error < 1e-3 for part in report.parts.values())
    assert set(made.precision.values()) == {"fp16"}


def test_int8_is_smaller_and_close(pipeline, fp16, int8, engines):
    out, report = int8
    made = bundle.open_bundle(out, verify=True)
    assert made.name == "small" and made.precision["denoiser"] == "int8"
    assert made.precision["vae_encoder"] == "fp16"
    # A network this narrow is hard to quantise; a broken one is at 1 or more.
    assert 1e-4 < report.parts["denoiser"].relative_error < 0.35
    assert (out / "denoiser.bin").stat().st_size < (fp16[0] / "denoiser.bin").stat().st_size
    engine = Engine(out)
    for width, height in SIZES:
        request = resolve(engine.info, prompt=PROMPT, width=width, height=height)
        got = engine.generate(request).images[0].astype(int)
        want = engines[1].generate(request).images[0]
        assert np.abs(got - want).mean() < 0.5 * want.std()


def test_an_existing_folder_is_refused_before_any_work(pipeline, fp16):
    from fewstep.models.export import export

    started = time.perf_counter()
    with pytest.raises(OutputError, match="exists already"):
        export(pipeline, fp16[0])
    assert time.perf_counter() - started < 10
    with pytest.raises(UsageError, match="precision is 'int4'"):
        export(pipeline, fp16[0], precision="int4")


def test_a_failing_export_leaves_nothing(pipeline, tmp_path, monkeypatch):
    from fewstep.models import export as module

    (tmp_path / "sub").mkdir()
    monkeypatch.setattr(
        module.bundle, "write", lambda made: (_ for _ in ()).throw(CheckpointError("stop; fix"))
    )
    with pytest.raises(CheckpointError, match="stop"):
        module.export(pipeline, tmp_path / "sub" / "out", precision="fp16")
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_killed_export_leaves_no_half_bundle(pipeline, tmp_path):
    code = (
        "import sys\nfrom fewstep.models.export import export\n"
        "export(sys.argv[1], sys.argv[2], precision='fp16', on_stage=lambda s: print(s, flush=True))\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(pipeline), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "vae_encoder" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert not out.exists()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".out.tmp-")
    from fewstep.checkpoint import atomic

    assert atomic.sweep(tmp_path) == left


def test_drawing_after_exporting_in_one_process(pipeline, fp16):
    """The engine blocks OpenVINO's converter while it imports; an export afterwards must still find it."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from fewstep.engine.engine import Engine\n"
        "Engine(Path(sys.argv[2]))\n"
        "from fewstep.models.export import export\n"
        "export(sys.argv[1], sys.argv[3], precision='fp16')\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    out = fp16[0].parent / "again"
    subprocess.run(
        [sys.executable, "-c", code, str(pipeline), str(fp16[0]), str(out)], check=True, timeout=120
    )
    assert bundle.open_bundle(out).hash == fp16[1].hash
