"""Long work as processes: what is started, watched, stopped, left and refused. The process is a fake."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_child
import numpy as np
import pytest
from PIL import Image

from fewstep.cli import child
from fewstep.errors import ConflictError, DataError, NotFoundError, QueueFull, RunError, TooLarge, UsageError
from fewstep.server import childprocess, distilling, media, worklist, workplan
from fewstep.server.children import Children, runs_folder
from fewstep.server.database import Database
from fewstep.server.datasets import Datasets, slug
from fewstep.server.history import History
from fewstep.server.jobstore import JobStore
from fewstep.server.schemas import work
from fewstep.server.settings import Key, ServerSettings


class World:
    """What `Children` needs."""

    def __init__(self, data: Path) -> None:
        self.settings = ServerSettings(
            data=data, grace=2.0, models_dirs=(data / "own",), keys=(Key(name="ann", secret="a" * 12),)
        )
        self.database = Database(f"sqlite:///{data}/fewstep.db")
        self.jobs = JobStore(self.database)
        self.history = History(self.database, data / "images")
        self.datasets = Datasets(data / "datasets", self.settings.limits)
        pipeline(data / "own" / "base")
        self.datasets.add("", "dog", {"one": png()}, {"one": "a dog"})
        self.children = Children(
            self.settings, jobs=self.jobs, history=self.history, datasets=self.datasets, size=2
        )

    def state(self, job_id: str) -> str:
        return self.jobs.get(job_id, None).state

    def folder(self, job_id: str) -> Path:
        return runs_folder(self.settings) / job_id

    def seen(self, job_id: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder(job_id) / "seen.json").read_text())
        return value


def pipeline(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def png(width: int = 20, height: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def train(name: str = "my-dog", trigger: str | None = "fast", **more: Any) -> work.TrainBody:
    return work.TrainBody(kind="train", name=name, dataset="dog", model="base", trigger=trigger, **more)


def let_go(world: World, job_id: str) -> None:
    """Let slow work end, once it has begun."""
    until(lambda: (world.folder(job_id) / "run").is_dir())
    (world.folder(job_id) / "run" / "go").touch()


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.01)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(
        childprocess, "command", lambda config: [sys.executable, fake_child.__file__, str(config)]
    )
    made = World(tmp_path)
    try:
        yield made
    finally:
        made.children.close()
        made.jobs.close()
        made.database.close()


def test_a_training_is_recorded_run_and_its_adapter_found_by_name(world: World) -> None:
    job_id = world.children.submit(train(images=600), owner="")
    assert world.jobs.get(job_id, None).kind == "train"
    child_job = world.children.pending(job_id)
    if child_job is not None:
        assert child_job.future.result(30) == {"lora": "my-dog"}
    job = world.jobs.get(job_id, None)
    assert (job.state, job.result) == ("done", {"lora": "my-dog"})
    assert (world.settings.data / "loras" / "my-dog.safetensors").read_bytes() == b"weights"
    given = world.seen(job_id)["given"]
    assert given["command"] == "train"
    assert given["arguments"]["positionals"] == ["lora", str(world.datasets.folder("", "dog"))]
    assert ["images", "600"] in given["arguments"]["options"]
    assert child.arguments(given)[0] == "train"


def test_progress_samples_and_log_of_work_that_runs(world: World) -> None:
    job_id = world.children.submit(train(trigger="slow"))
    job = world.children.pending(job_id)
    assert job is not None
    until(lambda: job.progress is not None and job.progress.step == 300)
    assert job.progress is not None
    assert (job.progress.total, job.progress.message) == (
        600, "300 of 600 images, 9.0 images/s loss 0.2000, 0:00:33 left",
    )  # fmt: skip
    assert list(world.children.samples(job_id)) == ["0000000300.png"]
    assert world.children.log(job_id, 2)[0] == "fewstep: encoding 1/2"
    assert world.children.uses("", "dog") and not world.children.uses("other", "dog")
    let_go(world, job_id)
    job.future.result(30)
    assert not world.children.uses("", "dog")


def test_cancelled_work_saves_and_is_done_again_from_there(world: World) -> None:
    job_id = world.children.submit(train(trigger="slow"))
    job = world.children.pending(job_id)
    assert job is not None
    until(lambda: job.progress is not None and job.progress.step == 300)
    assert job.cancel()
    until(lambda: world.state(job_id) == "cancelled")
    assert (world.folder(job_id) / "run" / "saved").exists()
    assert not (world.settings.data / "loras" / "my-dog.safetensors").exists()

    until(lambda: world.children.pending(job_id) is None)
    world.children.again(world.jobs.get(job_id, None))
    again = world.children.pending(job_id)
    assert again is not None
    let_go(world, job_id)
    assert again.future.result(30) == {"lora": "my-dog"}
    seen = world.seen(job_id)
    assert seen["again"] and seen["given"]["arguments"]["flags"] == ["resume"]
    assert world.jobs.get(job_id, None).attempts == 2


def test_work_that_fails_says_why_without_paths(world: World) -> None:
    job_id = world.children.submit(train(trigger="bad"))
    until(lambda: world.state(job_id) == "failed")
    error = world.jobs.get(job_id, None).error
    assert error == "place.txt: cannot be read; give another"
    assert str(world.settings.data) not in " ".join(world.children.log(job_id, 10))


def test_output_of_megabytes_stops_nothing(world: World) -> None:
    job_id = world.children.submit(train(trigger="loud"))
    until(lambda: world.state(job_id) == "done")


def test_a_name_is_given_once(world: World) -> None:
    first = world.children.submit(train(trigger="slow"))
    with pytest.raises(ConflictError, match="another job"):
        world.children.submit(train())
    pending = world.children.pending(first)
    assert pending is not None
    let_go(world, first)
    pending.future.result(30)
    with pytest.raises(ConflictError, match="my-dog"):
        world.children.submit(train())
    with pytest.raises(ConflictError, match="base"):
        world.children.submit(work.MergeBody(kind="merge", name="base", models=("base", "base")))


def test_the_queue_is_bounded_and_refuses_before_anything_is_recorded(world: World) -> None:
    first = world.children.submit(train("a", "slow"))
    until(lambda: world.state(first) == "running")
    waiting = [world.children.submit(train(name)) for name in ("b", "c")]
    with pytest.raises(QueueFull):
        world.children.submit(train("d"))
    assert len(world.jobs.list()) == 3
    one = world.children.pending(waiting[1])
    assert one is not None and world.children.position(one) == 2
    assert one.cancel()
    assert world.state(waiting[1]) == "cancelled"
    let_go(world, first)
    until(lambda: world.state(waiting[0]) == "done")


def test_the_same_order_sent_twice_is_done_once(world: World) -> None:
    keys = {"idempotency_key": "k", "fingerprint": "f"}
    first = world.children.submit(train(), **keys)
    assert world.children.submit(train(), **keys) == first
    until(lambda: world.state(first) == "done")
    assert world.children.submit(train(), **keys) == first
    with pytest.raises(ConflictError):
        world.children.submit(train("other"), idempotency_key="k", fingerprint="g")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (work.TrainBody(kind="train", name="x", dataset="cat", model="base"), "cat"),
        (work.TrainBody(kind="train", name="x", dataset="dog", model="/etc"), "/etc"),
        (work.TrainBody(kind="train", name="x", dataset="dog", model="none-such"), "base"),
        (work.MergeBody(kind="merge", name="x", models=("../base",)), "base"),
        (work.DistillBody(kind="distill", name="x", recipe="toys/none"), "toys/lcm"),
        (work.EnlargeBody(kind="upscale", images=("0" * 32,)), "picture"),
    ],
)
def test_names_that_are_not_known_are_refused(world: World, body: work.WorkBody, error: str) -> None:
    with pytest.raises(NotFoundError, match=error):
        world.children.submit(body)
    assert not world.jobs.list()


def test_pictures_are_enlarged_into_the_history_with_their_parents(world: World) -> None:
    pixels = np.full((16, 20, 3), 90, np.uint8)
    kept = world.history.add(pixels, {"prompt": "a dog"}, parameters="a dog", owner="ann")
    body = work.EnlargeBody(kind="upscale", images=(kept.id,), scale=4, upscaler="lanczos")
    with pytest.raises(NotFoundError):
        world.children.submit(body, owner="bob")
    job_id = world.children.submit(body, owner="ann")
    until(lambda: world.state(job_id) == "done")
    result = world.jobs.get(job_id, "ann").result
    assert result is not None
    (image,) = result["images"]
    assert (image["parent"], image["width"], image["height"]) == (kept.id, 80, 64)
    assert world.history.get(image["id"], "ann").parent == kept.id
    with pytest.raises(TooLarge, match="pixels"):
        world.children.submit(
            work.EnlargeBody(kind="upscale", images=(kept.id,), width=16000, height=16000), owner="ann"
        )
    with pytest.raises(UsageError):
        world.children.submit(
            work.EnlargeBody(kind="upscale", images=(kept.id,), upscaler="model.pth"), owner="ann"
        )


def test_several_files_that_are_sent_are_enlarged_in_their_order(world: World) -> None:
    sent = [base64.b64encode(media.encode(np.full((16, 20 + n, 3), n, np.uint8), kind="png")).decode()
            for n in range(3)]  # fmt: skip
    body = work.EnlargeBody(kind="upscale", files=tuple(sent), scale=4, upscaler="lanczos")
    job_id = world.children.submit(body, owner="ann")
    until(lambda: world.state(job_id) == "done")
    job = world.jobs.get(job_id, "ann")
    assert job.result is not None
    assert [one["width"] for one in job.result["images"]] == [80, 84, 88]
    assert sent[0] not in json.dumps(job.order)  # the database keeps no pictures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"upscaler": "waifu2x-photo", "noise": 2}, ("waifu2x-photo-noise2", "none")),
        ({"upscaler": "auto", "noise": -1}, ("waifu2x-cunet", "none")),
        ({"upscaler": "nearest", "upscaler_2": "lanczos"}, ("nearest", "lanczos")),
        ({"upscaler": "nearest", "upscaler_2": "lanczos", "visibility": 0}, ("nearest", "none")),
        ({"upscaler": "none", "restore": {"strength": 0.2}}, ("none", "none")),
        ({"upscaler": "lanczos", "noise": 1}, "no noise levels"),
        ({"upscaler": "none"}, "nothing is to be restored"),
    ],
)
def test_upscalers_of_an_order(given: dict[str, Any], expected: Any) -> None:
    body = work.EnlargeBody.model_validate({"kind": "upscale", "images": ["0" * 32], **given})
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            worklist.upscalers(body)
    else:
        assert worklist.upscalers(body) == expected


def test_reports_are_results_without_paths(world: World) -> None:
    job_id = world.children.submit(work.EvaluateBody(kind="evaluate", models=("base",), n=4))
    until(lambda: world.state(job_id) == "done")
    job = world.jobs.get(job_id, None)
    assert job.result == {"reports": [{"model": "fake", "place": "model"}]}


def test_every_kind_makes_a_command_that_the_child_takes(world: World, tmp_path: Path) -> None:
    (world.settings.data / "own" / "base" / "fewstep.json").write_text(contract())
    for part in ("vae", "text_encoder", "tokenizer"):
        (world.settings.data / "own" / "base" / part).mkdir()
    bodies: list[work.WorkBody] = [
        train(rank=4, learning_rate=1e-4, seed=1, batch_size=2, precision="bf16", threads=2, minutes=3.5),
        train(student="four"),
        train(images=80, grids=0),
        train(images=80, grids=1),
        work.TrainBody(kind="train", what="embedding", name="word", dataset="dog", model="base"),
        work.TrainBody(kind="train", what="dreambooth", name="whole", dataset="dog", model="base"),
        work.DistillBody(kind="distill", name="toy", recipe="toys/lcm", images=100, seed=2, threads=1),
        work.DistillBody(kind="distill", name="fast", method="lcm", dataset="dog", model="base"),
        work.DistillBody(kind="distill", name="fast", method="dmd2", dataset="dog", model="base"),
        work.DistillBody(kind="distill", name="fast", method="flash", dataset="dog", model="base",
                         bundle="dial"),
        work.ExportBody(kind="export", name="bundle", model="base",
                        students=(work.StudentOf(name="four", model="base"),)),
        work.EvaluateBody(kind="evaluate", models=("base",), guidance_rescale=0.5, student="none"),
        work.MergeBody(kind="merge", name="mix", models=("base", "base"), ratio=0.5, vae="base",
                       blocks="IN00=0.2,M00=1", dtype="fp16"),
        work.EnlargeBody(kind="upscale", images=("0" * 32,), scale=2, crop=False, upscaler="lanczos"),
        work.EnlargeBody(kind="upscale", images=("0" * 32,), upscaler="nearest", upscaler_2="lanczos",
                         restore=work.RestoreBody(prompt="--out=/x\n@f", negative_prompt="-n", student="four",
                                                  model="base", num_inference_steps=2, at="tiles")),
    ]  # fmt: skip
    from fewstep.cli.main import group

    for body in bodies:
        plan = worklist.plan(
            body, workplan.Run(folder=tmp_path / "job"), find=workplan.finder(world.settings),
            dataset=lambda name: world.datasets.folder("", name), threads=1, resume=True,
        )  # fmt: skip
        for command in plan.commands:
            line = child.arguments(json.loads(json.dumps(command.to_json())))
            parsed = group().get_command(None, line[0]).make_context(line[0], line[1:])
            for name, value in command.options:
                assert f"--{name}={value}" in line
            assert parsed.params  # typer takes every option


def contract() -> str:
    from fewstep.diffusion.contract import SamplingContract, ScheduleSpec

    return SamplingContract(
        base_family="sd1", prediction_type="epsilon", schedule=ScheduleSpec(), num_inference_steps=20,
        guidance_scale=5.0, native_sizes=((64, 64),),
    ).to_json()  # fmt: skip


def test_shipped_recipes_survive_the_server(tmp_path: Path) -> None:
    """What the server writes anew says the same as the file, but for what an order may change."""
    from fewstep.distillation.sections import DistillationRecipe
    from fewstep.training.recipe import parse_as, read_recipe, recipe_diff, recipe_names

    for name in recipe_names(("distillation",)):
        body = work.DistillBody(kind="distill", name="x", recipe=name, images=7, seed=5)
        plan = distilling.by_recipe(body, workplan.Run(folder=tmp_path), name, None, False)
        assert plan.recipe is not None
        was = parse_as(DistillationRecipe, read_recipe(name, ("distillation",))[0])
        now = parse_as(DistillationRecipe, plan.recipe)
        changed = {change.key for change in recipe_diff(was, now)}
        assert now.seed == 5 and all(stage.stop.images == 7 for stage in now.stages)
        assert changed <= {"seed", "stages", "runtime.checkpoint_minutes"}, changed


def test_the_log_keeps_what_every_command_said_and_each_counts_for_itself(world: World) -> None:
    (world.settings.data / "own" / "base" / "fewstep.json").write_text(contract())
    for part in ("vae", "text_encoder", "tokenizer"):
        (world.settings.data / "own" / "base" / part).mkdir()
    job_id = world.children.submit(
        work.DistillBody(
            kind="distill", name="fast", method="lcm", dataset="dog", model="base", images=40, bundle="dial"
        )
    )
    job, told = world.children.pending(job_id), []
    assert job is not None
    job.listen(lambda progress: told.append((progress.step, progress.total)))
    assert job.future.result(60) == {"model": "fast", "bundle": "dial"}
    log = world.children.log(job_id, 100)
    assert [line for line in log if "encoding" in line] == [
        "fewstep: encoding 1/2"
    ] * 3  # data, distill, export
    # An export that begins is not as far as the distillation before it was.
    assert (0, 0) in told[told.index((600, 600)) :]


def test_a_job_that_is_done_again_has_a_log_of_its_own(world: World) -> None:
    job_id = world.children.submit(train(trigger="bad"))
    until(lambda: world.state(job_id) == "failed")
    before = world.children.log(job_id, 100)
    world.children.again(world.jobs.get(job_id, None))
    until(lambda: world.state(job_id) == "failed" and world.children.pending(job_id) is None)
    assert world.children.log(job_id, 100) == before


def test_a_method_is_checked_by_the_distillation_itself(world: World, tmp_path: Path) -> None:
    from fewstep.distillation.checks import check_recipe
    from fewstep.distillation.sections import DistillationRecipe
    from fewstep.training.recipe import parse_as

    (world.settings.data / "own" / "base" / "fewstep.json").write_text(contract())
    for part in ("vae", "text_encoder", "tokenizer"):
        (world.settings.data / "own" / "base" / part).mkdir()
    orders = [
        work.DistillBody(
            kind="distill", name="x", method=method, dataset="dog", model="base", steps=steps, images=images,
            minutes=minutes,
        )
        for method in ("flash", "lightning", "lcm", "dmd2", "progressive")
        for steps in ((None,) if method == "lcm" else (None, 1, 2, 8))
        for images, minutes in ((None, None), (40, None), (None, 3.0), (400, 0.5))
    ]  # fmt: skip
    for body in orders:
        plan = worklist.plan(
            body, workplan.Run(folder=tmp_path), find=workplan.finder(world.settings),
            dataset=lambda name: world.datasets.folder("", name),
        )  # fmt: skip
        assert plan.recipe is not None
        recipe = parse_as(DistillationRecipe, plan.recipe)
        check_recipe(recipe)
        hours = [stage.stop.hours for stage in recipe.stages]
        # How far it is is told every 25 steps, and fifty times in a short stage: somebody looks on.
        shortest = min(stage.stop.images for stage in recipe.stages)
        assert recipe.runtime.log_images == max(1, min(200, shortest // 50))
        if body.minutes is None:
            seen = sum(stage.stop.images for stage in recipe.stages)
            assert hours == [None] * len(hours)
            assert seen == pytest.approx(body.images or 20_000, abs=8 * len(hours))
        else:
            assert sum(hour or 0 for hour in hours) == pytest.approx(body.minutes / 60)
        if body.method in ("progressive", "lightning"):
            last = recipe.stages[-1].methods[0]
            assert last.student_steps == (body.steps or 4)  # type: ignore[union-attr]
        assert recipe.samples.prompts == ("a dog",)


def test_datasets_are_folders_that_training_reads(world: World) -> None:
    from fewstep.data.sources.folder import FolderSource

    datasets = world.datasets
    datasets.add("ann", "cats", {"b": png(40, 30), "a": png()}, {"a": "a cat"})
    datasets.caption("ann", "cats", {"b": "zwei Katzen"})
    source = FolderSource(datasets.folder("ann", "cats"))
    assert [(source.key(i), source.caption(i)) for i in range(2)] == [
        ("a.png", "a cat"), ("b.png", "zwei Katzen"),
    ]  # fmt: skip
    assert [(one.name, one.width, one.height) for one in datasets.pictures("ann", "cats")] == [
        ("a", 20, 16), ("b", 40, 30),
    ]  # fmt: skip
    with pytest.raises(NotFoundError):
        datasets.folder("bob", "cats")
    datasets.remove("ann", "cats", "a")
    assert datasets.listed("ann")[0].pictures == 1
    datasets.remove("ann", "cats")
    assert datasets.listed("ann") == []


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "", "-a", "a b", "a\n", "x" * 65, "ä", "a.png"])
def test_names_of_datasets_and_pictures_are_no_paths(world: World, name: str) -> None:
    with pytest.raises(UsageError):
        world.datasets.add("", name, {"one": png()}, {})
    with pytest.raises(UsageError):
        world.datasets.add("", "dog", {name: png()}, {})
    for owner in ("..", "."):
        world.datasets.add(owner, "mine", {"one": png()}, {})
        assert world.datasets.folder(owner, "mine").parent.parent == world.settings.data / "datasets"


def test_a_dataset_takes_all_or_nothing(world: World) -> None:
    with pytest.raises(DataError):
        world.datasets.add("", "dog", {"two": png(), "three": b"no picture"}, {})
    assert [one.name for one in world.datasets.pictures("", "dog")] == ["one"]
    with pytest.raises(UsageError, match="caption"):
        world.datasets.add("", "dog", {"two": png()}, {"two": "\ud800"})
    with pytest.raises(NotFoundError):
        world.datasets.caption("", "dog", {"one": "new", "two": "new"})
    assert world.datasets.pictures("", "dog")[0].caption == "a dog"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.png", "a"),
        ("../../etc/passwd", "passwd"),
        ("C:\\x\\my cat (1).JPG", "my-cat-1"),
        ("..a..png", "a"),
    ],
)
def test_slugs(file: str, name: str) -> None:
    assert slug(file) == name


def test_a_process_that_cannot_be_started_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(childprocess, "command", lambda config: ["/nonexistent/python", str(config)])
    job_id = world.children.submit(train())
    pending = world.children.pending(job_id)
    if pending is not None:
        with pytest.raises(RunError, match="cannot be started"):
            pending.future.result(30)
    until(lambda: world.state(job_id) == "failed")


def test_grids_are_as_many_as_asked(world: World, tmp_path: Path) -> None:
    for grids, said in ((0, "null"), (2, "40"), (None, None)):
        plan = worklist.plan(
            train(images=80, grids=grids), workplan.Run(folder=tmp_path),
            find=workplan.finder(world.settings), dataset=lambda name: world.datasets.folder("", name),
        )  # fmt: skip
        found = [value for _, value in plan.commands[0].options if value.startswith("samples.every_images=")]
        assert found == ([] if said is None else [f"samples.every_images={said}"])
