"""What an exception becomes, and what is taken out of its text."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fewstep import errors
from fewstep.server import caller, faults
from fewstep.server.redaction import Redactor
from fewstep.server.settings import Key, ServerSettings

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.FewstepError) and kind is not errors.FewstepError
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_and_a_code(kind: type[errors.FewstepError]) -> None:
    fault = faults.fault_of(kind("what, why and the fix"))
    assert (fault.status, fault.message, fault.name) == (
        kind.http_status,
        "what, why and the fix",
        kind.__name__,
    )
    assert fault.code == fault.code.lower() and " " not in fault.code
    assert any(issubclass(kind, known) for known in faults.CODES) or kind is errors.RefusedError


def test_an_error_may_say_its_code_and_field() -> None:
    error = errors.UsageError("there is no model that describes pictures")
    error.code, error.param = "no_model", "model"
    fault = faults.fault_of(error)
    assert (fault.code, fault.param) == ("no_model", "model")
    assert faults.fault_of(errors.RecipeError("x")).code == "invalid_value"


def body(path: str, error: BaseException, root_path: str = "") -> dict[str, object]:
    scope = {"type": "http", "path": path, "root_path": root_path, "method": "GET", "headers": []}
    caller.attach(scope, caller.Caller(request_id="0123"))
    return json.loads(faults.answer(scope, error).body)


@pytest.mark.parametrize(
    "path", ["/", "/api/v1/jobs", "/v10", "/sdapi", "/v1x/images", "/healthz", "/V1/images"]
)
def test_shape_of_our_own_api(path: str) -> None:
    expected = {"error": {"code": "invalid_value", "message": "steps is 0", "request_id": "0123"}}
    if path != "/sdapi":
        assert body(path, errors.UsageError("steps is 0")) == expected


@pytest.mark.parametrize("path", ["/v1", "/v1/images/generations", "/v1/x"])
def test_shape_of_openai(path: str) -> None:
    expected = {"message": "x", "type": "invalid_request_error", "param": None, "code": "invalid_value"}
    assert body(path, errors.UsageError("x")) == {"error": expected}
    assert body("/base" + path, errors.UsageError("x"), "/base") == {"error": expected}
    kinds = [
        body(path, error)["error"]["type"]
        for error in (
            errors.Unauthorized("x"),
            errors.QueueFull("x"),
            errors.Expired("x"),
            KeyError("x"),
            HTTPException(404),
        )
    ]
    assert kinds == [
        "authentication_error",
        "rate_limit_error",
        "server_error",
        "server_error",
        "invalid_request_error",
    ]


def test_shape_of_the_webui() -> None:
    expected = {"error": "UsageError", "detail": "x", "body": "", "errors": "x"}
    assert body("/sdapi/v1/txt2img", errors.UsageError("x")) == expected
    assert body("/sdapi/v1/txt2img", KeyError("x"))["error"] == "InternalServerError"


class Wish(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(ge=1, le=150)
    sizes: list[int] = Field(default_factory=list)


def invalid(**given: object) -> RequestValidationError:
    with pytest.raises(ValidationError) as caught:
        Wish(**given)
    return RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()])


def test_values_that_do_not_fit_name_the_field_and_the_bound() -> None:
    error = invalid(steps=10**9, sizes=[1, "private"], unknown=1)
    fault = faults.fault_of(error)
    assert (fault.status, fault.param) == (422, "steps")
    assert "steps: Input should be less than or equal to 150" in fault.message
    assert "sizes.1: " in fault.message and "unknown: " in fault.message and "private" not in fault.message
    detail = body("/sdapi/v1/txt2img", error)["detail"]
    assert detail[0] == {
        "loc": ["body", "steps"],
        "msg": "Input should be less than or equal to 150",
        "type": "less_than_equal",
    }


def test_many_faults_are_not_all_told() -> None:
    fault = faults.fault_of(invalid(steps=1, sizes=["x"] * 1000))
    assert fault.message.endswith("and 980 more") and len(json.dumps(fault.details)) < 5_000


def test_a_body_that_is_no_json() -> None:
    error = RequestValidationError(
        [{"type": "json_invalid", "loc": ("body", 3), "msg": "JSON decode error", "ctx": {"error": "x"}}]
    )
    assert (faults.fault_of(error).status, faults.fault_of(error).code) == (400, "malformed")


def test_half_a_character_can_be_sent() -> None:
    assert body("/api", errors.UsageError("prompt \ud800"))["error"]["message"] == "prompt \ud800"


def app() -> FastAPI:
    made = FastAPI()

    @made.websocket("/live/{kind}")
    async def live(socket: WebSocket, kind: str) -> None:
        await socket.accept()
        raise {
            "usage": errors.UsageError("é" * 200),
            "full": errors.NotReady("stopping"),
            "memory": MemoryError(),
            "engine": errors.EngineError("nothing finite"),
        }[kind]

    @made.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("x")

    faults.install(made)
    return made


@pytest.mark.parametrize(
    ("kind", "code"), [("usage", 1008), ("full", 1013), ("memory", 1013), ("engine", 1011)]
)
def test_sockets_are_closed_with_a_reason(kind: str, code: int) -> None:
    with (
        TestClient(app()).websocket_connect(f"/live/{kind}") as socket,
        pytest.raises(WebSocketDisconnect) as closed,
    ):
        socket.receive_text()
    assert closed.value.code == code and 0 < len(closed.value.reason.encode()) <= 120


def test_without_the_guard_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = TestClient(app(), raise_server_exceptions=False).get("/bug")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
    assert "ZeroDivisionError" in caplog.text and "ZeroDivision" not in answer.text


SETTINGS = ServerSettings(keys=(Key(name="a", secret="p@ss word/é"),), data=Path("/srv/My Pictures/few step"))  # noqa: S106


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/etc/passwd: no such file", "passwd: no such file"),
        ("cannot open '/home/ann/x.safetensors' (2)", "cannot open 'x.safetensors' (2)"),
        ("C:\\Users\\ann\\x.png is damaged", "x.png is damaged"),
        ("\\\\server\\share\\x.png", "x.png"),
        ("~/models/x", "x"),
        ("PosixPath('/a/b')", "PosixPath('b')"),
        ("/srv/My Pictures/few step/images/x.png: full", "x.png: full"),
        (f"{Path.home()}/x/y.png", "y.png"),
        (f"in {Path(faults.__file__)}, line 3", "in faults.py, line 3"),
        ("file:///etc/passwd", "passwd"),
        ("use image/png, and/or 1/255 of 128x128", "use image/png, and/or 1/255 of 128x128"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("POST /sdapi/v1/txt2img or log in at /login", "POST /sdapi/v1/txt2img or log in at /login"),
        ("a <lora:x:1> </b> tag", "a <lora:x:1> </b> tag"),
        ("key p@ss word/é", "key ***"),
        ("key p%40ss%20word%2F%C3%A9", "key ***"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("Basic dXNlcjpwYXNz", "Basic ***"),
        ("postgresql://me:pw@db/x", "postgresql://***@db/x"),
        ("token hf_abcdefghijklmnopqr", "token ***"),
        ("two\nlines\t\x0b here", "two lines here"),
    ],
)
def test_redaction(given: str, expected: str) -> None:
    assert Redactor(SETTINGS)(given) == expected


def test_redaction_is_short_and_quick() -> None:
    assert len(Redactor()("x" * 10**6)) == 2_000
    assert len(Redactor()("/a" * 10**6)) <= 2_000


def test_redaction_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", missing)
    assert Redactor(SETTINGS)("/srv/My Pictures/few step/x.png") == "x.png"


def test_secrets_leave_paths_in_the_log() -> None:
    trace = 'File "/a/b.py", line 3\n  raise ValueError("p@ss word/é")\n'
    assert Redactor(SETTINGS).secrets(trace) == 'File "/a/b.py", line 3\n  raise ValueError("***")\n'


def test_the_field_that_is_to_blame_is_told_by_our_own_api_alone() -> None:
    error = errors.UsageError("width is 100: give --size in multiples of 8 pixels", field="width")
    told = {"code": "invalid_value", "message": str(error), "request_id": "0123", "field": "width"}
    assert body("/api/v1/jobs", error)["error"] == told
    assert body("/v1/images/generations", error)["error"]["param"] is None  # it has a field of another name
    assert "field" not in body("/sdapi/v1/txt2img", error)
    assert "field" not in body("/api/v1/jobs", errors.UsageError("x"))["error"]


def test_the_kind_of_a_body_is_no_field() -> None:
    """pydantic puts the branch that it took of a union into the place."""
    one = {"loc": ("body", "generate", "width"), "msg": "too small", "type": "x"}
    for given in ({"width": 3}, {"kind": "generate", "width": 3}):
        fault = faults.fault_of(RequestValidationError([one], body=given))
        assert (fault.field, fault.message) == ("width", "width: too small")
    path = {"loc": ("body", "path"), "msg": "too long", "type": "x"}  # of the name of a part of requests
    assert faults.fault_of(RequestValidationError([path], body={})).message == "path: too long"
    inner = {"loc": ("body", "upscale", "scale"), "msg": "too small", "type": "x"}
    assert faults.fault_of(RequestValidationError([inner], body={"kind": "upscale"})).field == "scale"
    assert faults.fault_of(RequestValidationError([inner], body={"upscale": {}})).field == "upscale.scale"
