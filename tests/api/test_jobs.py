"""The native API: order, watch, cancel, do again."""

from __future__ import annotations

import base64
import io
import json
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

import fewstep
from fewstep.prompt import containers


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("jobs")) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as made:
        yield made


def order(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/jobs", json={"prompt": "a red apple", "seed": 7, **body})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/api/v1/jobs/{found['id']}"
    return found


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(client.get(f"/jobs/{job_id}").json())
        return found["state"] not in ("queued", "running")

    until(over)
    return found


def png(size: int = 64) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 128, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_an_order_becomes_pictures_in_the_history(server: Served, client: httpx.Client) -> None:
    job = ended(client, order(client, n=2)["id"])
    assert job["state"] == "done"
    assert job["result"]["seeds"] == [7, 8]
    assert len(job["result"]["images"]) == 2
    data = server.services.history.open(job["result"]["images"][1], "")
    said = containers.decode(Image.open(io.BytesIO(data)))
    assert "Seed: 8" in (said.parameters or "")
    assert job["started"] >= job["created"]


def test_what_is_watched_ends_with_the_job(server: Served, client: httpx.Client) -> None:
    with server.held() as gate:
        job = order(client, num_inference_steps=5, student="none")
        seen: list[tuple[str, dict[str, Any]]] = []
        with client.stream("GET", f"/jobs/{job['id']}/events?preview=true") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            event = ""
            for line in stream.iter_lines():
                if line.startswith("event:"):
                    event = line.split(": ", 1)[1]
                    gate.set()
                elif line.startswith("data:"):
                    seen.append((event, json.loads(line.split(": ", 1)[1])))
    assert [name for name, _ in seen[-1:]] == ["end"]
    assert seen[-1][1]["state"] == "done"
    steps = [data for name, data in seen if name == "progress"]
    assert steps[-1]["step"] == steps[-1]["total"] == 5
    preview = base64.b64decode(steps[-1]["preview"])
    assert Image.open(io.BytesIO(preview)).size == (64, 64)


def test_what_has_ended_is_told_at_once(client: httpx.Client) -> None:
    job = ended(client, order(client)["id"])
    text = client.get(f"/jobs/{job['id']}/events").text
    assert text.startswith("event: end") and '"done"' in text


def test_o06_o07_cancelling(server: Served, client: httpx.Client) -> None:
    with server.held():
        running, waiting = order(client)["id"], order(client)["id"]
        until(lambda: client.get(f"/jobs/{running}").json()["state"] == "running")
        assert client.get(f"/jobs/{waiting}").json()["position"] == 1
        before = server.backend.calls
        assert client.post(f"/jobs/{waiting}/cancel").status_code == 200
        assert ended(client, waiting)["state"] == "cancelled"
        assert client.post(f"/jobs/{running}/cancel").status_code == 200
        assert client.post(f"/jobs/{running}/cancel").status_code == 200
    assert ended(client, running)["state"] == "cancelled"
    assert server.backend.calls <= before + 1
    assert client.post(f"/jobs/{running}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/jobs/{'0' * 32}/cancel").status_code == 404


def test_a_cancelled_job_is_done_again(server: Served, client: httpx.Client) -> None:
    with server.held():
        order(client)  # which the worker has, so that the next one waits
        until(lambda: server.services.generator.queue.running == 1)
        job = order(client, image=png(), strength=0.5)["id"]
        assert client.post(f"/jobs/{job}/requeue").status_code == 409
        client.post(f"/jobs/{job}/cancel")
        assert ended(client, job)["state"] == "cancelled"
        assert client.post(f"/jobs/{job}/requeue").status_code == 202
        assert client.get(f"/jobs/{job}").json()["state"] == "queued"
    assert ended(client, job)["state"] == "done"
    assert client.post(f"/jobs/{job}/requeue").status_code == 409


def test_an_order_sent_twice_is_done_once(server: Served, client: httpx.Client) -> None:
    head = {"Idempotency-Key": "one"}
    body = {"prompt": "green dog", "seed": 1}
    with server.held():
        first = client.post("/jobs", json=body, headers=head).json()
        assert client.post("/jobs", json=body, headers=head).json()["id"] == first["id"]
    assert ended(client, first["id"])["state"] == "done"
    calls = server.backend.calls
    assert client.post("/jobs", json=body, headers=head).json()["id"] == first["id"]
    assert server.backend.calls == calls
    other = client.post("/jobs", json={**body, "seed": 2}, headers=head)
    assert other.status_code == 409


def test_an_order_that_found_no_place_after_all_leaves_no_job(
    server: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.errors import QueueFull

    def full(*args: Any, **given: Any) -> Any:
        raise QueueFull("the queue is full: another order was quicker")

    before = client.get("/jobs").json()["jobs"][0]["id"]
    monkeypatch.setattr(server.services.generator.queue, "submit", full)
    assert client.post("/jobs", json={"prompt": "a dog"}).status_code == 429
    assert client.get("/jobs").json()["jobs"][0]["id"] == before


def test_o03_a_deadline_stops_a_running_order(server: Served, client: httpx.Client) -> None:
    with server.held() as gate:
        job = order(client, deadline=0.2)["id"]
        until(lambda: server.services.generator.current() is not None)
        until(lambda: server.services.generator.current().task.late)  # type: ignore[union-attr]
        gate.set()
    found = ended(client, job)
    assert found["state"] == "expired"
    assert "deadline" in found["error"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"num_inference_steps": 10**9}, "num_inference_steps"),
        ({"n": 10**9}, "n is"),
        ({"n": 0}, "n:"),
        ({"width": 7, "height": 7}, "width"),
        ({"width": 100_000, "height": 100_000}, "100000"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"strength": -1}, "strength"),
        ({"guidance_scale": 10**400}, ""),
        ({"colour": "red"}, "colour"),
        ({"model": "../../etc/passwd"}, "model"),
        ({"prompt": "<lora:../../x:1>"}, "x"),
        ({"student": "nobody"}, "nobody"),
        ({"solver": "magic"}, "magic"),
        ({"image": "https://example.org/a.png"}, "URLs are disabled"),
        ({"image": "none"}, "image"),
        ({"upscale": {"name": "magic"}}, "magic"),
        ({"upscale": {"width": 512}}, "upscale"),
    ],
)
def test_h12_what_cannot_be_is_refused_with_its_name(
    client: httpx.Client, server: Served, body: dict[str, Any], named: str
) -> None:
    calls = server.backend.calls
    answer = client.post("/jobs", content=json.dumps({"prompt": "a dog", **body}),
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code in (400, 404, 422), answer.text
    message = answer.json()["error"]["message"]
    assert named in message
    assert (
        str(Path(fewstep.__file__).parent) not in message
        and str(server.services.settings.data) not in message
    )
    assert server.backend.calls == calls


def test_nan_is_no_json(client: httpx.Client) -> None:
    answer = client.post("/jobs", content='{"prompt": "a", "guidance_scale": NaN}',
                         headers={"Content-Type": "application/json"})  # fmt: skip
    assert answer.status_code in (400, 422)


def test_jobs_are_listed_newest_first(client: httpx.Client) -> None:
    made = [ended(client, order(client)["id"])["id"] for _ in range(3)]
    listed = [job["id"] for job in client.get("/jobs", params={"limit": 2}).json()["jobs"]]
    assert listed == made[:0:-1]
    after = client.get("/jobs", params={"limit": 1, "before": listed[-1]}).json()["jobs"]
    assert [job["id"] for job in after] == [made[0]]
    assert all(job["state"] == "done" for job in client.get("/jobs?state=done").json()["jobs"])


def test_a_picture_that_is_not_to_be_kept_is_not(server: Served, client: httpx.Client) -> None:
    before = list(server.services.settings.outputs.rglob("*.png"))
    job = ended(client, order(client, save=False)["id"])
    assert job["state"] == "done" and job["result"]["images"] == []
    assert list(server.services.settings.outputs.rglob("*.png")) == before


def test_o08_a_failure_is_one_orders_own(server: Served, client: httpx.Client) -> None:
    def broken(*args: Any, **given: Any) -> Any:
        raise RuntimeError("secret /somewhere/else")

    whole = server.backend.denoise
    server.backend.denoise = broken  # type: ignore[method-assign]
    try:
        found = ended(client, order(client)["id"])
    finally:
        server.backend.denoise = whole  # type: ignore[method-assign]
    assert found["state"] == "failed" and "/somewhere" not in found["error"] and "bug" in found["error"]
    assert ended(client, order(client)["id"])["state"] == "done"


def test_o21_a_full_disk_takes_no_picture_from_the_caller(
    server: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.errors import OutputError

    def full(*args: Any, **given: Any) -> Any:
        raise OutputError("images: cannot be written (No space left on device); free some space")

    monkeypatch.setattr(server.services.history, "add", full)
    found = ended(client, order(client)["id"])
    assert found["state"] == "done" and found["result"]["images"] == []
    assert any("could not be kept" in text for text in found["result"]["warnings"])
    assert b"fewstep_unsaved_images_total 1.0" in server.services.metrics.text()


def test_models_are_named_and_described(client: httpx.Client) -> None:
    assert client.get("/models/nobody").status_code == 404
    detail = client.get("/models/fake").json()
    assert detail["native_width"] == 64
    assert {one["name"]: one["steps"] for one in detail["students"]} == {"two": [2], "four": [4]}
    assert detail["contract"]["solver"] == detail["solver"] and detail["contract"]["method"] == "base"
    two = next(one for one in detail["students"] if one["name"] == "two")["contract"]
    assert two["allowed_steps"] == [2] and two["guidance"] == "off" and two["guidance_scale"] == 1.0
