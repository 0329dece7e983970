"""A small runtime bundle whose networks are written by hand in OpenVINO, so that no torch is needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.engine.backends import fake
from fewstep.engine.backends.openvino import import_openvino

CHANNELS, LENGTH, WIDTH = 4, 16, 8
STUDENT = "quick"
CONTRACT = SamplingContract(
    base_family="hand",
    prediction_type="v_prediction",
    schedule=ScheduleSpec(rescale_zero_terminal_snr=True),
    num_inference_steps=5,
    guidance_scale=2.0,
    native_sizes=((64, 64),),
)
QUICK = dataclasses.replace(
    CONTRACT,
    method="lightning",
    num_inference_steps=4,
    allowed_steps=(2, 4),
    guidance="off",
    guidance_scale=1.0,
    negative_prompt_effective=False,
)


def write_files(folder: Path) -> None:
    """The files of a bundle and of one student, but ``bundle.json``."""
    import_openvino()
    import openvino
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    (folder / bundle.STUDENTS).mkdir()

    def save(part, output, inputs):
        openvino.save_model(openvino.Model([output], inputs, part), str(folder / f"{part}.xml"))

    ids = op.parameter([-1, LENGTH], np.int64, name="ids")
    mask = op.parameter([-1, LENGTH], np.int64, name="mask")
    table = op.constant(rng.standard_normal((16, WIDTH)).astype(np.float32))
    rows = op.gather(table, ids, op.constant(np.int64(0)))
    weights = op.unsqueeze(op.convert(mask, "f32"), op.constant(np.int64(2)))
    save("text_encoder", op.multiply(rows, weights), [ids, mask])

    x = op.parameter([-1, CHANNELS, -1, -1], np.float32, name="x")
    t = op.parameter([-1], np.float32, name="t")
    text = op.parameter([-1, LENGTH, WIDTH], np.float32, name="text")
    mean = op.reduce_mean(text, op.constant(np.array([1], dtype=np.int64)), keep_dims=False)
    colour = op.matmul(
        mean, op.constant(rng.standard_normal((WIDTH, CHANNELS)).astype(np.float32)), False, False
    )
    colour = op.unsqueeze(colour, op.constant(np.array([2, 3], dtype=np.int64)))
    level = op.unsqueeze(
        op.multiply(t, op.constant(np.float32(1e-4))), op.constant(np.array([1, 2, 3], dtype=np.int64))
    )
    kernel = op.constant((rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) * 0.1).astype(np.float32))
    mixed = op.convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    save("denoiser", op.subtract(op.add(mixed, level), op.tanh(colour)), [x, t, text])
    paler = op.multiply(op.tanh(colour), op.constant(np.float32(0.5)))
    save(bundle.student_part(STUDENT), op.subtract(op.add(mixed, level), paler), [x, t, text])

    pixels = op.parameter([-1, 3, -1, -1], np.float32, name="pixels")
    down = op.constant((np.ones((CHANNELS, 3, 8, 8)) / 192).astype(np.float32))
    save("vae_encoder", op.convolution(pixels, down, [8, 8], [0, 0], [0, 0], [1, 1]), [pixels])

    latents = op.parameter([-1, CHANNELS, -1, -1], np.float32, name="latents")
    up = op.constant(rng.uniform(-0.5, 0.5, (CHANNELS, 3, 8, 8)).astype(np.float32))
    save("vae_decoder", op.convolution_backprop_data(latents, up, [8, 8]), [latents])
    (folder / bundle.TOKENIZER).write_text(fake._tokenizer_json(), encoding="utf-8")


def describe(folder: Path, **changes) -> bundle.Bundle:
    made = bundle.Bundle(
        folder=folder,
        name="hand",
        contract=json.loads(CONTRACT.to_json()),
        latent_channels=CHANNELS,
        downscale=8,
        scaling_factor=0.5,
        shift_factor=0.25,
        text_length=LENGTH,
        text_width=WIDTH,
        text_mask=True,
        native_size=(64, 64),
        size_multiple=8,
        max_size=256,
        precision=dict.fromkeys(bundle.PARTS, "fp16"),
        files=bundle.describe_files(folder),
        licence="Apache-2.0",
        attribution=({"author": "nobody", "url": "none"},),
        made_by={"source": "unknown"},
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="session")
def ir_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ir")
    write_files(folder)
    return folder


@pytest.fixture
def ir_bundle(ir_files, tmp_path):
    """A folder of its own with a sound bundle named ``hand``."""
    import shutil

    folder = tmp_path / "hand"
    shutil.copytree(ir_files, folder)
    bundle.write(describe(folder))
    return folder


@pytest.fixture
def student_bundle(ir_bundle):
    """The same with a student named ``quick`` for 2 and 4 steps."""
    student = bundle.Student(
        name=STUDENT, contract=json.loads(QUICK.to_json()), precision="int8", source="unknown"
    )
    files = bundle.describe_files(ir_bundle, [STUDENT])
    bundle.write(describe(ir_bundle, students=(student,), files=files))
    return ir_bundle


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test sees the models or the cache of the person who runs it."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("FEWSTEP_MODELS", raising=False)
