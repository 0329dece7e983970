"""The hub's own protocol, spoken by a server on this machine: pinned commits, redirects, ranges, logins."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fewstep.errors import NotFoundError, OutputError
from fewstep.models import hub

pytest.importorskip("huggingface_hub")

COMMIT = "c" * 40
LARGE = "unet/diffusion_pytorch_model.safetensors"
FILES = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "unet/config.json": b"{}",
    LARGE: save({"weight": np.arange(50_000, dtype=np.float32)}),
}
REFERENCE = hub.read_reference("owner/tiny@v1")


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers as huggingface.co does: large files lie on another host, a redirect leads there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.other = f"http://localhost:{self.server_address[1]}"
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        """Bytes of large files that were sent."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers))
        path = self.path.partition("?")[0]
        if path == "/api/models/owner/tiny/revision/v1" or path.endswith(f"/revision/{COMMIT}"):
            return self.send(200, json.dumps(listing()).encode(), {}, body)
        resolve = f"/owner/tiny/resolve/{COMMIT}/"
        if path.startswith(resolve) and (name := path.removeprefix(resolve)) in FILES:
            common = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob(FILES[name])}"'}
            if name != LARGE:
                return self.send(200, FILES[name], common, body)
            linked = {"X-Linked-Size": str(len(FILES[name])), "X-Linked-ETag": '"x"'}
            place = {"Location": f"{self.server.other}/storage"}
            return self.send(302, b"", {**common, **linked, **place}, body)
        if path == "/storage":
            return self.storage(headers, body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def storage(self, headers: dict[str, str], body: bool) -> None:
        data, start = FILES[LARGE], 0
        if "range" in headers:
            start = int(headers["range"].removeprefix("bytes=").partition("-")[0])
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.server.sent += len(data) - start
        return self.send(206 if start else 200, data[start:], extra, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def listing() -> dict[str, Any]:
    siblings = []
    for name, data in FILES.items():
        one: dict[str, Any] = {"rfilename": name, "size": len(data)}
        one["blobId"] = blob(data)
        if name == LARGE:
            one["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
        siblings.append(one)
    return {"id": "owner/tiny", "modelId": "owner/tiny", "sha": COMMIT, "siblings": siblings, "tags": []}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def test_A12_a_pipeline_comes_whole_from_one_commit(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    made = hub.download(
        REFERENCE,
        tmp_path,
        hub=hub.HuggingFace(server.url),
        on_bytes=lambda here, total: told.append((here, total)),
    )
    assert made.commit == COMMIT
    for name, data in FILES.items():
        assert (made.path / name).read_bytes() == data
    total = sum(map(len, FILES.values()))
    assert told[-1] == (total, total) and len(told) > len(FILES)
    fetched = {path for method, path, _ in server.seen if "/resolve/" in path}
    assert fetched == {f"/owner/tiny/resolve/{COMMIT}/{name}" for name in FILES}
    # The operator's login goes to the hub and not to the host that the file lies on.
    logins = {path: headers.get("authorization") for _, path, headers in server.seen}
    assert logins[f"/owner/tiny/resolve/{COMMIT}/{LARGE}"] == "Bearer hf_secret"
    assert logins["/storage"] is None


def test_A12_a_file_that_was_cut_is_gone_on_with_in_its_middle(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_retry(*arguments: Any, **more: Any) -> None:
        raise OSError("connection reset")

    from huggingface_hub import file_download

    source, get = hub.HuggingFace(server.url), file_download.http_get
    half = len(FILES[LARGE]) // 2

    def stopped(url: str, file: Any, **more: Any) -> None:
        if more["expected_size"] == len(FILES[LARGE]):
            file.write(FILES[LARGE][:half])
            no_retry()
        get(url, file, **more)

    monkeypatch.setattr(file_download, "http_get", stopped)
    with pytest.raises(OutputError, match="run it again, it goes on where it stopped"):
        hub.download(REFERENCE, tmp_path, hub=source)
    (growing,) = tmp_path.rglob("*.incomplete")
    assert growing.stat().st_size == half and not (tmp_path / "tiny").exists()
    monkeypatch.setattr(file_download, "http_get", get)
    server.seen.clear()
    made = hub.download(REFERENCE, tmp_path, hub=source)
    assert (made.path / LARGE).read_bytes() == FILES[LARGE]
    ranges = [
        headers["range"] for _, path, headers in server.seen if path == "/storage" and "range" in headers
    ]
    assert ranges == [f"bytes={half}-"] and server.sent == len(FILES[LARGE]) - half
    assert not [path for _, path, _ in server.seen if path.endswith("config.json")]  # was here already


def test_a_repository_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not found on the hub"):
        hub.download(hub.read_reference("owner/none"), tmp_path, hub=hub.HuggingFace(server.url))


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be downloaded"):
        hub.download(REFERENCE, tmp_path, hub=hub.HuggingFace("http://127.0.0.1:9"))
