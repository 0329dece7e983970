"""Styles over HTTP: written, replaced and deleted, by key, and named by the WebUI's clients at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving

from fewstep.server.settings import Key

PATH = "/api/v1/styles"
KEYS = (Key(name="ann", secret="a" * 12), Key(name="bob", secret="b" * 12))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("styles")
    (data / "styles.csv").write_text("name,prompt\nnoto,noto style\n")
    with serving(data, keys=KEYS) as served:
        yield served


def client(server: Served, letter: str = "a") -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": letter * 12}, timeout=30)


def names(answer: httpx.Response) -> dict[str, bool]:
    assert answer.status_code == 200, answer.text
    return {one["name"]: one["own"] for one in answer.json()["styles"]}


def test_a_style_is_the_keys_own_until_it_is_deleted(server: Served) -> None:
    style: dict[str, Any] = {"name": "a/../b", "prompt": "film of {prompt}", "negative_prompt": "photo"}
    with client(server) as ann, client(server, "b") as bob:
        assert names(ann.put(PATH, json=style)) == {"noto": False, "a/../b": True}
        assert names(bob.get(PATH)) == {"noto": False}
        listed = ann.get("/sdapi/v1/prompt-styles").json()
        assert style in listed and len(bob.get("/sdapi/v1/prompt-styles").json()) == 1
        body = {"prompt": "a fox", "styles": ["a/../b"], "steps": 2, "width": 64, "height": 64}
        drawn = ann.post("/sdapi/v1/txt2img", json=body)
        assert "film of a fox" in drawn.json()["info"]
        assert bob.post("/sdapi/v1/txt2img", json=body).status_code == 404
        assert bob.delete(PATH, params={"name": "a/../b"}).status_code == 404
        refused = ann.delete(PATH, params={"name": "noto"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert names(ann.delete(PATH, params={"name": "a/../b"})) == {"noto": False}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x"}, "prompt"), ({"name": "#x", "prompt": "y"}, "name"), ({"prompt": "y"}, "name"),
        ({"name": "x" * 101, "prompt": "y"}, "name"), ({"name": "x", "prompt": "y" * 20_000}, "prompt"),
        ({"name": "x", "prompt": "y", "path": "z"}, "path"),
    ],
)  # fmt: skip
def test_what_is_no_style_is_refused(server: Served, body: dict[str, Any], field: str) -> None:
    with client(server) as ann:
        answer = ann.put(PATH, json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
        assert names(ann.get(PATH)) == {"noto": False}
