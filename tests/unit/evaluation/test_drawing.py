"""Different prompts in one batch have the pixels of single requests; what is kept is not drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.engine import text
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, EngineError, UsageError
from fewstep.evaluation.drawing import Job, Sampling, draw, draw_batch
from fewstep.models import load

JOBS = [Job("a red apple", 7), Job("a blue dog", 3), Job("the green dog on a red apple", 3), Job("apple", 0)]


def single(engine: Engine, job: Job, **settings: Any) -> np.ndarray[Any, Any]:
    request = resolve(engine.info, prompt=job.prompt, seed=job.seed, **settings)
    return engine.generate(request).images[0]


@pytest.mark.parametrize("solver", [None, "dpmpp_2m", "euler_a", "unipc"])
@pytest.mark.parametrize("guidance", [None, 1.0])
def test_a_batch_of_prompts_equals_single_requests(solver: str | None, guidance: float | None) -> None:
    engine = Engine(backend=FakeBackend())
    settings = {"num_inference_steps": 4, "guidance_scale": guidance, "solver": solver}
    drawn = list(draw(engine, JOBS, Sampling(**settings), batch=3))
    for job, image in zip(JOBS, drawn, strict=True):
        expected = single(engine, job, **settings)
        assert np.abs(image.astype(int) - expected).max() <= 1, job
    assert not np.array_equal(drawn[1], drawn[2])


def test_a_real_pipeline_in_batches_equals_single_requests(tiny_components: Any, tmp_path: Path) -> None:
    load.save_pipeline(tmp_path / "tiny", tiny_components, texts={}, half=False)
    engine = Engine(tmp_path / "tiny", "torch")
    jobs = [Job("red apple", 1), Job("apples", 2), Job("a b c", 3)]
    for job, image in zip(jobs, draw(engine, jobs, batch=3), strict=True):
        assert np.abs(image.astype(int) - single(engine, job)).max() <= 1, job


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
def test_pictures_to_start_from_in_one_batch_equal_single_requests(strength: float) -> None:
    engine = Engine(backend=FakeBackend())
    plain = np.zeros((3, 128, 128, 3), np.uint8)
    plain[0, :64], plain[1, :, :64], plain[2] = 255, 200, 90
    requests = [
        resolve(
            engine.info, prompt=job.prompt, seed=job.seed, num_inference_steps=5, init_image=picture,
            strength=strength,
        )
        for job, picture in zip(JOBS, plain, strict=False)
    ]  # fmt: skip
    drawn = draw_batch(engine.backend, text.tokenizers(engine.info), requests)
    for request, image in zip(requests, drawn, strict=True):
        expected = engine.generate(request).images[0]
        assert np.abs(image.astype(int) - expected).max() <= 1, request.prompt


def test_prompts_of_an_evaluation_have_the_grammar_of_all_prompts(tmp_path: Path) -> None:
    """Before, brackets were words, and a prompt with AND broke the batch that it was in."""
    texts = [
        "a red apple", "a (red:1.5) apple", "a red dog AND a blue dog:0.5", "[red:blue:0.5] dog",
        "[red|blue]", r"a \(red\) dog", "a red apple BREAK a blue dog", "a green dog", "a dog",
    ]  # fmt: skip
    jobs = [Job(text, seed) for seed, text in enumerate(texts)]
    engine = Engine(backend=FakeBackend())
    drawn = list(draw(engine, jobs, batch=3, folder=tmp_path))
    for job, image in zip(jobs, drawn, strict=True):
        assert np.abs(image.astype(int) - single(engine, job)).max() <= 1, job
    bare = single(engine, jobs[1], emphasis="none")
    assert np.abs(drawn[1].astype(int) - bare).max() > 1
    again = list(draw(engine, jobs, batch=2, folder=tmp_path))
    assert all(np.array_equal(*pair) for pair in zip(drawn, again, strict=True))


def test_a_student_is_drawn_with_its_own_contract_and_kept_apart(tmp_path: Path) -> None:
    engine = Engine(backend=FakeBackend(students={"few": (4, 2)}))
    drawn = {}
    for student in ("few", "none"):
        sampling = Sampling(num_inference_steps=4, student=student)
        images = list(draw(engine, JOBS, sampling, folder=tmp_path))
        for job, image in zip(JOBS, images, strict=True):
            expected = single(engine, job, num_inference_steps=4, student=student)
            assert np.abs(image.astype(int) - expected).max() <= 1, job
        drawn[student] = images[0]
    assert not np.array_equal(drawn["few"], drawn["none"])
    assert len(list(tmp_path.iterdir())) == 2 * len(JOBS)
    by_steps = list(draw(engine, JOBS[:1], Sampling(num_inference_steps=4), folder=tmp_path))
    np.testing.assert_array_equal(by_steps[0], drawn["few"])


def test_kept_images_are_not_drawn_again_and_damaged_ones_are(tmp_path: Path) -> None:
    backend = FakeBackend()
    engine = Engine(backend=backend)
    first = list(draw(engine, JOBS, folder=tmp_path))
    calls = backend.calls
    again = list(draw(engine, JOBS, folder=tmp_path))
    assert backend.calls == calls
    np.testing.assert_array_equal(again, first)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(JOBS)
    files[0].write_bytes(files[0].read_bytes()[:100])
    np.testing.assert_array_equal(list(draw(engine, JOBS, folder=tmp_path)), first)
    assert backend.calls > calls


@pytest.mark.parametrize(
    "other", [Sampling(num_inference_steps=2), Sampling(guidance_scale=5.0), Sampling(solver="euler")]
)
def test_other_settings_are_other_files(other: Sampling, tmp_path: Path) -> None:
    engine = Engine(backend=FakeBackend())
    list(draw(engine, JOBS[:1], folder=tmp_path))
    list(draw(engine, JOBS[:1], other, folder=tmp_path))
    list(draw(engine, [Job(JOBS[0].prompt, 8)], folder=tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_an_interrupted_drawing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    backend = FakeBackend()
    engine = Engine(backend=backend)
    steps = engine.info.contract.num_inference_steps
    told: list[tuple[int, int]] = []
    with pytest.raises(Cancelled):
        list(
            draw(
                engine,
                JOBS,
                folder=tmp_path,
                batch=1,
                on_image=lambda done, total: told.append((done, total)),
                cancelled=lambda: backend.calls >= 2 * steps + 1,
            )
        )
    assert told == [(1, 4), (2, 4)]
    assert len(list(tmp_path.iterdir())) == 2
    before = backend.calls
    list(draw(engine, JOBS, folder=tmp_path, batch=1))
    assert backend.calls - before == 2 * steps


def test_values_that_are_not_finite_are_an_error_that_names_the_prompt() -> None:
    with pytest.raises(EngineError, match="'a red apple' \\(seed 7\\)"):
        list(draw(Engine(backend=FakeBackend(poison_after=1)), JOBS))


def test_a_setting_out_of_range_is_refused_before_anything_is_drawn() -> None:
    backend = FakeBackend()
    with pytest.raises(UsageError, match="steps is 0"):
        list(draw(Engine(backend=backend), JOBS, Sampling(num_inference_steps=0)))
    assert backend.calls == 0
