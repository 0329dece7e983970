"""Long work and datasets over HTTP: a whole server, whose processes are played by a fake."""

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
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "server"))

import fake_child
from served import Served, serving, until

from fewstep.server import childprocess, workplan
from fewstep.server.settings import Key

JOBS = "/api/v1/jobs"
DOGS = "/api/v1/datasets/dog"


def png(width: int = 20, height: int = 16, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("work")
    pipeline = data / "own" / "base"
    pipeline.mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}")
    keys = (Key(name="ann", secret="a" * 12), Key(name="bob", secret="b" * 12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            childprocess, "command", lambda config: [sys.executable, fake_child.__file__, str(config)]
        )
        with serving(data / "data", models_dirs=(data / "own",), keys=keys) as served:
            yield served


@pytest.fixture(scope="module")
def ann(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "a" * 12}, timeout=30) as client:
        client.put(f"{DOGS}/pictures/one", content=png(), headers={"Content-Type": "image/png"})
        yield client


@pytest.fixture(scope="module")
def bob(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "b" * 12}, timeout=30) as client:
        yield client


def order(client: httpx.Client, name: str, trigger: str = "fast", **more: Any) -> str:
    body = {"kind": "train", "name": name, "dataset": "dog", "model": "base", "trigger": trigger, **more}
    response = client.post(JOBS, json=body)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    assert response.headers["Location"] == f"{JOBS}/{job_id}"
    return job_id


def wait(client: httpx.Client, job_id: str, state: str) -> dict[str, Any]:
    until(lambda: client.get(f"{JOBS}/{job_id}").json()["state"] == state)
    job: dict[str, Any] = client.get(f"{JOBS}/{job_id}").json()
    return job


def running(server: Served, client: httpx.Client, job_id: str) -> Path:
    """The run folder of slow work, once it has begun."""
    folder = server.services.children.run(job_id).work
    until(lambda: (client.get(f"{JOBS}/{job_id}").json()["progress"] or {}).get("step") == 300)
    return folder


def test_from_pictures_to_an_adapter_that_is_found_without_a_restart(
    server: Served, ann: httpx.Client
) -> None:
    job_id = order(ann, "first")
    job = wait(ann, job_id, "done")
    assert (job["kind"], job["result"], job["error"]) == ("train", {"lora": "first"}, None)
    assert server.services.generator.pool.adapters.find("first").path.read_bytes() == b"weights"
    assert "first" in [one["name"] for one in ann.get("/sdapi/v1/loras").json()]
    assert [one["id"] for one in ann.get(JOBS, params={"kind": "train"}).json()["jobs"]][-1] == job_id


def test_a_model_that_was_made_is_listed_without_a_restart(server: Served, ann: httpx.Client) -> None:
    body = {"kind": "merge", "name": "mixed", "models": ["base", "base"], "ratio": 0.5}
    wait(ann, ann.post(JOBS, json=body).json()["id"], "done")
    assert "mixed" in [one["name"] for one in ann.get("/api/v1/models").json()["models"]]
    assert workplan.finder(server.services.settings)("mixed", ("pipeline",)).name == "mixed"
    assert ann.post(JOBS, json=body).status_code == 409


def test_events_tell_of_progress_and_end(server: Served, ann: httpx.Client) -> None:
    job_id = order(ann, "watched", "slow")
    folder = running(server, ann, job_id)
    events: list[tuple[str, dict[str, Any]]] = []
    with ann.stream("GET", f"{JOBS}/{job_id}/events") as stream:
        name = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                name = line.partition(":")[2].strip()
            elif line.startswith("data:"):
                events.append((name, json.loads(line.partition(":")[2])))
                (folder / "go").touch()
    first, last = events[0], events[-1]
    assert first[0] == "progress" and first[1]["step"] == 300 and first[1]["total"] == 600
    assert first[1]["message"].startswith("300 of 600 images")
    assert last[0] == "end" and last[1]["state"] == "done"


