"""Distil: its order, and the report card."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, cast

import pytest

from fewstep.server.schemas.work import DistillBody
from fewstep.studio import evaluations, report
from fewstep.studio.client import Api, ApiError
from fewstep.studio.tabs import distil, distil_card
from fewstep.studio.words import Words

BASE: dict[str, Any] = {
    "solver": "ddim", "guidance_scale": 2.0, "num_inference_steps": 20, "negative_prompt_effective": True,
}  # fmt: skip
TEACHER: dict[str, Any] = {"name": "base", "num_inference_steps": 20, "students": [], "contract": BASE}
FAST: dict[str, Any] = {
    "name": "fast",
    "steps": list(range(1, 9)),
    "contract": {**BASE, "num_inference_steps": 4},
}
BUNDLE: dict[str, Any] = {**TEACHER, "name": "base-fast", "students": [FAST]}
STAGES: list[dict[str, Any]] = [
    {"stage": "00-a", "values": {"loss": [[8, 1.0], [16, 0.5]], "seconds": [[8, 4.0], [16, 1.0]]}},
    {"stage": "01-b", "values": {"teacher_distance/4": [[24, 0.25]], "seconds": [[24, 2.0]]}},
]
"""Of a run whose first stage was stopped after 4 s and went on."""


def test_every_order_of_the_form_is_one_of_the_server() -> None:
    for method in distil.METHODS:
        body = distil.order({"grids": 2}, "balls", "base", method, "", 40, dial=True)
        assert DistillBody.model_validate(body).bundle == f"base-{method}-balls"
        assert body["images"] == 40
    timed = distil.order({"minutes": 3.0}, "balls", "base", "lcm", "my fast one", 40, dial=False)
    assert "images" not in timed and "bundle" not in timed
    assert DistillBody.model_validate(timed).name == "my-fast-one"


def test_distances_are_the_last_of_the_last_stage() -> None:
    stages = [
        {"stage": "00-a", "values": {"teacher_distance/8": [[8, 0.9]]}},
        {"stage": "01-b", "values": {"teacher_distance/4": [[8, 0.5], [16, 0.25]], "loss": [[8, 1.0]]}},
        {"stage": "02-c", "values": {"loss": [[8, 1.0]]}},
    ]
    assert report.distances(stages) == {4: 0.25}
    assert report.distances([]) == {}


def test_the_card_lays_steps_beside_distance_and_time() -> None:
    found = report.rows(BUNDLE, "fast", {4: 0.25, 1: 0.75}, TEACHER)
    assert [(row.model, row.student, row.steps, row.distance) for row in found] == [
        ("base-fast", "fast", 1, 0.75), ("base-fast", "fast", 2, None), ("base-fast", "fast", 4, 0.25),
        ("base-fast", "fast", 8, None), ("base", "none", 20, None),
    ]  # fmt: skip
    job = {"result": {"images": ["f" * 32], "timings": {"total": 0.5}}}
    assert report.usual(found) == found[2]  # what its contract says, not the most
    assert report.usual(found[-1:]) is None
    found[2] = found[2].drawn(job)
    card = report.card(Words("en"), found)
    assert "0.2500" in card and "0.50" in card and f"/api/v1/images/{'f' * 32}/file" in card
    assert card.count("<tr data-steps") == 5


def test_a_student_that_is_a_model_of_its_own() -> None:
    own = {**TEACHER, "name": "fast", "num_inference_steps": 4}
    found = report.rows(own, "fast", {}, TEACHER)
    assert [(row.model, row.student, row.steps) for row in found] == [
        ("fast", "none", 4),
        ("base", "none", 20),
    ]
    assert "sample grids" in report.card(Words("en"), found)


def picture(image: str = "a", job_id: str = "j2", **changes: Any) -> dict[str, Any]:
    """As the history has one that `Row.body` draws."""
    record = {
        "model": "base-fast", "student": {"name": "fast"}, "num_inference_steps": 4, "prompt": "a ball",
        "seed": 1, "history": {"timings": {"total": 0.25}},
    }  # fmt: skip
    return {"id": image * 32, "job_id": job_id, "record": {**record, **changes}}


def test_pictures_that_were_compared_are_found_again() -> None:
    row = report.rows(BUNDLE, "fast", {}, TEACHER)[2]
    other: list[dict[str, Any]] = [
        {"student": {"name": "slow"}}, {"student": None}, {"num_inference_steps": 2}, {"seed": 2},
        {"prompt": "a cat"}, {"model": "base"}, {"adapters": [{"name": "x"}]},
    ]  # fmt: skip
    pictures = [picture(job_id=f"o{place}", **changes) for place, changes in enumerate(other)]
    # One of several that were drawn together took the time of all of them.
    pictures += [picture("b", "many"), picture("c", "many", seed=2)]
    assert row.among(pictures, "a ball", 1) == row
    older = picture("d", "j1", history={"timings": {"total": 9.0}})
    found = row.among([*pictures, picture(), older], "a ball", 1)
    assert (found.image, found.seconds) == ("a" * 32, 0.25)
    plain = report.Row("base-fast", "none", 20)
    assert plain.among([picture(student=None, num_inference_steps=20)], "a ball", 1).image == "a" * 32


def job(**result: Any) -> dict[str, Any]:
    return {
        "id": "j1", "state": "done", "started": 100.0, "finished": 184.0,
        "result": {"model": "fast", "bundle": "base-fast", **result},
    }  # fmt: skip


def ordered(**changes: Any) -> dict[str, Any]:
    body = distil.order(
        {"seed": 3, "bundle_precision": "fp16"}, "balls", "base", "lcm", "fast", 24, dial=True
    )
    return DistillBody.model_validate({**body, **changes}).model_dump(mode="json")


def test_the_card_says_what_was_done() -> None:
    told = dict(report.facts(Words("en"), job(), ordered(), STAGES, 5))
    assert told == {
        "Name of the student": "fast", "Method": "LCM", "Teacher": "base", "Pictures": "balls (5)",
        "Images seen": "40 = 16 + 24", "Pictures a step": None, "Seed": 3,
        "Time": "84 s, 7 s of them training", "On the dial of": "base-fast (fp16)",
    }  # fmt: skip
    # The job's own time is that since it went on, and the dataset may be gone.
    later = report.facts(Words("en"), job() | {"started": 180.0}, ordered(), STAGES, None)
    assert ("Time", "7 s") in later and ("Pictures", "balls") in later
    alone = job(bundle=None)
    assert not dict(report.facts(Words("en"), alone, ordered(), STAGES, 5))["On the dial of"]
    recipe = DistillBody(kind="distill", name="x", recipe="toys/lcm").model_dump(mode="json")
    assert dict(report.facts(Words("zh"), alone, recipe, [], None))["方法"] == "toys/lcm"


class Server:
    """Plays the API of a distillation that is done."""

    def __init__(self, *gone: str, pictures: tuple[dict[str, Any], ...] = (), status: int = 404) -> None:
        self.gone, self.pictures, self.status = gone, pictures, status
        self.evaluations: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def get(self, path: str, **query: Any) -> Any:
        what = path.removeprefix("/api/v1/")
        if what in self.gone:
            raise ApiError("it is gone", "not_found", self.status)
        if what == "jobs":
            return {"jobs": [one for one, _ in self.evaluations]}
        if what == "images":
            assert query["since"] == 184.0 and query["text"] == "a ball"
            return {"images": [one for one in self.pictures if one["record"]["model"] == query["model"]]}
        known: dict[str, Any] = {
            "jobs/j1/order": {"order": ordered()}, "jobs/j1/curves": {"stages": STAGES},
            "jobs/j1/samples": {"samples": ["00-a-0000000016.png", "01-b-0000000024.png"]},
            "datasets/balls": {"pictures": [{"caption": " "}, {"caption": "a ball"}]},
            "models/base-fast": BUNDLE, "models/base": TEACHER,
            "models/fast": {**TEACHER, "name": "fast", "num_inference_steps": 4},
        }  # fmt: skip
        known |= {f"jobs/{one['id']}/order": {"order": order} for one, order in self.evaluations}
        return known[what]


def gathered(server: Server, **result: Any) -> distil_card.Card:
    return asyncio.run(distil_card.gathered(Words("en"), cast(Api, server), job(**result)))


def test_the_card_is_gathered_from_the_server_alone() -> None:
    server = Server(pictures=(picture(),))
    student = report.Row("base-fast", "fast", 4)
    done = {
        "sets": [{"name": "seen", "prompts": 64, "figures": [{"name": "top1", "value": 0.5, "unit": "%"}]}]
    }
    evaluated = {"id": "e1", "state": "done", "title": "base-fast", "result": {"reports": [done]}}
    server.evaluations = [(evaluated, evaluations.body(student))]
    card = gathered(server)
    assert card.sample == "/api/v1/jobs/j1/samples/01-b-0000000024.png" and card.prompt == "a ball"
    # The teacher of the dial is the bundle itself: on the same engine, in the same precision.
    assert [(row.model, row.student, row.steps, row.distance) for row in card.rows] == [
        ("base-fast", "fast", 1, None), ("base-fast", "fast", 2, None), ("base-fast", "fast", 4, 0.25),
        ("base-fast", "fast", 8, None), ("base-fast", "none", 20, None),
    ]  # fmt: skip
    assert [row.image for row in card.rows] == [None, None, "a" * 32, None, None]
    html = card.html(Words("en"))
    for part in ("LCM", "balls (2)", card.sample, "/api/v1/images/" + "a" * 32, "50.0%", "Student, 4 steps"):
        assert part in html
    assert "no longer there" not in html
    own = gathered(server, bundle=None)
    assert [(row.model, row.steps) for row in own.rows] == [("fast", 4), ("base", 20)]


def test_what_a_run_measured_outlives_its_models_and_pictures() -> None:
    card = gathered(Server("models/base-fast", "datasets/balls"))
    assert card.rows == [] and card.model is None and card.prompt == "a red apple"
    html = card.html(Words("en"))
    assert "no longer there" in html and "40 = 16 + 24" in html and "samples/01-b-0000000024.png" in html
    assert "<td>balls</td>" in html.replace(" dir='auto'", "")
    with pytest.raises(ApiError):  # a server that fails is no model that is gone
        gathered(Server("models/base-fast", status=503))


def test_an_evaluation_measures_the_student_and_once_its_teacher() -> None:
    card = gathered(Server())
    assert [(row.student, row.steps) for row in distil_card.measured(card, 2)] == [("fast", 2), ("none", 20)]
    assert [row.steps for row in distil_card.measured(card, None)] == [4, 20]
    teacher = card.rows[-1]
    for state, again in (("running", False), ("failed", True)):
        known = evaluations.Evaluated(teacher, {"state": state}, None)
        found = distil_card.measured(dataclasses.replace(card, evaluated=[known]), 8)
        assert [row.steps for row in found] == ([8, 20] if again else [8])
