"""The unmodified `openai` client against a whole server."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.server.openai import flights
from fewstep.server.pending import KnownJob


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("openai")) as served:
        yield served


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pixels(text: str | None) -> np.ndarray[Any, Any]:
    assert text is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def png(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def grey(size: int = 64, alpha: np.ndarray[Any, Any] | None = None) -> bytes:
    shades = np.full((size, size, 3), 128, dtype=np.uint8)
    return png(shades if alpha is None else np.dstack([shades, alpha]))


def test_models_are_listed_and_found(server: Served, client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names
    assert client.models.retrieve(names[0]).object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-image-9")
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"


def test_a_picture_is_drawn_with_its_settings_in_it(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a red apple", size="64x64", quality="low", n=2, user="u-1", extra_body={"seed": 7}
    )
    assert answer.data is not None and len(answer.data) == 2
    assert answer.size == "64x64"
    assert (answer.output_format, answer.background, answer.quality) == ("png", "opaque", "low")
    assert answer.safety_identifier == "u-1"
    assert all(one.revised_prompt is None and one.url is None for one in answer.data)
    first, second = (pixels(one.b64_json) for one in answer.data)
    assert first.shape == (64, 64, 3)
    assert (first != second).any()
    text = Image.open(io.BytesIO(base64.b64decode(answer.data[1].b64_json or ""))).info["parameters"]
    assert text.startswith("a red apple")
    assert "Steps: 2" in text and "Seed: 8" in text
    again = client.images.generate(prompt="a red apple", size="64x64", quality="low", extra_body={"seed": 7})
    assert again.data is not None
    assert (pixels(again.data[0].b64_json) == first).all()


def test_usage_counts_what_went_in_and_out(client: openai.OpenAI) -> None:
    usage = client.images.generate(prompt="a red apple", size="64x64", n=3).usage
    assert usage is not None and usage.output_tokens_details is not None
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 3, 6)
    assert (usage.input_tokens_details.text_tokens, usage.input_tokens_details.image_tokens) == (3, 0)
    edit = client.images.edit(image=grey(), prompt="a dog", size="64x64").usage
    assert edit is not None
    assert (edit.input_tokens_details.text_tokens, edit.input_tokens_details.image_tokens) == (2, 1)


@pytest.mark.parametrize(("quality", "calls"), [("low", 2), ("medium", 2), ("high", 4), ("auto", 5)])
def test_quality_decides_the_steps(server: Served, client: openai.OpenAI, quality: Any, calls: int) -> None:
    before = server.backend.calls
    client.images.generate(prompt="red", size="64x64", quality=quality)
    assert server.backend.calls - before == calls


@pytest.mark.parametrize("size", ["256x256", "96x64", "200x100", "32x32"])
def test_any_size_is_reached(client: openai.OpenAI, size: str) -> None:
    answer = client.images.generate(prompt="red", size=size, quality="low")
    assert answer.data is not None
    height, width, _ = pixels(answer.data[0].b64_json).shape
    assert f"{width}x{height}" == answer.size == size


def test_an_open_size_is_the_models_own_enlarged(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="red", quality="low")
    assert answer.size in ("64x64", "256x256")  # four times, where an upscaler is installed


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_kinds_of_files(client: openai.OpenAI, kind: Any) -> None:
    sizes = []
    for compression in [100] if kind == "png" else [100, 10]:
        answer = client.images.generate(
            prompt="red", size="64x64", output_format=kind, output_compression=compression,
            extra_body={"seed": 1},
        )  # fmt: skip
        assert answer.data is not None
        data = base64.b64decode(answer.data[0].b64_json or "")
        assert Image.open(io.BytesIO(data)).format == kind.upper()
        sizes.append(len(data))
    assert len(sizes) == 1 or sizes[1] < sizes[0]


def test_a_url_leads_to_the_kept_picture(client: openai.OpenAI, server: Served) -> None:
    answer = client.images.generate(
        prompt="blue", size="64x64", response_format="url", n=2, extra_body={"seed": 3}
    )
    assert answer.data is not None
    urls = [one.url for one in answer.data]
    assert all(one.b64_json is None for one in answer.data)
    assert len(set(urls)) == 2
    assert urls[0] is not None and urls[0].startswith(f"{server.url}/api/v1/images/")
    image = urls[0].split("/")[-2]
    kept = server.services.history.open(image, "")
    assert Image.open(io.BytesIO(kept)).info["parameters"].startswith("blue")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": "transparent"}, "background"),
        ({"output_format": "svg"}, "output_format"),
        ({"size": "huge"}, "size"),
        ({"size": "9999x9999"}, "size"),
        ({"n": 11}, "n"),
        ({"quality": "best"}, "quality"),
        ({"model": "dall-e-3"}, "model"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"stream": True, "n": 2}, "n"),
        ({"stream": True, "model": "dall-e-3"}, "model"),
    ],
)
def test_a_refusal_names_the_field(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.images.generate(**{"prompt": "red", **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    expected = openai.NotFoundError if param == "model" else openai.UnprocessableEntityError
    assert isinstance(caught.value, expected)


def test_an_edit_keeps_what_the_mask_does_not_let_through(client: openai.OpenAI) -> None:
    alpha = np.full((64, 64), 255, dtype=np.uint8)
    alpha[:, 32:] = 0
    mask = png(np.dstack([np.zeros((64, 64, 3), dtype=np.uint8), alpha]))
    for picture, given in ((grey(), {"mask": mask}), (grey(alpha=alpha), {})):
        answer = client.images.edit(image=picture, prompt="red", size="64x64", **given)
        assert answer.data is not None
        drawn = pixels(answer.data[0].b64_json)
        assert (drawn[:, :32] == 128).all()
        assert (drawn[:, 32:] != 128).any()


def test_an_edit_has_the_size_of_its_picture(client: openai.OpenAI) -> None:
    answer = client.images.edit(image=[grey(100)], prompt="red", quality="low")
    assert answer.size == "100x100"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_variation_is_like_its_picture(client: openai.OpenAI) -> None:
    answer = client.images.create_variation(image=grey(), n=2, size="64x64", user="u")  # type: ignore[arg-type]
    assert answer.data is not None and len(answer.data) == 2
    assert answer.size == "64x64"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image": [grey(), grey()]}, "image"),
        ({"image": b"no picture"}, "image"),
        ({"mask": grey(32, np.zeros((32, 32), dtype=np.uint8))}, "mask"),
        ({"mask": grey()}, "mask"),
        ({"mask": grey(alpha=np.full((64, 64), 255, dtype=np.uint8))}, "mask"),
        ({"markup": grey(alpha=np.zeros((64, 64), dtype=np.uint8))}, "markup"),
        ({"input_fidelity": "some"}, "input_fidelity"),
        ({"svg": {"model": "x"}}, "svg"),
    ],
)
def test_a_refused_form_names_the_field(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.edit(**{"image": grey(), "prompt": "red", **fields})
    assert caught.value.param == param


def test_a_stream_shows_pictures_on_the_way(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="red", size="64x64", quality="high", stream=True, partial_images=3, extra_body={"seed": 5}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + [
        "image_generation.completed"
    ]
    indices = [event.partial_image_index for event in events if event.type.endswith("partial_image")]
    assert indices == [0, 1, 2]
    for event in events:
        assert (event.size, event.quality, event.output_format, event.background) == (
            "64x64", "high", "png", "opaque",
        )  # fmt: skip
        assert pixels(event.b64_json).shape == (64, 64, 3)
        assert abs(event.created_at - events[0].created_at) < 60
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == 2
    whole = client.images.generate(prompt="red", size="64x64", quality="high", extra_body={"seed": 5})
    assert whole.data is not None
    assert (pixels(whole.data[0].b64_json) == pixels(last.b64_json)).all()


def test_a_stream_without_pictures_on_the_way_is_one_event(client: openai.OpenAI) -> None:
    events = list(client.images.edit(image=grey(), prompt="red", stream=True, partial_images=0))
    assert [event.type for event in events] == ["image_edit.completed"]


def test_a_streams_bytes(server: Served) -> None:
    body = {"prompt": "red", "size": "64x64", "stream": True, "partial_images": 1}
    with httpx.stream("POST", f"{server.url}/v1/images/generations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.read().decode().strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [
        "event: image_generation.partial_image", "event: image_generation.completed", "data: [DONE]",
    ]  # fmt: skip
    told = json.loads(blocks[0].split("\n")[1].removeprefix("data: "))
    assert set(told) == {
        "type", "b64_json", "background", "created_at", "output_format", "quality", "size",
        "partial_image_index",
    }  # fmt: skip


def test_a_model_that_fails_in_a_stream_is_an_error_in_it(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.backend, "_poison_after", server.backend.calls + 2)
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(prompt="red", size="64x64", stream=True, partial_images=2))
    assert caught.value.type == "server_error"
    assert caught.value.code == "engine_failed"


def test_a_model_that_fails_is_not_asked_again_by_the_client(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.backend, "_poison_after", server.backend.calls)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
    before = server.backend.calls
    with pytest.raises(openai.InternalServerError):
        client.images.generate(prompt="red", size="64x64", quality="low")
    assert server.backend.calls - before <= 2


def test_a_stream_that_is_left_ends_its_drawing(server: Served, client: openai.OpenAI) -> None:
    with server.held() as gate:
        stream = client.images.generate(prompt="red", size="64x64", quality="high", stream=True)
        until(server.backend.waiting.is_set)
        before = server.backend.calls
        stream.close()
        until(lambda: all(one.task.cancelled() for one in server.services.generator.waiting()))
        gate.set()
        until(server.idle)
        assert server.backend.calls - before <= 1


def test_a_client_that_counts_no_attempts_ends_its_drawing_when_it_goes(server: Served) -> None:
    with server.held() as gate:
        body = {"prompt": "red", "size": "64x64", "quality": "high"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=0.5)
        before = server.backend.calls
        until(lambda: all(one.task.cancelled() for one in server.services.generator.waiting()))
        gate.set()
        until(server.idle)
        assert server.backend.calls - before <= 1


def test_a_client_that_was_too_impatient_gets_the_picture_of_its_first_attempt(server: Served) -> None:
    """The client's own repetition, which sends no idempotency key, joins the job of before."""
    jobs = len(server.services.jobs.list(limit=1000))
    before = server.backend.calls
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2, timeout=0.7)
    with server.held() as gate:
        timer = threading.Timer(1.5, gate.set)
        timer.start()
        answer = client.images.generate(prompt="green", size="64x64", quality="low")
        timer.join()
    assert answer.data is not None and len(answer.data) == 1
    assert server.backend.calls - before == 2
    assert len(server.services.jobs.list(limit=1000)) == jobs + 1


