"""Models over HTTP: what there is, what whom may add and take away, merges that are looked at first."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "server"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "models"))

import fake_child
import test_hub_server as fake_hub
from served import Served, serving, until

from fewstep.engine import names, registry
from fewstep.server import childprocess, library, workplan
from fewstep.server.settings import Key, ServerSettings

JOBS, MODELS = "/api/v1/jobs", "/api/v1/models"
KEYS = (Key(name="ann", secret="a" * 12), Key(name="bob", secret="b" * 12))


def pipeline(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's data folder of its own, and processes that are played."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setattr(
        childprocess, "command", lambda config: [sys.executable, fake_child.__file__, str(config)]
    )
    pipeline(tmp_path / "own" / "base")
    return tmp_path


@pytest.fixture
def server(home: Path) -> Iterator[Served]:
    with serving(home / "data", models_dirs=(home / "own",)) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as one:
        yield one


@pytest.fixture
def shared(home: Path) -> Iterator[Served]:
    """A server with keys."""
    with serving(home / "data", models_dirs=(home / "own",), keys=KEYS) as served:
        yield served


def key(server: Served, letter: str) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": letter * 12}, timeout=60)


def ended(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 202, answer.text
    path = f"{JOBS}/{answer.json()['id']}"
    until(lambda: client.get(path).json()["state"] not in ("queued", "running"), 60)
    job: dict[str, Any] = client.get(path).json()
    return job


def there(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in client.get(MODELS).json()["models"]}


MERGE = {"kind": "merge", "name": "unused", "models": ["base", "base"]}


def test_a_merge_is_looked_at_kept_and_deleted(server: Served, client: httpx.Client) -> None:
    job = ended(client, {**MERGE, "draft": True})
    draft = job["result"]["model"]
    assert there(client)[draft]["draft"] and there(client)[draft]["removable"] == "files"
    assert "unused" not in there(client)
    path = f"{JOBS}/{job['id']}"
    assert client.post(f"{path}/keep", json={"name": "base"}).status_code == 409
    assert client.post(f"{path}/keep", json={"name": "../x"}).status_code == 422
    assert draft in there(client)
    assert client.post(f"{path}/keep", json={"name": "mine"}).json() == {"model": "mine"}
    assert draft not in there(client) and not there(client)["mine"]["draft"]
    assert client.post(f"{path}/keep", json={"name": "other"}).status_code == 404

    assert client.delete(f"{MODELS}/mine").status_code == 409  # its files are all there is of it
    assert client.delete(f"{MODELS}/mine", params={"files": True}).json() == {"model": "mine", "files": True}
    assert "mine" not in there(client)
    assert not (workplan.models_folder(server.services.settings) / "mine").exists()


def test_a_merge_is_discarded_and_an_ordinary_one_is_not(client: httpx.Client) -> None:
    job = ended(client, {**MERGE, "draft": True})
    assert client.post(f"{JOBS}/{job['id']}/discard").status_code == 204
    assert job["result"]["model"] not in there(client)
    assert client.post(f"{JOBS}/{job['id']}/discard").status_code == 404
    plain = ended(client, MERGE)
    assert client.post(f"{JOBS}/{plain['id']}/discard").status_code == 409
    assert client.post(f"{JOBS}/{'0' * 32}/discard").status_code == 404
    assert "unused" in there(client)


def test_h18_merges_are_kept_by_their_owner_and_models_stay_where_keys_are(shared: Served) -> None:
    with key(shared, "a") as ann, key(shared, "b") as bob:
        job = ended(ann, {**MERGE, "draft": True})
        for verb, body in (("keep", {"name": "x"}), ("discard", None)):
            assert bob.post(f"{JOBS}/{job['id']}/{verb}", json=body).status_code == 404
        assert ann.post(f"{JOBS}/{job['id']}/keep", json={"name": "x"}).status_code == 200
        answer = ann.delete(f"{MODELS}/x", params={"files": True})
        assert answer.status_code == 403 and "--manage-models" in answer.json()["error"]["message"]
        assert ann.post(f"{MODELS}/add", json={"name": "y", "path": "/etc"}).status_code == 403
        assert ann.post(JOBS, json={"kind": "download", "repository": "a/b"}).status_code == 403
        found = ann.get(MODELS).json()
        assert (found["managed"], found["paths"]) == (False, False)


@pytest.mark.parametrize(
    ("given", "private", "managed"),
    [
        ({}, True, True),
        ({"host": "localhost"}, True, True),
        ({"keys": KEYS}, False, False),
        ({"keys": KEYS, "manage_models": True}, False, True),
        ({"allowed_hosts": ("my.lan",)}, False, False),  # somebody else comes in, by a proxy
        ({"host": "192.0.2.1", "insecure": True}, False, False),
        ({"insecure": True}, False, False),
    ],
)
def test_whose_server_it_is(given: dict[str, Any], private: bool, managed: bool) -> None:
    settings = ServerSettings(**given)
    assert (settings.private, settings.managed) == (private, managed)


def test_what_is_the_operators_is_not_taken_away(server: Served, client: httpx.Client) -> None:
    assert there(client)["base"]["removable"] is None
    for name in ("base", "emoji-128"):
        answer = client.delete(f"{MODELS}/{name}", params={"files": True})
        assert answer.status_code == 409 and "operator" in answer.json()["error"]["message"]
    assert client.delete(f"{MODELS}/none").status_code == 404
    assert (server.services.settings.models_dirs[0] / "base").exists()


def test_a_folder_gets_a_name_and_keeps_its_files(home: Path, client: httpx.Client) -> None:
    place = home / "elsewhere" / "some bundle"
    shutil.copytree(registry.bundled_folder() / "emoji-128", place)
    body = {"name": "mine", "path": str(place)}
    assert client.post(f"{MODELS}/add", json=body).json() == {"model": "mine"}
    assert there(client)["mine"]["removable"] == "name"
    assert names.read()["mine"].path == place
    answer = client.delete(f"{MODELS}/mine", params={"files": True})
    assert answer.json() == {"model": "mine", "files": False}
    assert place.is_dir() and "mine" not in there(client) and names.read() == {}


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("x", "elsewhere", 422),
        ("x", "/no/such/folder", 404),
        ("a/b", "PLACE", 422),
        ("base", "PLACE", 422),
        ("x", "FILE", 422),
    ],
)
def test_paths_and_names_that_cannot_be(
    home: Path, client: httpx.Client, name: str, path: str, status: int
) -> None:
    place = pipeline(home / "place")
    (home / "text.safetensors").write_bytes(b"no weights")
    given = {"PLACE": str(place), "FILE": str(home / "text.safetensors")}.get(path, path)
    answer = client.post(f"{MODELS}/add", json={"name": name, "path": given})
    assert answer.status_code == status, answer.text
    assert str(home) not in answer.text
    assert names.read() == {}


def test_a_model_that_work_needs_stays(server: Served, client: httpx.Client) -> None:
    job = ended(client, {**MERGE, "name": "needed"})
    assert job["state"] == "done"
    png = fake_png()
    client.put("/api/v1/datasets/d/pictures/a", content=png, headers={"Content-Type": "image/png"})
    body = {"kind": "train", "name": "l", "dataset": "d", "model": "needed", "trigger": "slow"}
    work = client.post(JOBS, json=body).json()["id"]
    until(lambda: client.get(f"{JOBS}/{work}").json()["state"] == "running")
    assert client.delete(f"{MODELS}/needed", params={"files": True}).status_code == 409
    client.post(f"{JOBS}/{work}/cancel")
    until(lambda: client.get(f"{JOBS}/{work}").json()["state"] == "cancelled")
    until(lambda: server.services.children.pending(work) is None)
    assert client.delete(f"{MODELS}/needed", params={"files": True}).status_code == 200


def fake_png() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def test_the_model_in_memory_is_let_go_of(server: Served, client: httpx.Client) -> None:
    ended(client, {"prompt": "a fox", "num_inference_steps": 2, "model": "fake"})
    assert server.services.generator.pool.loaded() is not None
    assert client.post(f"{MODELS}/unload").json()["model"] is not None
    assert client.post(f"{MODELS}/unload").json() == {"model": None}
    assert there(client)["base"]["kinds"] == ["pipeline"]
    found = client.get(MODELS).json()
    assert found["process_bytes"] > 1_000_000 and found["free_bytes"] > 1_000_000


def test_drafts_that_nobody_keeps_are_deleted_in_the_end(tmp_path: Path) -> None:
    settings = ServerSettings(data=tmp_path)
    old, new, model = (pipeline(tmp_path / "models" / name) for name in ("draft-1", "draft-2", "mine"))
    file = tmp_path / "models" / "draft-3.safetensors"
    file.write_bytes(b"x")
    for path in (old, file, model):
        os.utime(path, (time.time() - 2 * library.DRAFT_SECONDS,) * 2)
    assert library.sweep_drafts(settings) == 2
    assert [old.exists(), file.exists(), new.exists(), model.exists()] == [False, False, True, True]


@pytest.mark.parametrize(
    "body",
    [
        {"repository": "../x"},
        {"repository": "/etc/passwd"},
        {"repository": "owner"},
        {"repository": "a/b", "revision": "../x"},
        {"repository": "a/b", "file": "../x.safetensors"},
        {"repository": "a/b", "file": "x.ckpt"},
        {"repository": "a/b", "name": "x"},
    ],
)
def test_h12_downloads_are_named_strictly(client: httpx.Client, body: dict[str, Any]) -> None:
    assert client.post(JOBS, json={"kind": "download", **body}).status_code == 422


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Server]:
    """A hub on this machine, and the real process."""
    pytest.importorskip("huggingface_hub")
    pipeline = Path(__file__).parents[2] / "weights" / "emoji-128"
    files = {
        path.relative_to(pipeline).as_posix(): path.read_bytes()
        for path in sorted(pipeline.glob("**/*.json"))
        if "students" not in path.parts
    }
    for part in ("text_encoder/model", "vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model"):
        files[f"{part}.safetensors"] = fake_hub.FILES[fake_hub.LARGE]
    monkeypatch.setattr(fake_hub, "FILES", files)
    made = fake_hub.Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield made
    made.shutdown()
    made.server_close()


def test_a_download_from_the_hub_is_a_model_that_can_be_deleted(
    home: Path, hub: fake_hub.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        childprocess, "command", lambda config: [sys.executable, "-m", "fewstep.cli.child", str(config)]
    )
    with serving(home / "data") as served, httpx.Client(base_url=served.url, timeout=60) as client:
        body = {"kind": "download", "repository": "owner/tiny", "revision": "v1"}
        job = ended(client, body)
        assert (job["state"], job["result"]) == ("done", {"model": "tiny"}), job["error"]
        place = workplan.models_folder(served.services.settings) / "tiny"
        assert (place / fake_hub.LARGE).read_bytes() == fake_hub.FILES[fake_hub.LARGE]
        assert there(client)["tiny"]["removable"] == "files"
        assert names.read() == {}  # it is found in its folder
        assert client.post(JOBS, json=body).status_code == 409
        gone = ended(client, {"kind": "download", "repository": "owner/none"})
        assert gone["state"] == "failed" and "not found on the hub" in gone["error"]
        assert client.delete(f"{MODELS}/tiny", params={"files": True}).status_code == 200
        assert not place.exists()
