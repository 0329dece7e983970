"""Requests that schemathesis makes up from our OpenAPI document, for every route: no answer is undocumented.

The routes of the WebUI's API are also tested in test_a1111_schema.py, with a faster upscaler. Here the
application runs in this process, without a port.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.server.app import create_app
from fewstep.server.settings import ServerSettings

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
MEANT = (501, 503, 504, 507)
"""Statuses above 500 that are answers on purpose."""
STREAMS = ("/events",)
"""Ways whose answers do not end by themselves while a job runs."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = create_app(
        ServerSettings(
            data=tmp_path_factory.mktemp("schema"), engine="fake", grace=0.0, allowed_hosts=(asgi.HOST,)
        ),
        opener=lambda name: Engine(backend=FakeBackend()),
    )
    with TestClient(made, base_url="http://localhost:7860") as client:
        ready = threading.Event()
        while client.get("/readyz").status_code != 200:
            ready.wait(0.01)
        yield made


def check(app: Any, examples: int, only: str) -> set[str]:
    """Send made-up requests to every route whose path begins so; returns the paths."""
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
    seen = set()
    for found in schema.include(path_regex=only).get_all_operations():
        operation = found.ok()
        if operation.path.endswith(STREAMS):
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=examples if operation.method in ("post", "patch", "put") else max(1, examples // 3),
            deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def one(case: schemathesis.Case) -> None:
            answer = case.call(timeout=60)
            case.validate_response(answer, checks=CHECKS)
            if answer.status_code not in MEANT:
                case.validate_response(answer, checks=[not_a_server_error])

        one()
        seen.add(operation.path)
    return seen


def test_every_status_that_may_come_is_documented(app: Any) -> None:
    """The guard, the queue and the deadline answer for every route, so every route says so."""
    document = app.openapi()
    for path, operations in document["paths"].items():
        if path in ("/healthz", "/readyz", "/login", "/metrics"):
            continue
        for method, operation in operations.items():
            for status in ("401", "403", "413", "415", "421", "422", "429", "500", "503", "504", "507"):
                assert status in operation["responses"], (method, path, status)
            assert {"400", "408"} <= set(operation["responses"]), (method, path)
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert "application/json" in answer.get("content", {}), (method, path, status)


@pytest.mark.parametrize("only", ["^/api/v1/", "^/v1/", "^/(healthz|readyz|metrics|login)"])
def test_no_answer_is_undocumented_or_of_another_form(app: Any, only: str) -> None:
    assert check(app, 6, only)


@pytest.mark.soak
def test_no_answer_is_undocumented_in_many_requests(app: Any) -> None:
    assert len(check(app, 100, "^/")) > 60
