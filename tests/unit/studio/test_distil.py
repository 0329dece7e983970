"""Distil: its order, and the report card."""

from __future__ import annotations

from typing import Any

from fewstep.server.schemas.work import DistillBody
from fewstep.studio import report
from fewstep.studio.tabs import distil
from fewstep.studio.words import Words

TEACHER: dict[str, Any] = {"name": "base", "num_inference_steps": 20, "students": []}


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
    bundle = {
        **TEACHER,
        "name": "base-fast",
        "students": [{"name": "fast", "steps": [1, 2, 3, 4, 5, 6, 7, 8]}],
    }
    found = report.rows(bundle, "fast", {4: 0.25, 1: 0.75}, TEACHER)
    assert [(row.model, row.student, row.steps, row.distance) for row in found] == [
        ("base-fast", "fast", 1, 0.75), ("base-fast", "fast", 2, None), ("base-fast", "fast", 4, 0.25),
        ("base-fast", "fast", 8, None), ("base", "none", 20, None),
    ]  # fmt: skip
    job = {"result": {"images": ["f" * 32], "timings": {"total": 0.5}}}
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