def test_a_job_that_nobody_comes_back_for_is_stopped(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app.state.openai_flights, "_linger", 0.1)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=0.5)
    with server.held() as gate:
        with pytest.raises(openai.APITimeoutError):
            client.images.generate(prompt="green", size="64x64", quality="high")
        before = server.backend.calls
        until(lambda: all(one.task.cancelled() for one in server.services.generator.waiting()))
        gate.set()
        until(server.idle)
        assert server.backend.calls - before <= 1


def keyed(client: openai.OpenAI, key: str, **fields: Any) -> Any:
    return client.images.generate(**{
        "prompt": "red", "size": "64x64", "quality": "low", **fields,
        "extra_headers": {"Idempotency-Key": key},
    })  # fmt: skip


def test_a_key_is_drawn_once_by_many_at_once(server: Served, client: openai.OpenAI) -> None:
    before = server.backend.calls
    with server.held() as gate, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(keyed, client, "many") for _ in range(4)]
        until(server.backend.waiting.is_set)
        gate.set()
        answers = [one.result() for one in waiting]
    assert server.backend.calls - before == 2
    assert len({answer.data[0].b64_json for answer in answers}) == 1


def test_a_key_is_answered_from_the_history_when_memory_has_forgotten(
    server: Served, client: openai.OpenAI
) -> None:
    first = keyed(client, "kept", n=2)
    before = server.backend.calls
    server.app.state.openai_flights = flights.Flights()  # as after a restart
    again = keyed(client, "kept", n=2)
    assert server.backend.calls == before
    for one, other in zip(first.data, again.data, strict=True):
        assert (pixels(one.b64_json) == pixels(other.b64_json)).all()
    assert (again.size, again.usage) == (first.size, first.usage)


