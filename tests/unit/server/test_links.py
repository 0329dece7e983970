"""Signed links: for one path, one owner, one hour, one key."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from fewstep.server import links
from fewstep.server.settings import Key, ServerSettings

PATH = "/api/v1/images/0123/file"
NOW = 1_000_000.0


def settings(**secrets: str) -> ServerSettings:
    return ServerSettings(keys=tuple(Key(name=name, secret=SecretStr(own)) for name, own in secrets.items()))


def test_without_keys_no_token_is_needed() -> None:
    assert links.sign(ServerSettings(), PATH, "") is None


def test_a_token_lets_its_owner_in() -> None:
    own = settings(ann="secret-of-ann", bob="secret-of-bob")
    token = links.sign(own, PATH, "ann", now=NOW)
    assert token is not None
    assert links.verify(own, PATH, token, now=NOW + links.LIFE - 1) == "ann"


def test_a_token_is_for_one_path_one_hour_one_key() -> None:
    own = settings(ann="secret-of-ann", bob="secret-of-bob")
    token = links.sign(own, PATH, "ann", now=NOW)
    assert token is not None
    expires, name, signature = token.split(".")
    bob = links.sign(own, PATH, "bob", now=NOW)
    assert bob is not None
    later = f"{int(expires) + 9}.{name}.{signature}"
    others = bob.split(".")[1]
    for path, given, when, server in (
        (PATH + "x", token, NOW, own),
        (PATH, token, NOW + links.LIFE, own),
        (PATH, later, NOW, own),
        (PATH, f"{expires}.{others}.{signature}", NOW, own),
        (PATH, token, NOW, settings(ann="another-secret")),
        (PATH, token, NOW, settings(bob="secret-of-bob")),
        (PATH, token, NOW, ServerSettings()),
    ):
        assert links.verify(server, path, given, now=when) is None


def request(path: str, query: str, method: str = "GET", kind: str = "http") -> dict[str, Any]:
    return {"type": kind, "method": method, "path": path, "query_string": query.encode()}


def test_only_reading_of_pictures_is_let_in() -> None:
    own = settings(ann="secret-of-ann")
    other = "/api/v1/jobs/0123"
    good, elsewhere = (links.sign(own, path, "ann", now=NOW) for path in (PATH, other))
    for scope, path, owner in (
        (request(PATH, f"token={good}"), PATH, "ann"),
        (request(PATH, f"download=1&token={good}", "HEAD"), PATH, "ann"),
        (request(PATH, f"token={good}", "DELETE"), PATH, None),
        (request(PATH, f"token={good}", kind="websocket"), PATH, None),
        (request(PATH, f"token={good}&token={good}"), PATH, None),
        (request(PATH, f"token={good}&x={'y' * 2000}"), PATH, None),
        (request(PATH, ""), PATH, None),
        (request(other, f"token={elsewhere}"), other, None),
    ):
        assert links.owner_of(own, scope, path, now=NOW) == owner


def test_nonsense_is_no_token() -> None:
    own = settings(ann="secret-of-ann")
    for text in (
        "",
        ".",
        "..",
        "a.b.c",
        "1.é.x",
        "-1.YW5u.AAAA",
        "9" * 300 + ".YW5u.AAAA",
        "1.YW5u.AAAA.",
        "٣.YW5u.AA",
    ):
        assert links.verify(own, PATH, text, now=0.0) is None


def test_the_secret_is_not_in_the_token() -> None:
    own = settings(ann="secret-of-ann")
    assert "secret" not in str(links.sign(own, PATH, "ann", now=NOW))
