"""README.zh-CN.md says what README.md says: headings, commands, tables, pictures and links are in step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("README.md", "README.zh-CN.md")
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in NAMES)


def shape(text: str) -> list[str]:
    """Headings by level, and what stands between two of them: code, table rows, pictures, paragraphs."""
    found = []
    for block in re.split(r"\n\n+", text.strip()):
        first = block.splitlines()[0]
        if re.match(r"#+ ", first):
            found.append(first.split(" ")[0])
        elif first.startswith("    "):
            found.append("code")
        elif first.startswith("|"):
            found.append(f"table of {len(block.splitlines())}")
        elif first.startswith("!["):
            found.append("picture")
        else:
            found.append("text")
    return found


def commands(text: str) -> list[str]:
    """Lines of code, without their comments, which are translated."""
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


def inline(text: str) -> list[str]:
    return sorted(re.findall(r"`([^`\n]+)`", text))


def links(text: str) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)]+)\)", text) if target not in NAMES]


@pytest.mark.parametrize("part", [shape, commands, inline, links], ids=lambda part: part.__name__)
def test_the_chinese_readme_is_in_step(part) -> None:
    assert part(CHINESE) == part(ENGLISH)
    assert len(part(ENGLISH)) > 20


def test_they_lead_to_each_other() -> None:
    assert "](README.zh-CN.md)" in ENGLISH and "](README.md)" in CHINESE


def test_figures_are_the_same() -> None:
    """Those that stand in the text with a point, and those of the table."""
    for pattern in (r"\d+\.\d+", r"\d+%"):
        assert sorted(re.findall(pattern, CHINESE)) == sorted(re.findall(pattern, ENGLISH))


def test_it_is_chinese() -> None:
    """No paragraph was left as it was."""
    for block in re.split(r"\n\n+", CHINESE):
        if not block.startswith(("    ", "# ", "[English]")):
            assert re.search(r"[\u4e00-\u9fff]", block), block