def test_a_key_of_another_request_is_refused(server: Served, client: openai.OpenAI) -> None:
    keyed(client, "mine")
    for _ in range(2):
        with pytest.raises(openai.ConflictError):
            keyed(client, "mine", prompt="blue")
        server.app.state.openai_flights = flights.Flights()


def test_a_key_of_a_job_that_came_to_nothing_is_drawn_again(server: Served, client: openai.OpenAI) -> None:
    with server.held():
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(keyed, client, "lost")
            until(server.backend.waiting.is_set)
            assert server.services.generator.interrupt()
            server.gate.set()
            with pytest.raises(openai.APIStatusError):
                waiting.result()
    answer = keyed(client, "lost")
    assert len(answer.data) == 1


def test_a_key_that_another_process_draws_is_asked_for_later(
    server: Served, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = server.services.jobs
    row, _ = jobs.add({}, kind="generate", client="openai")

    def submit(*_: Any) -> Any:
        raise KnownJob(row.id)

    monkeypatch.setattr(server.services.generator, "submit", submit)
    with pytest.raises(openai.InternalServerError) as caught:
        keyed(client, "elsewhere")
    assert caught.value.status_code == 503
    assert caught.value.response.headers["x-should-retry"] == "true"
    jobs.set_state(row.id, "cancelled")


def test_a_full_queue_is_asked_again_by_the_client(
    tmp_path: Path,
) -> None:
    from fewstep.server.settings import Limits

    with serving(tmp_path, limits=Limits(queue=1)) as server:
        patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)
        with server.held() as gate, ThreadPoolExecutor(2) as pool:
            running = pool.submit(patient.images.generate, prompt="red", size="64x64", quality="low")
            until(server.backend.waiting.is_set)
            queued = pool.submit(patient.images.generate, prompt="red", size="96x64", quality="low")
            until(lambda: server.services.generator.queue.depth == 1)
            hasty = patient.with_options(max_retries=0)
            with pytest.raises(openai.RateLimitError) as caught:
                hasty.images.generate(prompt="blue", size="64x64")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            threading.Timer(0.3, gate.set).start()
            third = patient.images.generate(prompt="blue", size="64x64", quality="low")
            assert all(one.data for one in (third, running.result(), queued.result()))


def test_a_body_that_is_not_json_is_400(server: Served) -> None:
    answer = httpx.post(
        f"{server.url}/v1/images/generations", content=b"{", headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_form_that_is_none_is_refused(server: Served) -> None:
    for path in ("edits", "variations"):
        answer = httpx.post(f"{server.url}/v1/images/{path}", json={"prompt": "red"})
        assert answer.status_code in (415, 422)
        assert answer.json()["error"]["type"] == "invalid_request_error"
        broken = httpx.post(
            f"{server.url}/v1/images/{path}",
            content=b"--x\r\nno",
            headers={"content-type": "multipart/form-data"},
        )
        assert 400 <= broken.status_code < 500
        fields = {"prompt": "red"} if path == "edits" else {}
        empty = httpx.post(f"{server.url}/v1/images/{path}", files={"image": b""}, data=fields)
        assert empty.status_code == 422
        assert empty.json()["error"]["param"] == "image"
