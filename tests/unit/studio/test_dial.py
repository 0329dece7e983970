"""The quality dial: stops of a model, and times that were measured and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from fewstep.studio import dial
from fewstep.studio.client import Api, ApiError
from fewstep.studio.tabs import create_form
from fewstep.studio.words import Words

BASE = {
    "solver": "ddim", "guidance_scale": 2.0, "num_inference_steps": 20, "negative_prompt_effective": True,
}  # fmt: skip
FEW = {"solver": "lcm", "guidance_scale": 1.0, "num_inference_steps": 4, "negative_prompt_effective": False}
MODEL: dict[str, Any] = {
    "name": "emoji-128", "hash": "h" * 64, "contract": BASE,
    "students": [
        {"name": "four", "steps": [4, 2], "contract": FEW}, {"name": "one", "steps": [1], "contract": FEW},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "studio" / "uploads"))
    return tmp_path / "studio"


class Server:
    """Plays the API: every picture takes half of the time of the one before."""

    def __init__(self, fails: int = 99) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.fails = fails

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return {"id": str(len(self.bodies))}

    async def watch(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        yield {"state": "running"}
        if int(job_id) >= self.fails:
            yield {"state": "failed", "error": "no memory"}
            return
        yield {"state": "done", "result": {"timings": {"total": 2.0 / int(job_id)}}}


def measured(server: Server) -> int:
    async def run() -> int:
        return len([None async for _ in dial.measure(cast(Api, server), MODEL)])

    return asyncio.run(run())


def test_stops_are_the_students_steps_and_the_model_itself_last() -> None:
    found = dial.stops(MODEL)
    assert [(stop.student, stop.steps) for stop in found] == [
        ("one", 1),
        ("four", 2),
        ("four", 4),
        ("none", 20),
    ]
    assert found[0].values() == {
        "student": "one", "num_inference_steps": 1, "solver": "lcm", "guidance_scale": 1.0
    }  # fmt: skip
    assert [stop.negative for stop in found] == [False, False, False, True]
    assert dial.usual(MODEL) == found[2]
    assert dial.usual({**MODEL, "students": []}) == found[3]


def test_the_stop_of_raw_settings_is_found_or_there_is_none() -> None:
    for stop in dial.stops(MODEL):
        assert dial.matching(MODEL, stop.values()) == stop
    assert dial.matching(MODEL, {**dial.stops(MODEL)[0].values(), "guidance_scale": 3}) is None


def test_students_of_the_same_steps_are_told_apart_by_their_names() -> None:
    made = {"name": "fast", "steps": [1, 4, 8], "contract": FEW}
    both = {**MODEL, "students": [*MODEL["students"], made]}
    labels = {name: label for label, name in dial.choices(Words("en"), both)}
    assert labels == {
        "one:1": "1 step · one", "fast:1": "1 step · fast", "four:2": "2 steps · four",
        "four:4": "4 steps · four", "fast:4": "4 steps · fast", "fast:8": "8 steps · fast",
        "none:20": "teacher · 20 steps",
    }  # fmt: skip
    alone = [label for label, _ in dial.choices(Words("en"), {**MODEL, "students": [made]})]
    assert alone == ["1 step", "4 steps", "8 steps", "teacher · 20 steps"]


def test_no_time_is_shown_before_it_was_measured(folder: Path) -> None:
    labels = [label for label, _ in dial.choices(Words("en"), MODEL)]
    assert labels == ["1 step", "2 steps", "4 steps", "teacher · 20 steps"]
    server = Server()
    assert measured(server) == 4
    # The better of two pictures: the first one loads the networks.
    assert [label for label, _ in dial.choices(Words("en"), MODEL)] == [
        "1 step · 1.00 s", "2 steps · 0.50 s", "4 steps · 0.33 s", "teacher · 20 steps · 0.25 s",
    ]  # fmt: skip
    assert "1.00 秒" in dial.choices(Words("zh"), MODEL)[0][0]
    assert len(server.bodies) == 8 and all(body["save"] is False for body in server.bodies)
    assert [body["num_inference_steps"] for body in server.bodies[::2]] == [1, 2, 4, 20]
    assert list(json.loads((folder / "times.json").read_text())) == ["h" * 64]
    assert measured(Server(0)) == 0  # nothing is drawn twice
    assert dial.times("other") == {}


def test_a_time_that_was_measured_changes_no_choice() -> None:
    """The stop may be another by the time that the page gets the label."""
    update = create_form.relabelled(Words("en"), MODEL)
    assert update["choices"] == dial.choices(Words("en"), MODEL) and "value" not in update
    assert "choices" not in create_form.relabelled(Words("en"), None)


def test_a_measurement_that_fails_leaves_what_was_measured(folder: Path) -> None:
    with pytest.raises(ApiError, match="no memory"):
        measured(Server(fails=3))
    assert dial.times(MODEL["hash"]) == {"one:1": 1.0}
    assert measured(Server()) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 3}' % ("h" * 64)])
def test_a_broken_file_counts_as_none(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "times.json").write_text(text)
    assert dial.times(MODEL["hash"]) == {}
    assert measured(Server()) == 4
