"""A phone's width: every tab can be reached, nothing scrolls sideways, nothing lies beyond the edge."""

from __future__ import annotations

import pytest

from fewstep.studio.tabs import TABS

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
BEYOND = """() => {
  const scrolls = e => {
    for (let p = e.parentElement; p; p = p.parentElement)
      if (p !== document.body && /auto|scroll/.test(getComputedStyle(p).overflowX)) return true;
    return false;
  };
  const kinds = "button, input, textarea, select, label, p, h1, h2, h3, td, th, img, canvas";
  return [...document.querySelectorAll(kinds)]
    .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true]") && !scrolls(e))
    .filter(e => {
      const box = e.getBoundingClientRect();
      return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1);
    })
    .map(e => e.outerHTML.slice(0, 160));
}"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_tab_is_wider_than_a_phone(studio, open_page, go, language: str) -> None:
    studio.draw()  # so that there is something in the history
    page = open_page(language, **PHONE)
    found = {}
    for name in TABS:
        go(page, name, language)
        page.wait_for_timeout(500)  # for what the tab loads
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        beyond = page.evaluate(BEYOND)
        if wide > 390 or beyond:
            found[name] = (wide, beyond)
    assert found == {}
