"""axe-core finds nothing serious in the studio's own markup, in light and in dark.

What it finds in Gradio's is listed here by rule and selector, so that it cannot grow unseen.
"""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from fewstep.studio.tabs import TABS

GRADIOS: tuple[tuple[str, str], ...] = (
    ("aria-prohibited-attr", '<div aria-label="Empty value" class="empty'),
    ("color-contrast", 'role="combobox"'),
    ("color-contrast", "subdued"),
)
"""Rule, and a pattern of the element's HTML."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_has_a_serious_violation_of_ours(studio, open_page, go, scheme: str) -> None:
    studio.draw()
    page = open_page(color_scheme=scheme)
    found: dict[str, set[str]] = {}
    for name in TABS:
        go(page, name)
        page.wait_for_timeout(500)
        for violation in Axe().run(page).response["violations"]:
            if violation["impact"] not in ("serious", "critical"):
                continue
            for node in violation["nodes"]:
                what = f"{name}: {' '.join(map(str, node['target']))}: {node['html'][:200]}"
                if not any(rule == violation["id"] and re.search(of, node["html"]) for rule, of in GRADIOS):
                    found.setdefault(violation["id"], set()).add(what)
    assert found == {}
