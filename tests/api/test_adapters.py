"""Adapters over HTTP: what their files say, whether the model takes them, and their pictures."""

from __future__ import annotations

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
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.server import adapterlist

HOSTILE = '"><script>alert(1)</script>${alert(2)}{{x}}'


def adapter(folder: Path, name: str, width: int = 384, **metadata: str) -> Path:
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{stem}.lora_down.weight": np.zeros((2, width), np.float32),
        f"{stem}.lora_up.weight": np.zeros((32, 2), np.float32),
        f"{stem}.alpha": np.array(2.0, np.float32),
    }
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    tags = {"gold": {"gold style": 40, "a banana": 1, "a fox": 1}}
    adapter(folder, "gold", ss_output_name="Gold", ss_tag_frequency=json.dumps(tags))
    adapter(folder, "other", 768)
    adapter(folder, "hostile", ss_output_name="x", ss_tag_frequency=json.dumps({"f": {HOSTILE: 3}}))
    (folder / "broken.safetensors").write_bytes(b"\xff" * 40)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "gold").save(buffer, "PNG")
    (folder / "gold.preview.png").write_bytes(buffer.getvalue())
    (folder / "other.png").symlink_to("/etc/hostname")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("adapters"), loras_dirs=(folder,)) as served:
        yield served


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as client:
        yield client


def listed(client: httpx.Client) -> dict[str, dict[str, Any]]:
    answer = client.get("/adapters")
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "fake"
    return {one["name"]: one for one in answer.json()["adapters"]}


def test_adapters_say_what_they_are_and_no_path(client: httpx.Client, folder: Path) -> None:
    found = listed(client)
    assert list(found) == ["broken", "gold", "hostile", "other"]
    gold = found["gold"]
    assert gold["alias"] == "Gold" and gold["trigger_words"] == ["gold style"] and gold["weight"] == 1.0
    assert gold["fits"] and gold["why"] is None and gold["family"] == "emoji-128"
    assert gold["bytes"] == (folder / "gold.safetensors").stat().st_size
    assert found["other"]["family"] == "SD1"
    assert found["hostile"]["trigger_words"] == [HOSTILE]
    assert not found["broken"]["fits"] and "no adapter" in found["broken"]["why"]
    assert str(folder) not in json.dumps(found)


def test_one_made_for_another_family_does_not_fit(server: Served) -> None:
    import dataclasses

    pool = server.services.generator.pool
    info = dataclasses.replace(pool.info(), family="fewstep-emoji")
    why = adapterlist.unfit(pool, "fake", info, adapterlist.Facts(family="SD1"))
    assert why == "it was made for SD1, and fake is emoji-128"
    assert adapterlist.unfit(pool, "fake", info, adapterlist.Facts(family="emoji-128")) is None
    assert adapterlist.unfit(pool, "fake", info, adapterlist.Facts()) is None


def test_a_picture_beside_a_file_is_given_out_and_nothing_that_a_link_leads_to(client: httpx.Client) -> None:
    found = listed(client)
    assert found["other"]["picture"] is None
    answer = client.get(found["gold"]["picture"].removeprefix("/api/v1"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (8, 8)
    for name in ("other", "broken", "nobody", "..%2Fgold", "%00"):
        assert client.get(f"/adapters/{name}/picture").status_code in (404, 422), name
    assert client.get("/adapters", params={"model": "nobody"}).status_code == 404


def test_an_order_with_an_adapter_is_recorded_with_it(
    client: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_LORAS", str(folder))  # the fake engine looks in the usual folders alone
    body = {"prompt": "a red apple", "seed": 7, "adapters": [{"name": "gold", "weight": 0.5}]}
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 202, answer.text
    path = f"/jobs/{answer.json()['id']}"
    until(lambda: client.get(path).json()["state"] not in ("queued", "running"))
    job = client.get(path).json()
    assert job["state"] == "done", job
    record = client.get(f"/images/{job['result']['images'][0]}").json()["record"]
    assert [(one["name"], one["weight"]) for one in record["adapters"]] == [("gold", 0.5)]
