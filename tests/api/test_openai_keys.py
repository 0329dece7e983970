"""OpenAI's routes and the live mode on a server with keys: what is whose."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import openai
import pytest
from pydantic import SecretStr
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving

from fewstep.server import links
from fewstep.server.settings import Key

SECRETS = {"ann": "secret-of-ann", "bob": "secret-of-bob"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tuple(Key(name=name, secret=SecretStr(secret)) for name, secret in SECRETS.items())
    with serving(tmp_path_factory.mktemp("keys"), keys=keys) as served:
        yield served


def client(server: Served, name: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=SECRETS.get(name, "wrong"), max_retries=0)


def live(server: Served, name: str) -> connect:
    url = server.url.replace("http", "ws", 1) + "/api/v1/live"
    headers = {"Authorization": f"Bearer {SECRETS[name]}"} if name else {}
    return connect(url, additional_headers=headers, proxy=None)


def test_without_a_key_nothing_is_drawn(server: Served) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(server, "nobody").images.generate(prompt="red")
    with pytest.raises(InvalidStatus) as caught, live(server, ""):
        pass
    assert caught.value.response.status_code in (401, 403)


def test_a_url_opens_this_one_picture_for_an_hour(server: Served) -> None:
    made = client(server, "ann").images.generate(prompt="red", size="64x64", response_format="url")
    assert made.data is not None and made.data[0].url is not None
    parts = urlsplit(made.data[0].url)
    (token,) = parse_qs(parts.query)[links.PARAMETER]
    settings = server.services.settings
    assert links.verify(settings, parts.path, token) == "ann"
    assert links.verify(settings, parts.path.replace("/file", "/other"), token) is None


def test_a_key_of_another_caller_is_another_request(server: Served) -> None:
    before = server.backend.calls
    for name in ("ann", "bob", "ann"):
        client(server, name).images.generate(
            prompt="red", size="64x64", quality="low", extra_headers={"Idempotency-Key": "same"}
        )
    assert server.backend.calls - before == 2 * 2


def test_a_session_is_resumed_by_its_owner_only(server: Served) -> None:
    with live(server, "ann") as ann:
        token = json.loads(ann.recv())["token"]
        with live(server, "bob") as bob:
            bob.recv()
            bob.send(json.dumps({"type": "resume", "token": token}))
            assert json.loads(bob.recv())["type"] == "error"
        with live(server, "ann") as again:
            again.recv()
            again.send(json.dumps({"type": "resume", "token": token}))
            assert json.loads(again.recv())["type"] == "resumed"


def test_live_pictures_are_their_owners(server: Served) -> None:
    with live(server, "bob") as bob:
        bob.recv()
        bob.send(json.dumps({"prompt": "blue", "save": True, "steps": 1}))
        told = json.loads(bob.recv())
        assert server.services.history.get(told["image_id"], "bob").owner == "bob"
