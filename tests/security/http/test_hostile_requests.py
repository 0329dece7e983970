"""H06 to H13 through HTTP on the whole application: names, URLs, bombs, numbers and texts of attackers."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "api"))

from served import Served, serving

from fewstep.engine.adapters import Catalogue
from fewstep.engine.backends.fake import FakeBackend
from fewstep.errors import FewstepError
from fewstep.prompt import infotext
from fewstep.server import limits, urls
from fewstep.server.orders import Order
from fewstep.server.schemas import live
from fewstep.server.settings import Limits

LONG = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    small = Limits(body_seconds=1.0, max_body=1 << 20)
    with serving(tmp_path_factory.mktemp("hostile"), allow_urls=True, limits=small) as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_is_drawn(server: Served) -> Iterator[None]:
    before = server.backend.calls
    yield
    assert server.backend.calls == before


def post(server: Served, path: str, body: dict[str, Any] | bytes) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Content-Type": "application/json"}
    return httpx.post(server.url + path, content=content, headers=head, timeout=LONG)


def with_picture(server: Served, text: str) -> dict[str, httpx.Response]:
    """What each way in says of a picture that is given as a text."""
    return {
        path: post(server, path, body)
        for path, body in {
            "/api/v1/jobs": {"prompt": "a dog", "image": text},
            "/sdapi/v1/img2img": {"prompt": "a dog", "init_images": [text]},
            "/sdapi/v1/png-info": {"image": text},
            "/sdapi/v1/extra-single-image": {"image": text, "upscaling_resize": 2},
        }.items()
    }


def with_file(server: Served, data: bytes) -> httpx.Response:
    files = {"image": ("x.png", data, "image/png")}
    return httpx.post(server.url + "/v1/images/edits", data={"prompt": "a dog"}, files=files, timeout=LONG)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog <lora:../../x:1>", "<lora:/etc/passwd:1>", "<lora:x:1><lora:x:1>",
        "<lora:x\\y:1>", "<lora:x\x00y:1>", "<lora:.:1>", "<lora:..:1>",
        "<lora:" + "a" * 10_000 + ":1>", "".join(f"<lora:n{number}:1>" for number in range(100)),
    ],
    ids=lambda text: ascii(text)[:24],
)  # fmt: skip
def test_h06_adapters_in_prompts_are_names(server: Served, audit: Any, prompt: str) -> None:
    with audit() as opened:
        answer = post(server, "/api/v1/jobs", {"prompt": prompt})
    assert answer.status_code in (404, 422), answer.text
    assert len(answer.text) < 2000
    assert not [name for name in opened if "passwd" in name or name.endswith((".safetensors", "x"))]


def test_h06_adapters_of_an_order_are_limited(tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    for number in range(9):
        tensors = {f"{layer}.lora_A.weight": np.ones((2, 8), np.float32),
                   f"{layer}.lora_B.weight": np.ones((8, 2), np.float32)}  # fmt: skip
        save_file(tensors, tmp_path / f"n{number}.safetensors")
    info = dataclasses.replace(FakeBackend().info, adapters=Catalogue([tmp_path]))

    def asked(count: int) -> Order:
        return Order(settings={"prompt": "".join(f"<lora:n{one}:1>" for one in range(count)), "seed": 0})

    assert len(limits.checked(info, asked(8), Limits()).adapters) == 8
    with pytest.raises(FewstepError, match="9 adapters"):
        limits.checked(info, asked(9), Limits())


def test_h13_half_a_character_on_the_socket() -> None:
    with pytest.raises(live.Unclear, match="half a character"):
        live.parse('{"id": 1, "prompt": "\\ud800"}')
    assert live.parse('{"id": 1, "prompt": "\\ud83d\\ude00"}')


class Listener:
    """A port of this machine that counts who comes, and sends what never ends."""

    def __init__(self, kind: str) -> None:
        self.kind, self.came = kind, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                stream, _ = self._socket.accept()
            except OSError:
                return
            self.came += 1
            threading.Thread(target=self._answer, args=(stream,), daemon=True).start()

    def _answer(self, stream: socket.socket) -> None:
        with stream:
            try:
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG")
                while self.kind == "endless":
                    stream.sendall(b"x" * 65_536)
                stream.recv(1)  # a drip that stops: until the other side hangs up
            except OSError:
                pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    made = Listener(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("listener", ["endless"], indirect=True)
def test_h08_no_url_leads_into_this_network(server: Served, listener: Listener) -> None:
    port, texts = listener.port, set()
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"):  # noqa: S104
        for path, answer in with_picture(server, f"http://{host}:{port}/x.png").items():
            assert answer.status_code in (403, 422), (path, answer.text)
            texts.add(answer.json()["error"]["message"] if path.startswith("/api") else "")
    for url in (f"file:///etc/passwd?{port}", f"ftp://127.0.0.1:{port}/", f"http://a@127.0.0.1:{port}/"):
        for path, answer in with_picture(server, url).items():
            assert answer.status_code in (403, 422), (path, answer.text)
            assert "root:" not in answer.text
    assert listener.came == 0
    assert len(texts - {""}) <= 3  # what is refused says little of why


@pytest.mark.parametrize("listener", ["endless", "drip"], indirect=True)
def test_h09_a_url_that_never_ends(
    server: Served, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "is_public", lambda address: True)
    monkeypatch.setattr(urls.fetch, "__kwdefaults__", {**(urls.fetch.__kwdefaults__ or {}), "seconds": 0.5})
    body = {"prompt": "a dog", "image": f"http://127.0.0.1:{listener.port}/x.png"}
    answer = post(server, "/api/v1/jobs", body)
    assert answer.status_code in (413, 422, 504), answer.text
    assert listener.came == 1


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + data + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


BOMBS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "50k": (lambda: png(50_000, 50_000), (413,)),
    "negative": (lambda: png(0xFFFFFFFF, 0xFFFFFFFF), (413, 422)),
    "1x1": (lambda: saved("PNG", (1, 1)), (422,)),
    "1x50000": (lambda: png(1, 50_000), (413, 422)),
    "cut": (lambda: saved("PNG")[:60], (422,)),
    "text bomb": (
        lambda: png(64, 64, chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(100_000_000)))),
        (413, 422),
    ),
    "gif": (lambda: saved("GIF"), (422,)),
    "tiff": (lambda: saved("TIFF"), (422,)),
    "pdf": (lambda: saved("PDF"), (422,)),
    "eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", (422,)),
    "psd": (lambda: b"8BPS\0\1" + bytes(60), (422,)),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", (422,)),
    "nothing": (lambda: b"", (422,)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_h10_bombs(server: Served, name: str) -> None:
    make, expected = BOMBS[name]
    data = make()
    memory = psutil.Process().memory_info().rss
    answers = with_picture(server, base64.b64encode(data).decode())
    answers["/v1/images/edits"] = with_file(server, data)
    for path, answer in answers.items():
        if path == "/sdapi/v1/png-info" and answer.status_code == 200:
            assert answer.json()["info"] == ""  # it reads texts, and these were none
            continue
        assert answer.status_code in (*expected, 400), (path, answer.status_code, answer.text)
        assert "/root" not in answer.text and "Traceback" not in answer.text
    assert psutil.Process().memory_info().rss - memory < 200 << 20
    assert httpx.get(server.url + "/healthz").status_code == 200


BIG = "1" + "0" * 400


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/sdapi/v1/txt2img", '"steps": 1000000000', "steps"),
        ("/sdapi/v1/txt2img", '"batch_size": 1000000000', "batch_size"),
        ("/sdapi/v1/txt2img", '"n_iter": 1000000000', "n_iter"),
        ("/sdapi/v1/txt2img", '"width": 100000, "height": 100000', "width"),
        ("/sdapi/v1/txt2img", f'"seed": {1 << 64}', "seed"),
        ("/sdapi/v1/txt2img", '"cfg_scale": NaN', ""),
        ("/sdapi/v1/txt2img", f'"cfg_scale": {BIG}', ""),
        ("/sdapi/v1/txt2img", '"sampler_name": "../../x"', "sampler"),
        ("/sdapi/v1/txt2img", '"steps": 150, "batch_size": 16, "width": 4096, "height": 4096', ""),
        ("/v1/images/generations", '"n": 1000000000', "n"),
        ("/v1/images/generations", '"size": "7x7"', "size"),
        ("/v1/images/generations", '"size": "100000x100000"', "size"),
        ("/v1/images/generations", '"model": "../../etc/passwd"', "model"),
        ("/v1/images/generations", f'"seed": {1 << 64}', "seed"),
        ("/v1/images/generations", '"output_compression": -1', "output_compression"),
        ("/api/v1/jobs", '"num_inference_steps": 150, "n": 16, "width": 4096, "height": 4096', ""),
    ],
)
def test_h12_numbers_out_of_bounds(server: Served, path: str, fields: str, named: str) -> None:
    answer = post(server, path, f'{{"prompt": "a dog", {fields}}}'.encode())
    assert answer.status_code in (404, 422), answer.text
    assert named in answer.text


def test_h12_every_number_of_the_native_body(server: Served) -> None:
    """Read from the document, so that a new field is tested by itself."""
    document = httpx.get(server.url + "/api/v1/openapi.json").json()
    fields = document["components"]["schemas"]["GenerateBody"]["properties"]
    tried = 0
    for name, field in fields.items():
        kinds = {one.get("type") for one in field.get("anyOf", [field])}
        if kinds & {"integer", "number"}:
            for value in ("-1e300", "1e300", BIG, "-1", '"x"', "[]"):
                answer = post(server, "/api/v1/jobs", f'{{"prompt": "a dog", "{name}": {value}}}'.encode())
                assert answer.status_code == 422, (name, value, answer.text)
                tried += 1
    assert tried > 60


HOSTILE_TEXTS = {
    "round": lambda n: "(" * n,
    "closed": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "square": lambda n: "[" * n,
    "pairs": lambda n: "()" * (n // 2),
    "weights": lambda n: "(a:1.1)" * (n // 7),
    "tags": lambda n: "<lora:" * (n // 6),
    "colons": lambda n: ":" * n,
    "backslashes": lambda n: "\\" * n,
    "and": lambda n: "a AND " * (n // 6),
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_h13_prompts_cost_what_their_length_is(server: Served, name: str) -> None:
    def cost(length: int) -> float:
        """Seconds of this thread's processor, which other processes do not change."""
        generator, found = server.services.generator, []

        order = Order(settings={"prompt": HOSTILE_TEXTS[name](length), "seed": 0})
        for _ in range(3):
            began = time.thread_time()
            try:
                generator.request(order)
            except FewstepError:
                pass
            found.append(time.thread_time() - began)
        return min(found)

    cost(1000)
    n, double, four = cost(4_900), cost(9_800), cost(19_600)
    assert four < 0.25  # 50 ms of a quiet core
    assert four < 10 * n + 0.01 and double < 5 * n + 0.01, (n, double, four)