def test_cancel_samples_log_and_going_on(server: Served, ann: httpx.Client, bob: httpx.Client) -> None:
    job_id = order(ann, "again", "slow")
    folder = running(server, ann, job_id)
    assert ann.get(f"{JOBS}/{job_id}/samples").json() == {"samples": ["0000000300.png"]}
    picture = ann.get(f"{JOBS}/{job_id}/samples/0000000300.png")
    assert picture.content == b"\x89PNG" and picture.headers["content-type"] == "image/png"
    for name in ("0000000301.png", "..%2Fsaved", "%2e%2e", "config.json"):
        assert ann.get(f"{JOBS}/{job_id}/samples/{name}").status_code == 404
    assert "fewstep: encoding 1/2" in ann.get(f"{JOBS}/{job_id}/log").json()["lines"]
    for path in ("", "/samples", "/samples/0000000300.png", "/log", "/events"):  # H18
        assert bob.get(f"{JOBS}/{job_id}{path}").status_code == 404
    for verb in ("cancel", "requeue"):
        assert bob.post(f"{JOBS}/{job_id}/{verb}").status_code == 404
    assert ann.post(f"{JOBS}/{job_id}/requeue").status_code == 409

    ann.post(f"{JOBS}/{job_id}/cancel")
    wait(ann, job_id, "cancelled")
    assert (folder / "saved").exists()
    until(lambda: server.services.children.pending(job_id) is None)
    assert ann.post(f"{JOBS}/{job_id}/requeue").status_code == 202
    (folder / "go").touch()
    assert wait(ann, job_id, "done")["result"] == {"lora": "again"}


def test_order_curves_title_and_states(server: Served, ann: httpx.Client, bob: httpx.Client) -> None:
    job_id = order(ann, "curved", "slow", images=600)
    folder = running(server, ann, job_id)
    assert ann.get(f"{JOBS}/{job_id}").json()["title"] == "curved"
    told = ann.get(f"{JOBS}/{job_id}/order").json()["order"]
    assert (told["kind"], told["trigger"], told["images"], told["rank"]) == ("train", "slow", 600, None)
    assert ann.get(f"{JOBS}/{job_id}/curves").json() == {"stages": []}
    (folder / "00-one").mkdir()
    lines = [{"images": 8 * i, "loss": 1 / i, "bad": None, "flag": True} for i in range(1, 1001)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "00-one" / "progress.jsonl").write_text(text + '{"images": 8008, "lo')
    (stage,) = ann.get(f"{JOBS}/{job_id}/curves").json()["stages"]
    points = stage["values"]["loss"]
    assert stage["stage"] == "00-one" and list(stage["values"]) == ["loss"]
    assert points[0] == [8, 1.0] and points[-1] == [8000, 0.001] and len(points) == 300
    for path in ("order", "curves"):  # H18
        assert bob.get(f"{JOBS}/{job_id}/{path}").status_code == 404

    states = {"state": ["running", "queued"]}
    assert job_id in [one["id"] for one in ann.get(JOBS, params=states).json()["jobs"]]
    assert job_id not in [one["id"] for one in ann.get(JOBS, params={"state": "done"}).json()["jobs"]]
    (folder / "go").touch()
    wait(ann, job_id, "done")
    assert job_id not in [one["id"] for one in ann.get(JOBS, params=states).json()["jobs"]]


def test_an_order_of_pictures_has_a_title_and_no_order_of_long_work(ann: httpx.Client) -> None:
    job = ann.post(JOBS, json={"prompt": "a red apple " * 20}).json()
    assert job["title"] == ("a red apple " * 20)[:120]
    wait(ann, job["id"], "done")
    assert ann.get(f"{JOBS}/{job['id']}/order").status_code == 404


def test_a_distillation_leaves_a_student_and_a_bundle_with_it(server: Served, ann: httpx.Client) -> None:
    teacher = server.services.settings.models_dirs[0] / "base"
    (teacher / "fewstep.json").write_text(contract())
    for part in ("vae", "text_encoder", "tokenizer"):
        (teacher / part).mkdir(exist_ok=True)
    body = {
        "kind": "distill", "name": "quick", "method": "flash", "dataset": "dog", "model": "base",
        "bundle": "base-quick", "images": 40,
    }  # fmt: skip
    job = wait(ann, ann.post(JOBS, json=body).json()["id"], "done")
    assert job["result"] == {"model": "quick", "bundle": "base-quick"}
    names = [one["name"] for one in ann.get("/api/v1/models").json()["models"]]
    assert {"quick", "base-quick"} <= set(names)
    assert ann.post(JOBS, json=body | {"bundle": "other"}).status_code == 409
    assert ann.post(JOBS, json=body | {"name": "other"}).status_code == 409  # the bundle's name is taken
    seen = json.loads((server.services.children.run(job["id"]).folder / "seen.json").read_text())
    assert seen["given"]["command"] == "export"
    assert ["student", f"quick={server.services.children.run(job['id']).work / 'student'}"] in seen["given"][
        "arguments"
    ]["options"]


