"""The studio opens: nothing missing, nothing from elsewhere, and its policy is kept."""

from __future__ import annotations


def test_a_page_opens_without_a_fault_and_the_tabs_are_there(studio, page) -> None:
    """Faults of the console, of requests and of other hosts fail it at its end, in `conftest.Heard`."""
    page.locator("#tabs [role=tab]").first.wait_for()
    page.wait_for_timeout(1000)  # what the page asks for after it is there
    names = page.locator("#tabs [role=tab]").all_inner_texts()
    assert names[:3] == ["Create", "Extras", "PNG Info"]
