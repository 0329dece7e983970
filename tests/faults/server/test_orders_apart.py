"""Reliability O13, O14, O19, O21: an order is drawn as if it were alone, whatever else the server does."""

from __future__ import annotations

import base64
import dataclasses
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving, until

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import CheckpointError

LONG = 60.0
ORDER = {"prompt": "a red apple", "num_inference_steps": 3, "student": "none"}


class Second(FakeBackend):
    """Another model: paler, and held by the same gate."""

    def __init__(self, gate: threading.Event, name: str, **given: Any) -> None:
        super().__init__(gate=gate, **given)
        self.info = dataclasses.replace(self.info, name=name, hash="1" * 64)
        self.loads, self.closed = True, 0

    def prepare(self, *sizes: Any, **given: Any) -> None:
        if not self.loads:
            raise CheckpointError(f"model {self.info.name}: cannot be loaded; fetch it again")

    def denoise(self, *given: Any, **named: Any) -> Any:
        return 0.5 * super().denoise(*given, **named)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("apart"), batch=4) as served:
        yield served


def order(server: Served, **given: Any) -> str:
    answer = httpx.post(f"{server.url}/api/v1/jobs", json={**ORDER, **given}, timeout=LONG)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def job(server: Served, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/api/v1/jobs/{job_id}", timeout=LONG).json()
    return found


def ended(server: Served, job_id: str) -> dict[str, Any]:
    until(lambda: job(server, job_id)["state"] not in ("queued", "running"))
    return job(server, job_id)


def pixels(server: Served, job_id: str) -> list[bytes]:
    """Of all pictures of an order, as they lie in the history, without what is said of them."""
    found = ended(server, job_id)
    assert found["state"] == "done", found
    return [_pixels(server.services.history.open(one, "")) for one in found["result"]["images"]]


def _pixels(data: bytes) -> bytes:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data))).tobytes()


def test_o13_another_model_while_orders_wait(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = server.services.generator.pool
    others: dict[str, list[Second]] = {"second": [], "broken": []}

    def opener(name: str | None) -> Engine:
        if name in others:
            made = Second(server.gate, name)
            made.loads = name != "broken"
            others[name].append(made)
            return Engine(backend=made)
        return Engine(backend=server.backend)

    monkeypatch.setattr(pool, "_opener", opener)
    alone = {name: pixels(server, order(server, seed=1, model=name)) for name in ("fake", "second")}
    assert alone["fake"] != alone["second"]
    with server.held():
        names = ["fake", "second", "fake", "second", "fake"]
        jobs = [order(server, seed=1, model=name) for name in names]
        until(lambda: job(server, jobs[0])["state"] == "running")
        swapped = httpx.post(f"{server.url}/sdapi/v1/options", json={"sd_model_checkpoint": "second"})
        assert swapped.status_code in (200, 404)  # it has no files, so it may not be listed there
        unloading = threading.Thread(target=pool.unload)
        unloading.start()
        unloading.join(0.2)
        assert unloading.is_alive() and pool.loaded() == "fake"  # it waits for the order that is being drawn
        assert job(server, jobs[0])["state"] == "running"
    unloading.join(60)
    assert [pixels(server, one) for one in jobs] == [alone[name] for name in names]
    # What cannot be loaded fails its own order, and the model before goes on.
    failed = ended(server, order(server, seed=1, model="broken"))
    assert failed["state"] == "failed" and "cannot be loaded" in failed["error"]
    assert pixels(server, order(server, seed=1, model="fake")) == alone["fake"]
    assert pixels(server, order(server, seed=1, model="second")) == alone["second"]
    assert server.services.ready


def test_o14_an_adapter_is_seen_by_its_own_order_alone(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server.services.settings.data / "loras"
    folder.mkdir(exist_ok=True)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": np.ones((2, 8), np.float32),
               f"{layer}.lora_B.weight": np.ones((8, 2), np.float32)}  # fmt: skip
    save_file(tensors, folder / "ink.safetensors")

    class Adapted(FakeBackend):
        def denoise(self, *given: Any, **named: Any) -> Any:
            found = super().denoise(*given, **named)
            return found * (1.0 - 0.5 * sum(one.weight for one in self.adapters))

    from fewstep.engine.adapters import Catalogue

    made = Engine(backend=Adapted(gate=server.gate), catalogue=Catalogue([folder]))
    pool = server.services.generator.pool
    monkeypatch.setattr(pool, "_opener", lambda name: made)
    bodies = [
        {"model": "adapted", "seed": 1, "adapters": adapters}
        for adapters in ([{"name": "ink", "weight": 0.5}], [], [{"name": "ink", "weight": -0.5}])
    ]
    alone = [pixels(server, order(server, **body)) for body in bodies]
    assert len({one[0] for one in alone}) == 3
    with server.held():
        jobs = [order(server, **bodies[number]) for number in (0, 1, 0, 2, 1, 0)]
    assert [pixels(server, one) for one in jobs] == [alone[number] for number in (0, 1, 0, 2, 1, 0)]
    assert made.backend.adapters == ()


def test_o19_alone_together_and_after_others(server: Served) -> None:
    alone = [pixels(server, order(server, seed=seed)) for seed in range(4)]
    assert len({one[0] for one in alone}) == 4
    drawn = server.backend.calls
    with server.held():
        first = order(server, seed=9)
        until(server.backend.waiting.is_set)
        jobs = [order(server, seed=seed) for seed in (2, 0, 3, 1)]  # these are drawn in one batch
    assert [pixels(server, one) for one in jobs] == [alone[seed] for seed in (2, 0, 3, 1)]
    assert server.backend.calls - drawn == 3 + 3
    assert b"fewstep_batch_orders_bucket" in server.services.metrics.text()
    assert pixels(server, order(server, seed=0, n=4)) == [one[0] for one in alone]
    assert pixels(server, order(server, seed=9)) == pixels(server, first)


def test_o21_a_full_disk_and_clients_that_wait(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    outputs = server.services.settings.outputs
    before = sorted(outputs.rglob("*"))
    draw = {"prompt": "a dog", "steps": 2, "width": 64, "height": 64}
    with monkeypatch.context() as patched:
        for name in ("os.replace", "os.rename", "os.link"):
            patched.setattr(name, full)
        answer = httpx.post(f"{server.url}/sdapi/v1/txt2img", json=draw, timeout=LONG)
    assert answer.status_code == 200 and base64.b64decode(answer.json()["images"][0])
    assert sorted(outputs.rglob("*")) == before
    assert b"fewstep_unsaved_images_total 1.0" in server.services.metrics.text()
    assert httpx.post(f"{server.url}/sdapi/v1/txt2img", json=draw, timeout=LONG).status_code == 200
