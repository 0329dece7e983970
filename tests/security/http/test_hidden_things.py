"""H15 to H19 through HTTP: what pasted texts, names, faults, other keys and options reveal or change."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving, until
from websockets.sync.client import connect

from fewstep import errors
from fewstep.server.a1111.options import OPTIONS
from fewstep.server.settings import Limits, ServerSettings

LONG = 60.0
SECRETS = {"ann": "correct-horse-battery", "bob": "staple-and-more-staples"}
DRAW = {"prompt": "a dog", "steps": 2, "width": 64, "height": 64}
ROOT = str(Path(__file__).parents[3])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tuple({"name": name, "secret": secret} for name, secret in SECRETS.items())
    with serving(tmp_path_factory.mktemp("hidden"), keys=keys) as served:
        yield served


def asked(server: Served, method: str, path: str, who: str = "ann", **given: Any) -> httpx.Response:
    head = {"Authorization": f"Bearer {SECRETS[who]}"}
    return httpx.request(method, server.url + path, headers=head, timeout=LONG, **given)


HOSTILE = (
    "a cat\nNegative prompt: rain\nSteps: 2, Seed: 5, Model: other, Model hash: 0123456789, VAE: /etc/passwd,"
    " sd_model_checkpoint: other, outdir_samples: /tmp/evil, api_enable_requests: True, Script: x.py,"
    ' Lora hashes: "x: 1234", samples_filename_pattern: [prompt]/../../x, User: root, deadline: 1e9,'
    " max_pixels: 999999999, save: False, owner: bob, job_id: 1"
)


def test_h15_a_pasted_text_fills_in_a_closed_list(server: Served) -> None:
    before = asked(server, "GET", "/sdapi/v1/options").json()
    settings = server.services.settings.model_dump_json()
    answer = asked(server, "POST", "/sdapi/v1/txt2img", json={"infotext": HOSTILE, "width": 64, "height": 64})
    assert answer.status_code == 200, answer.text
    told = json.loads(answer.json()["info"])
    assert told["prompt"] == "a cat" and told["seed"] == 5
    assert told["sd_model_name"] == "fake"
    assert "another model" in answer.text or "other" in str(told.get("comments", ""))
    assert asked(server, "GET", "/sdapi/v1/options").json() == before
    assert server.services.settings.model_dump_json() == settings
    assert asked(server, "GET", "/api/v1/images", "bob").json()["images"] == []


def test_h15_reading_a_picture_changes_nothing(server: Served) -> None:
    before = asked(server, "GET", "/sdapi/v1/options").json()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", HOSTILE)
    text.add_text("script", "<script>alert(1)</script>")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG", pnginfo=text)
    body = {"image": base64.b64encode(buffer.getvalue()).decode()}
    answer = asked(server, "POST", "/sdapi/v1/png-info", json=body)
    assert answer.status_code == 200 and answer.json()["info"].startswith("a cat")
    assert answer.headers["content-type"].startswith("application/json")
    assert asked(server, "GET", "/sdapi/v1/options").json() == before


@pytest.mark.parametrize(
    "prompt", ["../../x", "/etc/passwd", "[prompt]", "[date]/x", "a\x00b", "a\nb", "C:\\x", "é" * 200, "."]
)
def test_h16_no_file_is_named_by_a_prompt(server: Served, prompt: str) -> None:
    outputs = server.services.settings.outputs
    body = DRAW | {"prompt": prompt, "override_settings": {"samples_filename_pattern": "[prompt]"}}
    asked(server, "POST", "/sdapi/v1/txt2img", json=body)
    asked(server, "POST", "/v1/images/generations", json={"prompt": prompt, "size": "64x64"})
    names = [str(one.relative_to(outputs)) for one in outputs.rglob("*") if one.is_file()]
    assert names
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d/[0-9a-f]{32}\.(png|json)", name) for name in names), names


FAULTS: list[tuple[BaseException, int]] = [
    (RuntimeError("bug at {place}"), 500), (ValueError("shape {place}"), 500), (KeyError("{place}"), 500),
    (MemoryError("{place}"), 503), (OSError(5, "Input/output error", "{place}"), 500),
    (AssertionError("{place}"), 500), (errors.EngineError("the model at {place} failed"), 500),
    (errors.OutputError("{place}: the disk is full"), 507), (errors.NotReady("{place} is loading"), 503),
    (errors.CheckpointError("{place}: damaged"), 422), (errors.Expired("too late for {place}"), 504),
    (RecursionError("{place}"), 500),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status"), FAULTS, ids=lambda one: type(one).__name__)
def test_h17_faults_of_the_whole_server(
    server: Served,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    status: int,
) -> None:
    place = f"{server.services.settings.data}/x {SECRETS['ann']} {ROOT}/src"
    arguments = tuple(
        str(one).replace("{place}", place) if isinstance(one, str) else one for one in error.args
    )
    made = type(error)(*arguments)

    def submit(*given: Any, **named: Any) -> Any:
        raise made

    monkeypatch.setattr(server.services.generator, "submit", submit)
    for path, body in (
        ("/api/v1/jobs", {"prompt": "a dog"}),
        ("/sdapi/v1/txt2img", DRAW),
        ("/v1/images/generations", {"prompt": "a dog", "size": "64x64"}),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            answer = asked(server, "POST", path, json=body)
        assert answer.status_code == status, (path, answer.text)
        told = answer.text + str(answer.headers)
        for hidden in (str(server.services.settings.data), SECRETS["ann"], ROOT, "Traceback", "/root", ".py"):
            assert hidden not in told, (path, hidden, told)
        assert len(answer.headers["x-request-id"]) == 32
        if status == 500 and not isinstance(made, errors.FewstepError):
            assert "Traceback" in caplog.text and answer.headers["x-request-id"] in caplog.text
        assert SECRETS["ann"] not in caplog.text


def test_h18_what_another_key_draws_is_not_seen(server: Served) -> None:
    with server.held():
        made = asked(server, "POST", "/api/v1/jobs", json={"prompt": "a dog"}).json()["id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)
        until(server.backend.waiting.is_set)
        assert asked(server, "GET", "/api/v1/jobs", "bob").json()["jobs"] == []
        for method, path in (
            ("GET", f"/api/v1/jobs/{made}"), ("GET", f"/api/v1/jobs/{made}/events"),
            ("POST", f"/api/v1/jobs/{made}/cancel"), ("POST", f"/api/v1/jobs/{made}/requeue"),
        ):  # fmt: skip
            assert asked(server, method, path, "bob").status_code == 404, path
        shown = asked(server, "GET", "/sdapi/v1/progress", "bob").json()
        assert shown["progress"] == 0 and not shown["current_image"]
        asked(server, "POST", "/sdapi/v1/interrupt", "bob")
        assert asked(server, "GET", f"/api/v1/jobs/{made}").json()["state"] == "running"
    until(lambda: asked(server, "GET", f"/api/v1/jobs/{made}").json()["state"] == "done")


def test_h18_a_live_session_is_resumed_by_its_own_key(server: Served) -> None:
    url = server.url.replace("http", "ws", 1) + "/api/v1/live"
    heads = {name: {"Authorization": f"Bearer {secret}"} for name, secret in SECRETS.items()}
    with connect(url, additional_headers=heads["ann"], proxy=None) as ann:
        token = json.loads(ann.recv(LONG))["token"]
        with connect(url, additional_headers=heads["bob"], proxy=None) as bob:
            bob.recv(LONG)
            bob.send(json.dumps({"type": "resume", "id": 1, "token": token}))
            assert json.loads(bob.recv(LONG))["type"] == "error"
        ann.send(json.dumps({"type": "ping", "id": 2}))
        assert json.loads(ann.recv(LONG))["type"] == "pong"


def test_h19_no_setting_of_the_server_is_an_option(server: Served) -> None:
    before = server.services.settings.model_dump_json()
    names = {
        *ServerSettings.model_fields,
        *Limits.model_fields,
        "ckpt_dir",
        "outdir_samples",
        "clean_temp_dir",
    }
    names |= {"quicksettings", "sd_vae_folder", "__class__", "lora_dir", "samples_filename_pattern"}
    assert not names & set(OPTIONS)
    for name in sorted(names):
        answer = asked(server, "POST", "/sdapi/v1/options", json={name: "/etc/passwd"})
        assert answer.status_code == 422, name
        assert name not in asked(server, "GET", "/sdapi/v1/options").json()
    assert server.services.settings.model_dump_json() == before


def test_h19_what_is_an_option_takes_no_path(server: Served) -> None:
    before = asked(server, "GET", "/sdapi/v1/options").json()
    for name in OPTIONS:
        for value in ("../../etc/passwd", {"a": 1}, 10**30):
            answer = asked(server, "POST", "/sdapi/v1/options", json={name: value})
            assert answer.status_code in (200, 404, 422), (name, value, answer.text)
    after = asked(server, "GET", "/sdapi/v1/options").json()
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {"fewstep_student"}, changed  # a name; one that is not there is refused when it draws
    assert asked(server, "GET", "/sdapi/v1/options", "bob").json() == before