@pytest.mark.parametrize("length", [20_001, 900_000])
def test_h13_long_prompts_are_refused_at_once(server: Served, length: int) -> None:
    for path in ("/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations"):
        began = time.process_time()
        answer = post(server, path, {"prompt": "(" * length})
        assert answer.status_code == 422, answer.text
        assert "prompt" in answer.text and len(answer.text) < 2000
        assert time.process_time() - began < 1.0


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff\\ud800"])
def test_h13_half_a_character(server: Served, text: str) -> None:
    for path in ("/api/v1/jobs", "/sdapi/v1/txt2img", "/v1/images/generations"):
        answer = post(server, path, f'{{"prompt": "{text}"}}'.encode())
        assert answer.status_code in (400, 422), (path, answer.text)


@pytest.mark.parametrize("name", ["settings", "long"])
def test_h13_infotexts_are_read_in_linear_time(name: str) -> None:
    def cost(length: int) -> float:
        text = "a\n" + ("Steps: 1, " if name == "settings" else 'Model: "\\') * (length // 10)
        found = []
        for _ in range(3):
            began = time.thread_time()
            try:
                infotext.read(text)
            except FewstepError:  # what is refused costs too
                pass
            found.append(time.thread_time() - began)
        return min(found)

    assert cost(20_000) < 10 * cost(5_000) + 0.01
