"""A real training as a server's process: stopped, gone on with, and found as an adapter. Tiny, and slow."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))

from families_builder import Case, build

from fewstep.engine.adapters import Catalogue
from fewstep.server.children import Children
from fewstep.server.database import Database
from fewstep.server.datasets import Datasets
from fewstep.server.history import History
from fewstep.server.jobstore import JobStore
from fewstep.server.schemas import work
from fewstep.server.settings import ServerSettings
from fewstep.training import checkpointing

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Children, JobStore]]:
    build(Case("sd1", "txt2img", scheduler="ddim"), tmp_path / "own" / "tiny")
    settings = ServerSettings(data=tmp_path / "data", models_dirs=(tmp_path / "own",), grace=120.0, threads=1)
    database = Database(settings.database_url)
    jobs = JobStore(database)
    datasets = Datasets(settings.data / "datasets", settings.limits)
    pictures = {}
    for index in range(3):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 16), (60 * index, 0, 0)).save(buffer, "PNG")
        pictures[f"p{index}"] = buffer.getvalue()
    datasets.add("", "apples", pictures, {name: f"apple {name}" for name in pictures})
    children = Children(settings, jobs=jobs, history=History(database, settings.outputs), datasets=datasets)
    yield children, jobs
    children.begin_drain()
    children.close()
    jobs.close()
    database.close()


def until(true: Callable[[], object], children: Children, job_id: str, seconds: float = 250.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, children.log(job_id, 30)
        time.sleep(0.05)


def test_a_training_is_stopped_goes_on_and_is_found(world: tuple[Children, JobStore]) -> None:
    children, jobs = world

    def state() -> str:
        return jobs.get(job_id, None).state

    body = work.TrainBody(
        kind="train", name="apple", dataset="apples", model="tiny", images=120, batch_size=1, rank=2,
        trigger="$(apple) --x", seed=3,
    )  # fmt: skip
    job_id = children.submit(body)
    child = children.pending(job_id)
    assert child is not None
    until(
        lambda: child.future.done() or (child.progress is not None and child.progress.step > 10),
        children,
        job_id,
    )
    assert not child.future.done(), jobs.get(job_id, None).error
    assert child.progress is not None and child.progress.total == 120
    assert child.cancel()
    until(lambda: state() not in ("queued", "running"), children, job_id)
    assert state() == "cancelled", jobs.get(job_id, None).error
    reached = checkpointing.found(children.run(job_id).work / "checkpoints")[-1].name
    assert 0 < int(reached) < 120
    assert not (children._settings.data / "loras").exists()

    until(lambda: children.pending(job_id) is None, children, job_id)
    children.again(jobs.get(job_id, None))
    until(lambda: state() not in ("queued", "running"), children, job_id)
    assert state() == "done", (jobs.get(job_id, None).error, children.log(job_id, 30))
    assert f"at {int(reached)} images" in "\n".join(children.log(job_id, 1000))
    found = Catalogue((children._settings.data / "loras",)).find("apple")
    assert found.path.stat().st_size > 1000
