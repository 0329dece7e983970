"""Pictures of the history over HTTP."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

KEYS = ({"name": "anna", "secret": "anna-secret"}, {"name": "ben", "secret": "ben-secret"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("images"), keys=KEYS) as served:
        yield served


def client(server: Served, who: str) -> httpx.Client:
    head = {"Authorization": f"Bearer {who}-secret"}
    return httpx.Client(base_url=f"{server.url}/api/v1", headers=head, timeout=30)


def drawn(http: httpx.Client, **body: Any) -> str:
    job = http.post("/jobs", json={"prompt": "a red apple", "seed": 3, **body}).json()
    until(lambda: http.get(f"/jobs/{job['id']}").json()["state"] == "done")
    found: str = http.get(f"/jobs/{job['id']}").json()["result"]["images"][0]
    return found


def test_a_picture_is_found_shown_and_marked(server: Served) -> None:
    with client(server, "anna") as anna:
        made = drawn(anna, prompt="a green dog on the apple")
        found = anna.get("/images", params={"text": "gre dog"}).json()["images"]
        assert [one["id"] for one in found] == [made]
        assert found[0]["record"]["seed"] == 3
        assert "owner" not in found[0]
        file = anna.get(f"/images/{made}/file")
        assert file.headers["content-type"] == "image/png" and "immutable" in file.headers["cache-control"]
        assert Image.open(io.BytesIO(file.content)).size == (64, 64)
        small = anna.get(f"/images/{made}/thumbnail")
        assert Image.open(io.BytesIO(small.content)).format == "WEBP"
        marked = anna.patch(f"/images/{made}", json={"favourite": True, "add_tags": ["pets"]}).json()
        assert marked["favourite"] and marked["tags"] == ["pets"]
        assert anna.get("/images/tags").json() == {"tags": {"pets": 1}}
        assert len(anna.get("/images", params={"favourite": True, "tag": "pets"}).json()["images"]) == 1


def test_deleting_is_taken_back(server: Served) -> None:
    with client(server, "anna") as anna:
        made = drawn(anna)
        gone = anna.post("/images/delete", json={"ids": [made]}).json()
        assert gone["deleted"] == 1
        assert made not in [one["id"] for one in anna.get("/images").json()["images"]]
        assert anna.post("/images/undo", json={"token": gone["undo"]}).json()["ids"] == [made]
        assert anna.get(f"/images/{made}").status_code == 200


def test_what_came_from_what(server: Served) -> None:
    with client(server, "anna") as anna:
        first = drawn(anna)
        second = drawn(anna, parent=first, seed=4)
        assert [one["id"] for one in anna.get(f"/images/{first}/lineage").json()["children"]] == [second]
        assert [one["id"] for one in anna.get(f"/images/{second}/lineage").json()["parents"]] == [first]
        packed = anna.post("/images/zip", json={"ids": [first, second]})
        assert len(zipfile.ZipFile(io.BytesIO(packed.content)).namelist()) == 2


def test_h18_another_keys_pictures_and_jobs_are_unknown(server: Served) -> None:
    with client(server, "anna") as anna, client(server, "ben") as ben:
        made = drawn(anna)
        job = anna.get("/jobs").json()["jobs"][0]["id"]
        assert ben.get("/images").json()["images"] == []
        assert ben.get("/jobs").json()["jobs"] == []
        answers = [
            ben.get(f"/images/{made}"), ben.get(f"/images/{made}/file"), ben.get(f"/images/{made}/thumbnail"),
            ben.get(f"/images/{made}/lineage"), ben.patch(f"/images/{made}", json={"favourite": True}),
            ben.post("/images/delete", json={"ids": [made]}), ben.post("/images/zip", json={"ids": [made]}),
            ben.get(f"/jobs/{job}"), ben.post(f"/jobs/{job}/cancel"), ben.post(f"/jobs/{job}/requeue"),
            ben.get(f"/jobs/{job}/events"),
        ]  # fmt: skip
        assert [answer.status_code for answer in answers] == [404] * len(answers)


def test_ids_that_are_none_open_nothing(server: Served) -> None:
    with client(server, "anna") as anna:
        for name in ("..%2f..%2fetc%2fpasswd", "0" * 31, "G" * 32, "0" * 32):
            assert anna.get(f"/images/{name}/file").status_code in (404, 422)
