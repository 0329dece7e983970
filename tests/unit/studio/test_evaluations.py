"""Evaluations on the report card: what is ordered, which jobs count for whom, and the table of figures."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from fewstep.server.schemas.work import EvaluateBody
from fewstep.studio import evaluations
from fewstep.studio.client import Api
from fewstep.studio.report import Row
from fewstep.studio.words import Words

STUDENT = Row("base-fast", "fast", 4, 0.25, taught=True, usual=True)
TEACHER = Row("base-fast", "none", 20)
HOSTILE = "\"'><script>alert(1)</script>{{x}}"


def report(top1: float, **more: Any) -> dict[str, Any]:
    figures = [
        {"name": "top1", "value": top1, "low": top1 - 0.1, "high": 1.0, "real": 0.9, "unit": "%"},
        {"name": "kid", "value": 0.00213, "low": None, "high": None, "real": 0.001, "unit": ""},
        {"name": "unheard-of", "value": 1.0, "unit": ""},
    ]
    return {"sets": [{"name": "seen", "prompts": 64, "figures": figures}], **more}


def job(number: int, state: str = "done", title: str = "base-fast", **result: Any) -> dict[str, Any]:
    return {
        "id": f"job{number}",
        "state": state,
        "title": title,
        "result": result or None,
        "error": "no disk",
    }


class Server:
    """Plays the API; ``jobs`` are pairs of a job and its order, the newest first."""

    def __init__(self, *jobs: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.jobs = jobs
        self.asked: list[str] = []

    async def get(self, path: str, **query: Any) -> dict[str, Any]:
        if path == "/api/v1/jobs":
            assert query["kind"] == "evaluate"
            return {"jobs": [one for one, _ in self.jobs]}
        self.asked.append(path)
        return next({"order": order} for one, order in self.jobs if path == f"/api/v1/jobs/{one['id']}/order")


def order(row: Row, **changes: Any) -> dict[str, Any]:
    """As the server gives it back."""
    return EvaluateBody.model_validate({**evaluations.body(row), **changes}).model_dump(mode="json")


def found(server: Server) -> list[evaluations.Evaluated]:
    return asyncio.run(evaluations.found(cast(Api, server), [STUDENT, TEACHER]))


def test_the_order_is_one_of_the_server() -> None:
    body = EvaluateBody.model_validate(evaluations.body(STUDENT, 16))
    assert (body.models, body.student, body.num_inference_steps) == (("base-fast",), "fast", 4)
    assert (body.n, body.diversity, body.prompts) == (16, 2, ("seen",))
    assert EvaluateBody.model_validate(evaluations.body(TEACHER)).student == "none"


def test_jobs_count_for_whom_they_measured_the_newest_first() -> None:
    server = Server(
        (job(6, "running"), order(STUDENT)),
        (job(5, title="other", reports=[report(0.1)]), {}),
        (job(4, reports=[report(0.2)]), order(STUDENT, num_inference_steps=2)),
        (job(3, reports=[report(0.8)]), order(STUDENT)),
        (job(2, reports=[report(0.3)]), order(STUDENT)),
        (job(1, reports=[report(0.4)]), order(STUDENT, prompts=["object"])),
    )
    (one,) = found(server)
    assert one.row == STUDENT and one.going and one.job["id"] == "job6"
    assert one.report is not None and one.report["sets"][0]["figures"][0]["value"] == 0.8
    assert "/api/v1/jobs/job5/order" not in server.asked
    assert found(Server()) == []


def test_a_job_without_a_report_that_can_be_read_has_no_figures() -> None:
    for result in ({}, {"reports": []}, {"reports": ["text"]}, {"reports": [{"sets": "x"}]}):
        (one,) = found(Server((job(1, **result), order(TEACHER))))
        assert one.row == TEACHER and one.report is None and not one.going
        assert evaluations.table(Words("en"), [one]) == ""


def test_figures_stand_side_by_side_with_intervals_and_real_drawings() -> None:
    student = (job(2, reports=[report(0.75)]), order(STUDENT))
    both = found(Server(student, (job(1, reports=[report(0.875)]), order(TEACHER))))
    html = evaluations.table(Words("en"), both)
    assert "Student, 4 steps" in html and "Teacher, 20 steps" in html and "64 prompts" in html
    row = html.split('<tr data-figure="top1">')[1].split("</tr>")[0]
    assert row.count("<td>") == 3
    assert "75.0% <small>[65.0%, 100.0%]" in row and "87.5% <small>[77.5%, 100.0%]" in row
    assert "<td>90.0%</td>" in row
    assert "<td>0.0021</td>" in html and "unheard-of" not in html and html.count("<tr data-figure") == 2
    assert "概念正确" in evaluations.table(Words("zh"), both)
    assert evaluations.told(Words("en"), both) == ""


def test_what_is_measured_or_failed_is_told() -> None:
    rows = found(
        Server(
            (job(2, "running") | {"progress": {"step": 3, "total": 8, "message": HOSTILE}}, order(STUDENT)),
            (job(1, "failed"), order(TEACHER)),
        )
    )
    html = evaluations.told(Words("en"), rows)
    assert "Student, 4 steps" in html and "max='8' value='3'" in html
    assert "<script" not in html and "{{" not in html
    assert "no disk" in html and html.count("data-state=") == 2


def test_one_look_asks_for_what_is_going_and_tells_when_that_ends() -> None:
    class Jobs:
        def __init__(self, *states: str) -> None:
            self.states = list(states)

        async def get(self, path: str) -> dict[str, Any]:
            return job(int(path[-1]), self.states.pop(0))

    going = [
        evaluations.Evaluated(STUDENT, job(1, "running"), None),
        evaluations.Evaluated(TEACHER, job(2), None),
    ]

    def look(before: list[evaluations.Evaluated], *states: str) -> list[evaluations.Evaluated] | None:
        return asyncio.run(evaluations.looked(cast(Api, Jobs(*states)), before))

    now = look(going, "running")
    assert now is not None and [one.job["state"] for one in now] == ["running", "done"]
    assert look(going, "done") is None and look(going, "failed") is None
    assert look(going[1:]) is None and look([]) is None