def contract() -> str:
    from fewstep.diffusion.contract import SamplingContract, ScheduleSpec

    return SamplingContract(
        base_family="sd1", prediction_type="epsilon", schedule=ScheduleSpec(), num_inference_steps=20,
        guidance_scale=5.0, native_sizes=((64, 64),),
    ).to_json()  # fmt: skip


def test_the_same_order_twice_is_one_job(ann: httpx.Client) -> None:
    body = {"kind": "train", "name": "once", "dataset": "dog", "model": "base", "trigger": "fast"}
    answers = [ann.post(JOBS, json=body, headers={"Idempotency-Key": "one"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    wait(ann, answers[0].json()["id"], "done")


def test_a_body_without_a_kind_orders_pictures(ann: httpx.Client) -> None:
    job = ann.post(JOBS, json={"prompt": "a red apple"}).json()
    assert job["kind"] == "generate"
    wait(ann, job["id"], "done")


def test_a_picture_that_is_sent_is_enlarged(ann: httpx.Client) -> None:
    body = {
        "kind": "upscale", "image": base64.b64encode(png()).decode(), "upscaler": "lanczos", "scale": 4,
    }  # fmt: skip
    job = wait(ann, ann.post(JOBS, json=body).json()["id"], "done")
    (image,) = job["result"]["images"]
    assert (image["width"], image["height"], image["parent"]) == (80, 64, None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "dance"}, ""),
        ({"kind": "train", "name": "x", "dataset": "dog", "folder": "/etc"}, "folder"),
        ({"kind": "train", "name": "../x", "dataset": "dog"}, "name"),
        ({"kind": "train", "name": "x", "dataset": "a/b"}, "dataset"),
        ({"kind": "train", "name": "x", "dataset": "dog", "images": 10**12}, "images"),
        ({"kind": "train", "name": "x", "dataset": "dog", "learning_rate": 2}, "learning_rate"),
        ({"kind": "train", "name": "x", "dataset": "dog", "rank": 4, "what": "embedding"}, "rank"),
        ({"kind": "train", "name": "x", "dataset": "dog", "trigger": "a\nb"}, "trigger"),
        ({"kind": "distill", "name": "x"}, "recipe"),
        ({"kind": "distill", "name": "x", "recipe": "/etc/passwd"}, "recipe"),
        ({"kind": "distill", "name": "x", "recipe": "../x.yaml"}, "recipe"),
        ({"kind": "distill", "name": "x", "recipe": "toys/lcm", "steps": 4}, "steps"),
        ({"kind": "distill", "name": "x", "method": "lcm", "dataset": "dog", "steps": 4}, "steps"),
        ({"kind": "distill", "name": "x", "method": "flash", "dataset": "dog", "steps": 3}, "steps"),
        ({"kind": "distill", "name": "x", "method": "flash", "dataset": "dog", "bundle": "x"}, "bundle"),
        ({"kind": "distill", "name": "x", "method": "flash", "dataset": "dog", "bundle": "a/b"}, "bundle"),
        ({"kind": "merge", "name": "x", "models": ["a"] * 9}, "models"),
        ({"kind": "merge", "name": "x", "models": ["a"], "discard": "(a+)+$"}, "discard"),
        ({"kind": "evaluate", "models": ["a"], "prompts": ["file.txt"]}, "prompts"),
        ({"kind": "upscale"}, "image"),
        ({"kind": "upscale", "images": ["0" * 32], "scale": 1e9}, "scale"),
        ({"kind": "export", "name": "x", "model": "base", "out": "/x"}, "out"),
    ],
)
def test_h12_bodies_of_long_work_are_strict(ann: httpx.Client, body: dict[str, Any], field: str) -> None:
    response = ann.post(JOBS, json=body)
    assert response.status_code == 422
    assert field in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "train", "name": "x", "dataset": "cat"},
        {"kind": "train", "name": "x", "dataset": "dog", "model": "../base"},
        {"kind": "merge", "name": "x", "models": ["/etc/passwd"]},
        {"kind": "distill", "name": "x", "recipe": "toys/none"},
        {"kind": "upscale", "images": ["0" * 32]},
    ],
)
def test_names_that_are_not_there(ann: httpx.Client, body: dict[str, Any]) -> None:
    assert ann.post(JOBS, json=body).status_code == 404


