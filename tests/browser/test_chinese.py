"""The Chinese page: no English label of ours is left on any tab, and its font has every character."""

from __future__ import annotations

import os
import re
from importlib import resources

import pytest

from fewstep.studio.tabs import TABS
from fewstep.studio.words import texts

TEXTS = resources.files("fewstep.studio.words")
SEEN = """() => {
  const found = new Set();
  const shown = e => e && e.checkVisibility() && !e.closest("script, style, [aria-hidden=true], code, pre");
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());)
    if (node.data.trim() && shown(node.parentElement)) found.add(node.data.trim().replace(/\\s+/g, " "));
  for (const e of document.querySelectorAll("[aria-label], [title], [placeholder]"))
    if (shown(e)) for (const name of ["aria-label", "title", "placeholder"])
      if (e.getAttribute(name)?.trim()) found.add(e.getAttribute(name).trim());
  return [...found];
}"""
GLYPHS = """characters => {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d", {willReadFrequently: true});
  canvas.width = canvas.height = 32;
  context.font = "24px " + getComputedStyle(document.body).fontFamily;
  const drawn = text => {
    context.clearRect(0, 0, 32, 32);
    context.fillText(text, 2, 26);
    return context.getImageData(0, 0, 32, 32).data.join();
  };
  const box = drawn("\\u{e123}");  // of nobody's alphabet: what stands for a character that no font has
  return [...characters].filter(one => drawn(one) === box);
}"""


def english(part: str) -> set[str]:
    """Texts of ours that the Chinese page says otherwise."""
    return {
        entry["en"]
        for entry in texts(part).values()
        if entry["en"] != entry["zh"] and "{" not in entry["en"] and re.search("[A-Za-z]", entry["en"])
    }


def test_every_tab_is_chinese_and_can_be_read(studio, open_page, go) -> None:
    studio.draw()
    page = open_page("zh", locale="zh-CN")
    parts = {path.stem for path in TEXTS.iterdir() if path.name.endswith(".yaml")}
    ours = set().union(*map(english, parts)) - {"zh", "en"}
    chinese = {entry["zh"] for part in parts for entry in texts(part).values()}
    seen: dict[str, set[str]] = {}
    for name in TABS:
        go(page, name, "zh")
        page.wait_for_timeout(500)
        seen[name] = set(page.evaluate(SEEN))
    left = {name: sorted((found & ours) - chinese) for name, found in seen.items()}
    assert {name: found for name, found in left.items() if found} == {}
    characters = sorted(
        set(re.findall(r"[\u3000-\u9fff\uff00-\uffef]", "".join(set().union(*seen.values()))))
    )
    assert len(characters) > 200
    missing = page.evaluate(GLYPHS, characters)
    if len(missing) > len(characters) / 2 and not os.environ.get("CI"):
        pytest.skip("there is no Chinese font; install one with: apt-get install fonts-wqy-microhei")
    assert missing == []
