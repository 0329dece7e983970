"""History as a person uses it: find, mark, throw away, take back; and texts from outside stay texts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{constructor}} </script><script>alert(3)</script> quokka"


def opened(page: Page, wanted: str = "") -> Any:
    """The grid of the history, with what a search finds."""
    page.get_by_role("tab", name="History", exact=True).click()
    page.locator("#history-search").get_by_role("textbox").fill(wanted)
    return page.locator("#history-grid [role=option]")


def test_a_picture_is_found_marked_thrown_away_and_taken_back(
    studio: Any, page: Page, tmp_path: Path
) -> None:
    fast = {"num_inference_steps": 1}
    parent = studio.draw("a red apple, noto style", **fast)["result"]["images"][0]
    child, other = studio.draw(HOSTILE, n=2, parent=parent, **fast)["result"]["images"]

    tiles = opened(page, "quokka")
    expect(tiles).to_have_count(2)
    tile = page.locator(f"#history-{child}")
    tile.click()
    details = page.locator("#history-details")
    expect(details).to_contain_text(HOSTILE)
    # the picture itself is there, not only its place
    page.wait_for_function("document.getElementById('history-picture').naturalWidth > 0")
    assert details.locator("script, [onerror]").count() == 0

    tile.press("f")
    expect(tile.locator(".star")).to_have_count(1)
    assert studio.get(f"/api/v1/images/{child}")["favourite"] is True

    page.locator("#history-tags").get_by_role("textbox").fill(f"zoo, {HOSTILE[:60]}")
    page.locator("#history-tags-add").click()
    expect(details).to_contain_text("zoo")
    assert studio.get(f"/api/v1/images/{child}")["tags"] == sorted(["zoo", HOSTILE[:60]])

    # both are chosen, packed, thrown away and taken back
    page.locator(f"#history-{other} .pick").click()
    expect(page.locator("#history-count")).to_contain_text("2 chosen")
    with page.expect_download() as download:
        page.locator("#history-zip").click()
    packed = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert {packed.read(name) for name in packed.namelist()} == {
        studio.bytes(f"/api/v1/images/{one}/file") for one in (child, other)
    }
    page.locator("#history-delete").click()
    expect(tiles).to_have_count(0)
    assert studio.get(f"/api/v1/images/{child}")["trashed"] is not None
    page.locator("#history-undo").click()
    expect(tiles).to_have_count(2)
    assert studio.get(f"/api/v1/images/{child}")["trashed"] is None

    # along the lineage: the parent is shown when its picture is pressed
    page.locator(f"#history-{child}").click()
    page.locator(f"#history-lineage [data-open='{parent}']").click()
    expect(details).to_contain_text("a red apple, noto style")
    expect(page.locator(f"#history-lineage [data-open='{child}']")).to_be_visible()
