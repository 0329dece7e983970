"""Settings over HTTP: strict, by key, on disk, and at once in what the server does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.server.settings import Key

PATH = "/api/v1/settings"
KEYS = (Key(name="ann", secret="a" * 12), Key(name="bob", secret="b" * 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preferences")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with serving(folder, keys=KEYS) as served:
        yield served


def client(server: Served, letter: str = "a") -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": letter * 12}, timeout=30)


def test_settings_are_of_the_key_and_change_how_pictures_are_kept(server: Served) -> None:
    with client(server) as ann, client(server, "b") as bob:
        before = ann.get(PATH).json()
        assert (before["values"]["format"], before["own"]) == ("png", [])
        answer = ann.patch(PATH, json={"format": "webp", "quality": 80, "model": "fake"})
        assert answer.json()["own"] == ["format", "model", "quality"]
        assert bob.get(PATH).json() == before
        kinds = []
        for one in (ann, bob):
            job = one.post("/api/v1/jobs", json={"prompt": "a fox", "num_inference_steps": 2}).json()["id"]
            until(lambda one=one, job=job: one.get(f"/api/v1/jobs/{job}").json()["state"] == "done")
            image = one.get(f"/api/v1/jobs/{job}").json()["result"]["images"][0]
            found = one.get(f"/api/v1/images/{image}/file")
            kinds.append((one.get(f"/api/v1/images/{image}").json()["kind"], found.headers["content-type"]))
        assert ann.patch(PATH, json={"save": False}).status_code == 200
        for body, count in (({}, 0), ({"save": True}, 1)):
            job = ann.post("/api/v1/jobs", json={"prompt": "a fox", "num_inference_steps": 2, **body}).json()[
                "id"
            ]
            until(lambda job=job: ann.get(f"/api/v1/jobs/{job}").json()["state"] == "done")
            assert len(ann.get(f"/api/v1/jobs/{job}").json()["result"]["images"]) == count
        assert ann.patch(PATH, json={"save": None}).json()["values"]["save"]
        assert kinds == [("webp", "image/webp"), ("png", "image/png")]
        assert ann.patch(PATH, json={"format": None}).json()["own"] == ["model", "quality"]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"formt": "png"}, 422, "formt"),
        ({"format": "gif"}, 422, "format"),
        ({"n": 0}, 422, "n"),
        ({"n": 17}, 422, "at most 16"),
        ({"height": 64}, 422, "width"),
        ({"quality": "high"}, 422, "quality"),
        ({"stop": "fast"}, 422, "stop"),
        ({"model": "../fake"}, 404, "not found"),
        ([], 422, ""),
    ],
)
def test_wrong_values_are_refused_in_a_sentence_and_change_nothing(
    server: Served, body: Any, status: int, word: str
) -> None:
    with client(server, "b") as bob:
        before = bob.get(PATH).json()
        answer = bob.patch(PATH, json=body)
        assert answer.status_code == status, answer.text
        assert word in answer.json()["error"]["message"]
        assert bob.get(PATH).json() == before


def test_settings_and_options_of_the_webui_are_there_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as first, httpx.Client(base_url=first.url) as one:
        assert one.patch(PATH, json={"theme": "dark", "language": "zh"}).status_code == 200
        options = {"jpeg_quality": 60, "sd_model_checkpoint": "fake"}
        assert one.post("/sdapi/v1/options", json=options).status_code == 200
    with serving(tmp_path) as second, httpx.Client(base_url=second.url) as one:
        values = one.get(PATH).json()["values"]
        assert (values["theme"], values["language"]) == ("dark", "zh")
        assert one.get("/sdapi/v1/options").json()["jpeg_quality"] == 60
        assert one.get("/sdapi/v1/options").json()["sd_model_checkpoint"].startswith("fake")
