"""Two servers on one database and folder: a job of one is watched and cancelled at the other."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from served import serving, until


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    data: Path = tmp_path_factory.mktemp("shared")
    with serving(data) as first, serving(data) as second:
        yield first, second


def ordered(url: str) -> str:
    answer = httpx.post(f"{url}/api/v1/jobs", json={"prompt": "a red apple", "seed": 1})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_job_is_cancelled_at_the_other_server(two) -> None:  # type: ignore[no-untyped-def]
    first, second = two
    first.gate.clear()
    try:
        held, waits = ordered(first.url), ordered(first.url)
        until(first.backend.waiting.is_set)
        for job_id in (held, waits):
            answer = httpx.post(f"{second.url}/api/v1/jobs/{job_id}/cancel")
            assert answer.json()["state"] == "cancelled"
        until(lambda: not first.services.generator.queue.depth)
    finally:
        first.gate.set()
    until(first.idle)
    for job_id in (held, waits):
        assert httpx.get(f"{first.url}/api/v1/jobs/{job_id}").json()["state"] == "cancelled"
    # done again by whoever is asked
    assert httpx.post(f"{second.url}/api/v1/jobs/{held}/requeue").status_code == 202
    until(second.idle)
    done = httpx.get(f"{first.url}/api/v1/jobs/{held}").json()
    assert done["state"] == "done" and len(done["result"]["images"]) == 1


def test_a_job_is_watched_at_the_other_server(two) -> None:  # type: ignore[no-untyped-def]
    first, second = two
    events: list[tuple[str, str]] = []
    begun = threading.Event()

    def watch(job_id: str) -> None:
        with httpx.stream("GET", f"{second.url}/api/v1/jobs/{job_id}/events", timeout=30) as answer:
            begun.set()
            kind = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    kind = line[7:]
                elif line.startswith("data: "):
                    events.append((kind, line[6:]))

    with first.held():
        job_id = ordered(first.url)
        watching = threading.Thread(target=watch, args=(job_id,))
        watching.start()
        assert begun.wait(20)
        watching.join(1.2)
        assert watching.is_alive() and not events, "it has not ended, and neither has the stream"
    watching.join(20)
    assert [kind for kind, _ in events] == ["end"]
    assert json.loads(events[0][1])["state"] == "done"
