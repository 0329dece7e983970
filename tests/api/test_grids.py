"""Pictures of the history as one: pixels of the cells, the record, and what is refused."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.server import grids
from fewstep.server.settings import Key

GRID = "/api/v1/images/grid"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = (Key(name="ann", secret="a" * 12), Key(name="bob", secret="b" * 12))
    with serving(tmp_path_factory.mktemp("grids"), keys=keys) as served:
        yield served


@pytest.fixture(scope="module")
def ann(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "a" * 12}, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def ids(ann: httpx.Client) -> list[str]:
    job = ann.post("/api/v1/jobs", json={"prompt": "a dog", "seed": 5, "n": 4}).json()
    until(lambda: ann.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "done")
    found: list[str] = ann.get(f"/api/v1/jobs/{job['id']}").json()["result"]["images"]
    return found


def pixels(client: httpx.Client, image_id: str) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(client.get(f"/api/v1/images/{image_id}/file").content)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_grid_has_its_cells_and_says_what_they_are(ann: httpx.Client, ids: list[str]) -> None:
    axes = [{"name": "Seed", "values": ["5", "6"]}, {"name": "Weight", "values": ["0,5", "词"]}]
    cells = [[[ids[0], ids[1]], [ids[2], None]]]
    answer = ann.post(GRID, json={"axes": axes, "cells": cells})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made["record"]["grid"] == {"axes": axes, "cells": cells}
    assert (made["prompt"], made["parent"], made["record"]["seed"]) == ("a dog", ids[0], 5)
    whole = pixels(ann, made["id"])
    for image_id in ids[:3]:
        assert where(whole, pixels(ann, image_id)) is not None
    (x0, y0), (x1, y1), (x2, y2) = (where(whole, pixels(ann, one)) or (0, 0) for one in ids[:3])
    assert x0 < x1 and y0 == y1 and x2 == x0 and y2 > y0
    assert where(whole, pixels(ann, ids[3])) is None
    file = ann.get(f"/api/v1/images/{made['id']}/file").content
    with Image.open(io.BytesIO(file)) as image:
        assert 'Script: X/Y/Z plot, X Type: "Seed", X Values: "5, 6"' in image.info["parameters"]


def where(whole: np.ndarray[Any, Any], cell: np.ndarray[Any, Any]) -> tuple[int, int] | None:
    """Left and top of a cell that is in a picture as it is."""
    height, width = cell.shape[:2]
    view = np.lib.stride_tricks.sliding_window_view(whole, (height, width), axis=(0, 1))
    corner = np.argwhere((view[..., 0, 0] == cell[0, 0]).all(-1))
    for y, x in corner:
        if np.array_equal(whole[y : y + height, x : x + width], cell):
            return int(x), int(y)
    return None


def test_sheets_are_below_each_other_and_too_much_is_made_smaller(ids: list[str]) -> None:
    rng = np.random.default_rng(0)
    cell = rng.integers(0, 256, (64, 48, 3), np.uint8)
    axes = [grids.Axis("x", ("1", "2")), grids.Axis("y", ("a",)), grids.Axis("z", ("p", "q", "r"))]
    cells = [[["one", "one"]] for _ in range(3)]
    whole = grids.draw(axes, cells, lambda name: cell, most=1 << 24)
    column = whole[:, -52:-4]
    tops = [y for y in range(len(column) - 63) if np.array_equal(column[y : y + 64], cell)]
    assert len(tops) == 3 and tops[1] - tops[0] == tops[2] - tops[1] == whole.shape[0] // 3
    small = grids.draw(axes, cells, lambda name: cell, most=25_000)
    assert small.shape[0] * small.shape[1] <= 25_000 < whole.shape[0] * whole.shape[1]


def test_grids_that_are_refused(server: Served, ann: httpx.Client, ids: list[str]) -> None:
    axes = [{"name": "Seed", "values": ["5", "6"]}]
    for cells, status in (([[[ids[0]]]], 422), ([[[None, None]]], 422), ([[[ids[0], "0" * 32]]], 404)):
        answer = ann.post(GRID, json={"axes": axes, "cells": cells})
        assert answer.status_code == status and answer.json()["error"]["message"]
    body = {"axes": axes, "cells": [[[ids[0], ids[1]]]]}
    other = httpx.post(server.url + GRID, json=body, headers={"X-API-Key": "b" * 12})
    assert other.status_code == 404  # H18
