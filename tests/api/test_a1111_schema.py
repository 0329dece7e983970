"""Requests that schemathesis makes up from our OpenAPI document, for the routes of the WebUI's API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
ROUTES = r"^/(sdapi|internal)/"
MEANT = (501, 503, 504)
"""Statuses above 500 that are answers on purpose."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("a1111-schema")) as served:
        # Networks would take most of the time.
        answer = httpx.post(f"{served.url}/sdapi/v1/options", json={"fewstep_upscaler": "Lanczos"})
        assert answer.status_code == 200
        yield served


def test_no_answer_is_undocumented_or_of_another_form(server: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/api/v1/openapi.json").include(path_regex=ROUTES)
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=5 if operation.method == "post" else 1, deadline=None, database=None,
            derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def check(case: schemathesis.Case) -> None:
            answer = case.call(timeout=30)
            case.validate_response(answer, checks=CHECKS)
            if answer.status_code not in MEANT:
                case.validate_response(answer, checks=[not_a_server_error])

        check()
        seen.add(operation.path)
    assert {"/sdapi/v1/txt2img", "/sdapi/v1/options", "/internal/progress"} <= seen and len(seen) > 35
