"""What pictures say, drawing them again, and upscalers, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.prompt import containers

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("info")) as served:
        yield served


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/api/v1", timeout=60) as client:
        yield client


def ask(http: httpx.Client, way: str, data: bytes) -> Any:
    return http.post(way, json={"image": base64.b64encode(data).decode()})


def drawn(http: httpx.Client, **body: Any) -> bytes:
    job = http.post("/jobs", json={"prompt": "a red apple", "seed": 3, **body}).json()
    until(lambda: http.get(f"/jobs/{job['id']}").json()["state"] not in ("queued", "running"))
    found = http.get(f"/jobs/{job['id']}").json()
    assert found["state"] == "done", found
    return http.get(f"/images/{found['result']['images'][-1]}/file").content


def png(texts: dict[str, str], size: tuple[int, int] = (20, 20)) -> bytes:
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def changed(data: bytes, **entries: Any) -> bytes:
    """A picture of ours whose record says something else."""
    with Image.open(io.BytesIO(data)) as image:
        record = containers.decode(image).record
        assert record is not None
        for name, value in entries.items():
            record[name] = value
            if value is None:
                del record[name]
        return containers.encode(np.asarray(image), "png", record=record)


def test_our_own_picture_is_read(http: httpx.Client) -> None:
    facts = ask(http, "/info", drawn(http, negative_prompt="a dog")).json()
    assert (facts["tool"], facts["format"], facts["width"]) == ("fewstep", "PNG", 64)
    assert (facts["prompt"], facts["negative_prompt"]) == ("a red apple", "a dog")
    assert facts["record"]["seed"] == 3 and facts["settings"]["Seed"] == "3"
    assert facts["parameters"].startswith("a red apple")


COMFY = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5, "steps": 4, "cfg": 1.5, "sampler_name": "euler", "model": ["1", 0],
            "positive": ["2", 0], "negative": ["3", 0],
        },
    },
}  # fmt: skip
INVOKE = {
    "positive_prompt": "a red fox", "negative_prompt": "blurry", "scheduler": "euler", "seed": 5, "steps": 4,
    "cfg_scale": 1.5, "model": {"model_name": "base", "base_model": "sd-1"},
}  # fmt: skip
FOOOCUS = {
    "base_model": "base", "base_model_hash": "abc", "sampler": "euler", "prompt": "a red fox",
    "negative_prompt": "blurry", "seed": 5, "steps": 4, "guidance_scale": 1.5, "version": "Fooocus v2",
}  # fmt: skip
WEBUI = "a red fox\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, CFG scale: 1.5, Seed: 5, Size: 64x64"


@pytest.mark.parametrize(
    ("texts", "tool"),
    [
        ({"parameters": f"{WEBUI}, Version: v1.10.1"}, "AUTOMATIC1111"),
        ({"parameters": f"{WEBUI}, Version: f2.0.1"}, "Forge"),
        ({"prompt": json.dumps(COMFY)}, "ComfyUI"),
        ({"invokeai_metadata": json.dumps(INVOKE)}, "InvokeAI"),
        ({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}, "Fooocus"),
    ],
)
def test_pictures_of_other_tools_are_read(http: httpx.Client, texts: dict[str, str], tool: str) -> None:
    pytest.importorskip("sd_parsers")
    facts = ask(http, "/info", png(texts)).json()
    assert facts["tool"] == tool
    assert (facts["prompt"], facts["negative_prompt"]) == ("a red fox", "blurry")
    assert "5" in {str(value) for value in facts["settings"].values()}  # the seed
    assert facts["texts"].keys() >= texts.keys() and facts["record"] is None


def test_a_picture_that_says_nothing(http: httpx.Client) -> None:
    facts = ask(http, "/info", png({})).json()
    assert facts["tool"] is None and facts["prompt"] == "" and facts["settings"] == facts["texts"] == {}


def test_texts_stay_texts_however_hostile(http: httpx.Client) -> None:
    text = f"{SCRIPT}\nSteps: 4, Seed: 5, {SCRIPT[1:7]}: {SCRIPT}"
    facts = ask(http, "/info", png({"parameters": text, SCRIPT: "\ud7ff\0" + SCRIPT})).json()
    assert facts["prompt"] == SCRIPT and SCRIPT in facts["texts"]


def test_long_texts_are_cut(http: httpx.Client) -> None:
    long = {f"t{n}": "x" * 150_000 for n in range(3)} | {f"n{n}": "y" for n in range(100)}
    answer = ask(http, "/info", png(long))
    assert answer.status_code == 200 and len(answer.content) < 400_000
    assert "(150000 characters)" in answer.json()["texts"]["t0"]


def large() -> bytes:
    """10,000 x 10,000 pixels by its header."""
    data = png({})
    chunk = b"IHDR" + (10_000).to_bytes(4, "big") * 2 + data[24:29]
    return data[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:]


def bomb() -> bytes:
    """A text chunk that unpacks to 100 MB."""
    data = png({})
    body = b"zTXt" + b"parameters\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (large(), 413), (bomb(), 422), (png({})[:60], 422), (b"<svg onload=alert(1)>", 422), (b"GIF89a", 422),
        (png({"parameters": "x" * 300_000}), 422),
    ],
    ids=["megapixels", "text-bomb", "cut-off", "svg", "gif", "long-text"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["/info", "/replay"])
def test_what_is_no_picture_is_refused(http: httpx.Client, data: bytes, status: int, way: str) -> None:
    answer = ask(http, way, data)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"].startswith("image")


@pytest.mark.parametrize(
    "body",
    [
        {}, {"n": 2, "variation_strength": 0.3, "variation_seed": 7}, {"student": "two"},
        {"hires": {"scale": 2, "upscaler": "lanczos"}, "deterministic": True},
        {"upscale": {"name": "lanczos", "width": 100, "height": 90}},
    ],
)  # fmt: skip
def test_the_same_picture_is_drawn_again(http: httpx.Client, body: dict[str, Any]) -> None:
    before = drawn(http, **body)
    count = len(http.get("/images").json()["images"])
    found = ask(http, "/replay", before).json()
    assert (found["verdict"], found["largest"], found["share"], found["reasons"]) == ("equal", 0, 0.0, [])
    new = Image.open(io.BytesIO(base64.b64decode(found["image"])))
    assert (np.asarray(new) == np.asarray(Image.open(io.BytesIO(before)))).all()
    assert len(http.get("/images").json()["images"]) == count  # it is not kept


def test_what_differs_is_said(http: httpx.Client) -> None:
    before = drawn(http)
    with Image.open(io.BytesIO(before)) as image:
        pixels = np.array(image)
        record = containers.decode(image).record
    other = containers.encode(255 - pixels, "png", record={**(record or {}), "model_hash": "f" * 64})
    found = ask(http, "/replay", other).json()
    assert found["verdict"] == "different" and found["largest"] > 8
    assert "ffffffffff" in found["reasons"][0]
    pixels[0, 0, 0] ^= 1
    found = ask(http, "/replay", containers.encode(pixels, "png", record=record)).json()
    assert (found["verdict"], found["largest"]) == ("close", 1) and found["share"] == 1 / 64**2
    assert "changed afterwards" in found["reasons"][0]
    found = ask(http, "/replay", containers.encode(pixels[:32], "png", record=record)).json()
    assert (found["verdict"], found["largest"]) == ("different", None) and "64x32" in found["reasons"][0]


@pytest.mark.parametrize(
    ("entries", "status", "word"),
    [
        ({"init_image_hash": "a" * 64}, 422, "began with a picture"),
        ({"control": [{"name": "canny"}]}, 422, "control"),
        ({"model": "unknown"}, 404, "unknown"),
        ({"num_inference_steps": "4; rm"}, 422, "num_inference_steps"),
        ({"num_inference_steps": 10**6}, 422, "num_inference_steps"),
        ({"width": 10**6}, 422, "width"),
        ({"hires": [1]}, 422, "form"),
        ({"student": "two"}, 422, "form"),
        ({"upscale": {"name": "../../x", "to": "axb"}}, 422, "form"),
        ({"adapters": [{"name": "../x", "weight": 1, "text_weight": 1}]}, 422, "adapter"),
        ({"seed": None, "extras": {"upscaler": "x"}}, 422, "enlarged"),
        ({"extras": {"upscaler": "x"}}, 422, "enlarged"),  # drawn first, so that all else is there
    ],
)
def test_records_that_cannot_be_drawn(
    http: httpx.Client, entries: dict[str, Any], status: int, word: str
) -> None:
    answer = ask(http, "/replay", changed(drawn(http), **entries))
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]["message"]


def test_a_picture_without_a_record_cannot_be_drawn_again(http: httpx.Client) -> None:
    answer = ask(http, "/replay", png({"parameters": WEBUI}))
    assert answer.status_code == 422 and "no record" in answer.json()["error"]["message"]


def test_upscalers_are_listed(http: httpx.Client) -> None:
    found = http.get("/upscalers").json()
    named = {one["name"]: one for one in found["upscalers"]}
    assert found["default"] in named and named["lanczos"]["installed"]
    assert named["waifu2x-cunet"]["noise"] == [0, 1, 2, 3] and named["photo"]["scales"] == [4]
    assert not any("-noise" in name for name in named)
