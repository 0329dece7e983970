"""Drawing with a student of a bundle: bits, what is loaded for it, and what the record says."""

import json

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.diffusion.contract import SamplingContract
from fewstep.engine.backends import compiled_cache
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError


@pytest.fixture
def engine(student_bundle):
    opened = Engine(student_bundle)
    yield opened
    opened.close()


def draw(engine, **given):
    return engine.generate(resolve(engine.info, **{"prompt": "a red apple", **given}))


def loaded(engine):
    return {part for part, _ in engine.backend._loaded}


def test_the_same_seed_gives_the_same_bits_and_the_base_does_not_notice(engine, ir_bundle, request):
    alone = draw(engine, seed=3).images[0]
    first, second = (draw(engine, seed=3, num_inference_steps=4).images[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, alone)
    assert np.array_equal(draw(engine, seed=3).images[0], alone)
    plain = draw(engine, seed=3, num_inference_steps=4, student="none").images[0]
    assert not np.array_equal(plain, first)


def test_a_bundle_draws_and_says_the_same_before_a_student_joins_it(ir_bundle, request):
    engine = Engine(ir_bundle)
    before = draw(engine, seed=3)
    engine.close()
    engine = Engine(request.getfixturevalue("student_bundle"))
    after = draw(engine, seed=3)
    engine.close()
    assert np.array_equal(before.images[0], after.images[0])
    assert before.record == after.record
    assert "student" not in after.record


def test_only_the_denoiser_that_draws_is_loaded(student_bundle):
    for given, own, other in (
        ({"num_inference_steps": 2}, "students/quick", "denoiser"),
        ({}, "denoiser", "students/quick"),
    ):
        engine = Engine(student_bundle)
        draw(engine, **given)
        assert own in loaded(engine)
        assert other not in loaded(engine)
        engine.close()


def test_the_cache_tells_students_apart(engine, tmp_path):
    draw(engine, guidance_scale=1.0)
    blobs = set((tmp_path / "cache" / "compiled").iterdir())
    draw(engine, num_inference_steps=4)
    more = set((tmp_path / "cache" / "compiled").iterdir()) - blobs
    assert len(more) == 1  # of the same shape, one row
    assert all(file.parent == compiled_cache.folder() / "compiled" for file in more)


def test_the_record_names_the_student(engine, student_bundle):
    record = draw(engine, num_inference_steps=2).record
    assert record["student"] == {
        "name": "quick",
        "method": "lightning",
        "hash": bundle.open_bundle(student_bundle).files["students/quick.bin"].sha256,
    }
    assert record["engine"]["precision"] == "int8"
    assert (record["num_inference_steps"], record["guidance_scale"], record["solver"]) == (2, 1.0, "ddim")
    assert draw(engine).record["engine"]["precision"] == "fp16"


def test_one_row_a_step_and_no_guidance():
    class Counting(FakeBackend):
        def __init__(self):
            super().__init__(students={"few": (4,)})
            self.seen = []

        def denoise(self, x, t, text, student=None):
            self.seen.append((student, len(x), round(float(t[0]))))
            return super().denoise(x, t, text, student)

    backend = Counting()
    engine = Engine(backend=backend)
    result = draw(engine, num_inference_steps=4)
    assert backend.seen == [("few", 1, t) for t in (999, 749, 499, 249)]
    assert result.record["student"] == {"name": "few", "method": "fake", "hash": f"{1:064d}"}
    assert result.warnings == []


def test_warnings_of_the_choice_reach_the_result(engine):
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    result = draw(engine, student="quick", init_image=image, negative_prompt="blue")
    assert len(result.warnings) == 2
    assert result.record["warnings"] == result.warnings


def test_a_student_that_wants_guidance_is_refused(student_bundle):
    file = student_bundle / bundle.FILE_NAME
    raw = json.loads(file.read_text())
    raw["students"][0]["contract"] |= {"guidance": "classifier_free", "guidance_scale": 2.0}
    SamplingContract.from_json(json.dumps(raw["students"][0]["contract"]))
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="student 'quick': its contract has guidance"):
        Engine(student_bundle)
    raw["students"][0]["contract"] = {"surprise": 1}
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="unknown key 'surprise'"):
        Engine(student_bundle)


def test_the_command_line_lists_the_students_of_a_bundle(student_bundle, capsys):
    from fewstep.cli.main import main

    assert main(["info", str(student_bundle), "--json"]) == 0
    student = json.loads(capsys.readouterr().out)["students"]["quick"]
    assert (student["method"], student["steps"], student["precision"]) == ("lightning", [2, 4], "int8")
    assert student["hash"] == bundle.open_bundle(student_bundle).files["students/quick.bin"].sha256
    assert main(["models", "--models-dir", str(student_bundle)]) == 0
    assert "quick 2,4" in capsys.readouterr().out
