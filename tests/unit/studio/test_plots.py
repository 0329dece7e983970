"""The plot of the tab without a page: drawn, going on after a reload, telling of what failed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from fewstep.errors import UsageError
from fewstep.studio import xyz as core
from fewstep.studio.client import ApiError
from fewstep.studio.tabs import xyz
from fewstep.studio.words import Words

HOSTILE = "\"'><script>alert(1)</script>{{x}}"
CONTRACT = {
    "num_inference_steps": 20,
    "solver": "ddim",
    "guidance_scale": 2.0,
    "negative_prompt_effective": True,
}
MODEL = {"name": "m", "hash": "none", "students": [], "contract": CONTRACT, "num_inference_steps": 20}


class FakeApi:
    """The parts of `fewstep.studio.client.Api` that a plot uses; jobs are done at once."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.grids: list[Mapping[str, Any]] = []
        self.posted: list[str] = []
        self.busy = 1

    async def get(self, path: str, **query: Any) -> Any:
        if path == "/api/v1/models":
            return {"models": [{"name": "m", "default": True}]}
        if path.startswith("/api/v1/models/"):
            return MODEL
        return self.jobs[path.rsplit("/", 1)[1]]

    async def send(self, method: str, path: str, *, json: Any, headers: Mapping[str, str]) -> Any:
        key = headers["Idempotency-Key"]
        if self.busy:
            self.busy -= 1
            raise ApiError("the queue is full", "queue_full", 429)
        if json["seed"] == 3:
            raise ApiError(f"refused {HOSTILE}", "bad", 422)
        if key not in self.jobs:
            result = {"images": [f"{len(self.jobs):032x}"]}
            self.jobs[key] = {"id": key, "state": "done", "result": result}
        return self.jobs[key]

    async def post(self, path: str, body: Any = None, **query: Any) -> Any:
        self.posted.append(path)
        if path == "/api/v1/images/grid":
            self.grids.append(body)
            return {"id": "f" * 32}
        job = self.jobs[path.split("/")[-2]]
        job["state"] = "done"
        return job


def plot() -> xyz.Plot:
    return xyz.Plot("p", {"prompt": "a", "seed": 1}, [core.parse("seed", "1-3"), core.parse("eta", "0-1")])


def drawn(api: FakeApi, what: xyz.Plot) -> list[list[Any]]:
    async def all_of_it() -> list[list[Any]]:
        return [one async for one in xyz.drawn(Words("en"), api, what)]  # type: ignore[arg-type]

    return asyncio.run(all_of_it())


def test_a_plot_is_drawn_and_joined_and_says_what_failed() -> None:
    api, made = FakeApi(), plot()
    steps = drawn(api, made)
    (grid,) = api.grids
    assert [axis["values"] for axis in grid["axes"]] == [["1", "2", "3"], ["0", "1"]]
    assert [[one is None for one in row] for row in grid["cells"][0]] == [[False, False, True]] * 2
    assert steps[0][2] is not None and steps[-1][2] is None  # what the browser keeps, until it is done
    assert "4 pictures" in steps[-1][0] and "2 cells" in steps[-1][0]
    assert "<script>" not in "".join(str(part) for step in steps for part in step[:2])
    assert f'data-image="{"f" * 32}"' in steps[-1][1]


def test_after_a_reload_nothing_is_drawn_twice() -> None:
    api, made = FakeApi(), plot()
    kept = made.kept()
    drawn(api, made)
    ids = dict(made.ids)
    next(iter(api.jobs.values()))["state"] = "cancelled"  # it flew when the page was left
    assert kept is not None
    resumed = xyz.again(kept)
    drawn(api, resumed)
    assert resumed.ids == ids and len(api.jobs) == 4
    assert sum(path.endswith("/requeue") for path in api.posted) == 1


@pytest.mark.parametrize("kept", ["", "{", "[]", '{"id": 1}', '{"id": "x", "base": {}, "axes": [["seed"]]}'])
def test_what_a_browser_kept_may_be_anything(kept: str) -> None:
    with pytest.raises(UsageError, match="draw it anew"):
        xyz.again(kept)


def test_a_plot_with_a_large_picture_is_not_kept() -> None:
    made = plot()
    made.base["image"] = "x" * xyz.LARGEST
    assert made.kept() is None
