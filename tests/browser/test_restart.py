"""A page that is open while its server ends, and while another takes its place."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import expect


def test_a_page_has_one_stream_lets_its_server_end_and_goes_on_with_the_next(
    serve: Any, open_page: Any, go: Any, heard: Any, tmp_path: Path
) -> None:
    for expected in ("ERR_CONNECTION_REFUSED", "503"):  # while no server is there, or no page yet
        heard.expect(expected)
    streams: list[str] = []
    with serve(tmp_path) as first:
        page = open_page(at=first)
        port = urlsplit(first.url).port
        page.on("request", lambda request: "queue/data" in request.url and streams.append(request.url))
        expect(page.locator("#create-quality input")).to_have_count(4, timeout=60_000)
        for tab in ("history", "settings", "models", "create"):
            go(page, tab)
            page.wait_for_timeout(500)
        # Of Gradio alone: one for every time that no event was left, and an event could fall between two.
        assert len(streams) <= 1, streams
        page.locator("#prompt textarea").fill("a red apple")

        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(60) in (0, -signal.SIGTERM)
        first.process.stderr.close()
        # One that waits for the page's streams cuts them off at last, and says so with a traceback for each.
        assert not [line for line in first.log if "Traceback" in line or "error" in line], first.log

    with serve(tmp_path, "--port", str(port)) as second:
        # The page comes again by itself, with what was typed, and draws.
        expect(page.locator("#create-quality input")).to_have_count(4, timeout=60_000)
        page.wait_for_function("() => performance.getEntriesByType('navigation')[0].type === 'reload'")
        expect(page.locator("#prompt textarea")).to_have_value("a red apple")
        expect(page.locator("#create-quality input:checked")).to_have_count(1, timeout=60_000)
        page.locator("#create-draw").click()
        expect(page.locator("#create-state [data-state=done]")).to_have_count(1, timeout=60_000)
        assert second.get("/api/v1/images", limit=1)["images"]
        page.context.close()