def test_datasets_from_a_form(ann: httpx.Client, bob: httpx.Client) -> None:
    files = [
        ("pictures", ("My cat.PNG", png(40, 30, "RGBA"), "image/png")),
        ("pictures", ("../b.jpg", png(), "image/jpeg")),
        ("pictures", ("b.txt", b"a cat in a box\n", "text/plain")),
    ]
    response = ann.post(
        "/api/v1/datasets/cats", files=files, data={"captions": json.dumps({"My-cat": "mine"})}
    )
    assert response.status_code == 201, response.text
    pictures = {one["name"]: one for one in response.json()["pictures"]}
    assert {name: one["caption"] for name, one in pictures.items()} == {
        "My-cat": "mine", "b": "a cat in a box",
    }  # fmt: skip
    with Image.open(io.BytesIO(ann.get(pictures["My-cat"]["url"]).content)) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (40, 30), "RGB")
    with Image.open(io.BytesIO(ann.get(pictures["b"]["thumbnail"]).content)) as image:
        assert image.format == "WEBP"

    changed = ann.patch("/api/v1/datasets/cats", json={"captions": {"b": "two"}}).json()
    assert [one["caption"] for one in changed["pictures"]] == ["mine", "two"]
    assert ann.patch("/api/v1/datasets/cats", json={"captions": {"c": "x"}}).status_code == 404
    assert [one["name"] for one in ann.get("/api/v1/datasets").json()["datasets"]] == ["cats", "dog"]

    for path in ("/api/v1/datasets/cats", pictures["b"]["url"], pictures["b"]["thumbnail"]):  # H18
        assert bob.get(path).status_code == 404
    assert bob.get("/api/v1/datasets").json() == {"datasets": []}
    assert bob.delete("/api/v1/datasets/cats").status_code == 404

    assert ann.delete(pictures["b"]["url"]).status_code == 204
    assert len(ann.get("/api/v1/datasets/cats").json()["pictures"]) == 1
    assert ann.delete("/api/v1/datasets/cats").status_code == 204
    assert ann.get("/api/v1/datasets/cats").status_code == 404


@pytest.mark.parametrize(
    ("files", "data", "status"),
    [
        ([("pictures", ("a.png", b"<svg/>", "image/png"))], {}, 422),
        ([("pictures", ("a.png", png(4, 4), "image/png"))], {}, 422),
        (
            [("pictures", ("a.png", png(), "image/png")), ("pictures", ("a.jpg", png(), "image/jpeg"))],
            {},
            422,
        ),
        ([("pictures", ("a.txt", b"x", "text/plain"))], {}, 422),
        ([("pictures", ("a.png", png(), "image/png"))], {"captions": "[]"}, 422),
        ([("pictures", ("a.png", png(), "image/png"))], {"captions": '{"b": "x"}'}, 422),
        ([("pictures", ("a.png", png(), "image/png"))], {"folder": "/x"}, 422),
    ],
)
def test_forms_that_are_refused(
    ann: httpx.Client, files: list[Any], data: dict[str, str], status: int
) -> None:
    assert ann.post("/api/v1/datasets/bad", files=files, data=data).status_code == status
    assert ann.get("/api/v1/datasets/bad").status_code == 404


@pytest.mark.parametrize("name", ["..", "a.b", "a b", "-a", "x" * 65, "%2e%2e%2fx"])
def test_h05_names_of_datasets(ann: httpx.Client, name: str) -> None:
    content: dict[str, Any] = {"content": png(), "headers": {"Content-Type": "image/png"}}
    quoted = name.replace("..", "%2e%2e")
    for path in (f"/api/v1/datasets/dog/pictures/{quoted}", f"/api/v1/datasets/{quoted}/pictures/a"):
        try:
            assert ann.put(path, **content).status_code in (404, 405, 422)
        except httpx.TransportError:
            pass  # refused before the body was read: the connection is closed, and the answer may be lost


def test_a_dataset_in_use_is_left_alone(server: Served, ann: httpx.Client) -> None:
    job_id = order(ann, "user", "slow")
    folder = running(server, ann, job_id)
    assert ann.delete(DOGS).status_code == 409
    assert ann.patch(DOGS, json={"captions": {"one": "x"}}).status_code == 409
    (folder / "go").touch()
    wait(ann, job_id, "done")
    assert ann.patch(DOGS, json={"captions": {"one": "x"}}).status_code == 200


def test_pictures_of_a_dataset_are_what_was_sent(ann: httpx.Client) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    ann.put(f"{DOGS}/pictures/noise", content=buffer.getvalue(), headers={"Content-Type": "image/png"},
            params={"caption": "noise"})  # fmt: skip
    with Image.open(io.BytesIO(ann.get(f"{DOGS}/pictures/noise").content)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    ann.delete(f"{DOGS}/pictures/noise")
