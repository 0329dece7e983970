"""Students beside their base in a pipeline folder: written, found, and compared with the base."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from fewstep.checkpoint.safetensors import folder_hash
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError
from fewstep.models import load, students


@pytest.fixture
def folder(tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "model", tiny_components, texts={})
    return tmp_path / "model"


@pytest.fixture
def few(tiny_components):
    return dataclasses.replace(
        tiny_components.contract, method="lcm", solver="lcm", boundary_scaling=0.0, num_inference_steps=2,
        allowed_steps=(1, 2), guidance="off", guidance_scale=1.0, guidance_rescale=0.0,
        negative_prompt_effective=False,
    )  # fmt: skip


@pytest.fixture
def network(tiny_components):
    changed = copy.deepcopy(tiny_components.denoiser)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    return changed


def test_round_trip_is_bit_equal(folder, few, network):
    before = folder_hash(folder)
    out = load.save_student(folder, "few", network, few, half=False)
    assert out == folder / "students" / "few"
    loaded, contract = load.load_student(folder, "few")
    assert contract == few
    ours, theirs = network.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert load.student_contracts(folder) == {"few": few}
    assert folder_hash(folder) == before  # a student has a hash of its own
    assert json.loads((out / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == (
        "LCMScheduler"
    )


def test_a_student_is_drawn_with_when_its_step_count_is_asked_for(folder, few, network, tiny_components):
    load.save_student(folder, "few", network, few)
    engine = Engine(folder, "torch")
    drawn = engine.generate(resolve(engine.info, prompt="red apple", num_inference_steps=2))
    assert drawn.record["student"]["name"] == "few"
    assert drawn.record["student"]["hash"] == folder_hash(folder / "students" / "few")
    assert set(engine.backend._denoisers) == {"few"}
    base = engine.generate(resolve(engine.info, prompt="red apple")).images[0]
    load.save_pipeline(folder.parent / "plain", tiny_components, texts={})
    plain = Engine(folder.parent / "plain", "torch")
    alone = plain.generate(resolve(plain.info, prompt="red apple"))
    assert (alone.images[0] == base).all()
    assert alone.record["model_hash"] == engine.info.hash


def test_bad_input(folder, few, network, tiny_components, tmp_path):
    with pytest.raises(UsageError, match="not a name for a student"):
        load.save_student(folder, "../few", network, few)
    with pytest.raises(CheckpointError, match="student 'few': its contract has guidance"):
        load.save_student(folder, "few", network, tiny_components.contract)
    with pytest.raises(NotFoundError, match="no such folder"):
        load.save_student(tmp_path / "none", "few", network, few)
    with pytest.raises(NotFoundError, match="no student 'few'"):
        load.load_student(folder, "few")
    assert load.student_contracts(folder) == {}
    load.save_student(folder, "few", network, few)
    with pytest.raises(OutputError, match="exists already"):
        load.save_student(folder, "few", network, few)
    load.save_student(folder, "few", network, few, replace=True)
    (folder / "students" / "few" / "fewstep.json").unlink()
    with pytest.raises(CheckpointError, match=r"no fewstep\.json"):
        Engine(folder, "torch")
    (folder / "students" / "few").rename(folder / "students" / "A few")
    with pytest.raises(CheckpointError, match="rename the folder"):
        load.student_contracts(folder)


def test_a_fingerprint_is_of_the_rounded_weights(network):
    before = students.fingerprint(network)
    assert students.fingerprint(copy.deepcopy(network).half()) == before
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 0.5
    assert students.fingerprint(network) != before


def test_a_saved_student_of_another_solver_names_its_scheduler(tiny_components, few, tmp_path):
    """A distillation's own folder: plain diffusers must not sample an LCM student with DDIM."""
    load.save_pipeline(tmp_path / "lcm", dataclasses.replace(tiny_components, contract=few), texts={})
    index = json.loads((tmp_path / "lcm" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert load.pipeline(tmp_path / "lcm").contract == few
