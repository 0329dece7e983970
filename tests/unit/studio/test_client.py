"""The studio's way to the server: as the visitor and nobody else, refusals as sentences."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from fewstep.server.settings import Key
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.words import texts

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving

SECRETS = {"ann": "a" * 12, "bob": "b" * 12}


def visitor(server: Served, language: str = "en", **headers: str) -> Api:
    """As for an event of the page: Gradio's request, with what a browser sends."""
    url = httpx.URL(server.url)
    path = f"/studio/{language}/gradio_api/queue/join"
    scope = {"server": (url.host, url.port), "root_path": f"/studio/{language}", "path": path}
    return api_of(SimpleNamespace(headers=headers, request=SimpleNamespace(scope=scope)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = tuple(Key(name=name, secret=SecretStr(secret)) for name, secret in SECRETS.items())
    with serving(tmp_path_factory.mktemp("client"), keys=keys) as served:
        yield served


@pytest.fixture
def ann(server: Served) -> Api:
    return visitor(server, authorization=f"Bearer {SECRETS['ann']}")


def test_a_job_is_followed_to_its_end(server: Served, ann: Api) -> None:
    async def follow() -> tuple[list[dict[str, Any]], bytes, Any]:
        with server.held():
            job = await ann.post("/api/v1/jobs", {"prompt": "a fox", "seed": 3, "n": 1})
            watched = ann.watch(job["id"], every=0.01)
            seen = [await anext(watched)]
            server.gate.set()
            seen += [job async for job in watched]
        image_id = seen[-1]["result"]["images"][0]
        return (
            seen,
            await ann.data(f"/api/v1/images/{image_id}/file"),
            await ann.get(f"/api/v1/images/{image_id}"),
        )

    seen, data, image = asyncio.run(follow())
    assert seen[0]["state"] in ("queued", "running") and seen[-1]["state"] == "done"
    assert all(one != other for one, other in itertools.pairwise(seen))  # told of changes only
    assert data.startswith(b"\x89PNG") and image["record"]["prompt"] == "a fox"


def test_the_key_is_the_visitors_own(server: Served, ann: Api) -> None:
    """By header or by the login's cookie; what else a browser sends is not passed on."""

    async def ask() -> None:
        job = await ann.post("/api/v1/jobs", {"prompt": "hers"})
        bob = visitor(server, **{"x-api-key": SECRETS["bob"]})
        with pytest.raises(ApiError) as unknown:
            await bob.get(f"/api/v1/jobs/{job['id']}")
        assert unknown.value.status == 404
        async with httpx.AsyncClient(base_url=server.url) as browser:
            await browser.post("/login", data={"key": SECRETS["ann"]})
            cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        assert (await visitor(server, cookie=cookie).get(f"/api/v1/jobs/{job['id']}"))["id"] == job["id"]
        with pytest.raises(ApiError) as nobody:
            await visitor(server).get("/api/v1/jobs")
        assert (nobody.value.status, nobody.value.code) == (401, "unauthorized")

    asyncio.run(ask())
    api = visitor(
        server, cookie="c", origin="https://elsewhere.example", host="elsewhere.example", authorization="a"
    )
    assert api.headers == {"cookie": "c", "authorization": "a"}


def test_a_refusal_is_the_servers_sentence(ann: Api) -> None:
    async def ask(body: dict[str, Any]) -> ApiError:
        with pytest.raises(ApiError) as refused:
            await ann.post("/api/v1/jobs", body)
        return refused.value

    error = asyncio.run(ask({"prompt": "a fox", "num_inference_steps": -1}))
    assert error.status == 422 and "num_inference_steps" in str(error) and error.code


def test_queries_without_a_value_are_left_out(ann: Api) -> None:
    async def ask() -> None:
        assert "jobs" in await ann.get("/api/v1/jobs", kind=None, limit=2)
        with pytest.raises(ApiError):
            await ann.get("/api/v1/jobs", limit=0)

    asyncio.run(ask())


def test_a_server_that_is_gone_is_said_to_be() -> None:
    async def ask() -> None:
        await Api("http://127.0.0.1:9", {}).get("/api/v1/jobs")

    with pytest.raises(ApiError, match=r"does not answer .*; reload the page"):
        asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("0.0.0.0", "http://127.0.0.1:7860"),  # noqa: S104 - nothing listens
        ("::1", "http://[::1]:7860"),
        ("192.0.2.7", "http://192.0.2.7:7860"),
    ],
)
def test_the_server_is_asked_where_it_listens(host: str, base: str) -> None:
    scope = {"server": (host, 7860)}
    request: Any = SimpleNamespace(headers={}, request=SimpleNamespace(scope=scope))
    assert api_of(request).base == base


def test_a_refusal_begins_in_the_language_of_the_page(server: Served) -> None:
    def said(language: str) -> str:
        api = visitor(server, language, authorization=f"Bearer {SECRETS['ann']}")
        with pytest.raises(ApiError) as caught:
            asyncio.run(api.post("/api/v1/jobs", {"prompt": "a fox", "width": 100}))
        assert (caught.value.code, caught.value.field) == ("invalid_value", "width")
        return str(caught.value)

    assert said("zh") == "有一项设置无效。" + said("en")


def test_every_code_of_the_server_is_said_in_chinese() -> None:
    from fewstep.server import faults

    known = {*faults.CODES.values(), *faults._STATUS_CODES.values(), "model_not_found", "out_of_memory"}
    assert known <= texts("refusals").keys()
