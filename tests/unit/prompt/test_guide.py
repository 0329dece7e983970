"""The guides say what the code does: tables of exact results and Python sessions, in both languages."""

import doctest
import re
from pathlib import Path

import pytest

from fewstep.prompt.attention import parse_attention
from fewstep.prompt.schedule import text_schedule

GUIDES = Path(__file__).parents[3] / "docs" / "guides"
LANGUAGES = ["prompts.md", "prompts.zh.md"]


def tables(name: str) -> list[list[list[str]]]:
    """Tables of a guide, rows of cells; an escaped bar is a bar."""
    text = (GUIDES / name).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
            for row in block.splitlines()[2:]
        ]
        for block in blocks
    ]


@pytest.mark.parametrize("name", LANGUAGES)
def test_sessions(name: str) -> None:
    result = doctest.testfile(str(GUIDES / name), module_relative=False, encoding="utf-8")
    assert (result.failed, result.attempted) == (0, 22)


@pytest.mark.parametrize("name", LANGUAGES)
def test_table_of_weights(name: str) -> None:
    rows = tables(name)[1]
    assert len(rows) == 12
    for prompt, result in rows:
        segments = [s for s in parse_attention(prompt[1:-1]) if not s.is_break]
        said = [(text, float(weight)) for text, weight in re.findall(r"`([^`]+)` (-?[0-9.]+[0-9])", result)]
        assert [(s.text, round(s.weight, 4)) for s in segments] == said, prompt


@pytest.mark.parametrize("name", LANGUAGES)
def test_table_of_editing(name: str) -> None:
    rows = tables(name)[2]
    assert len(rows) == 11
    for prompt, steps, result in rows:
        entries = text_schedule(prompt[1:-1], int(steps)).entries
        drawn = ["".join(s.text for s in parse_attention(text)) for _, text in entries]
        said = re.findall(r"`([^`]+)`", result)
        assert said in ([], drawn), prompt  # the second row says "the same"
        # "5-8 `sea view`" or "第 5-8 步 `sea view`", with the text taken away
        last_steps = [int(n) for n in re.findall(r"([0-9]+)[^0-9`]*``", re.sub(r"`[^`]+`", "``", result))]
        assert last_steps in ([], [step for step, _ in entries]), prompt
    assert text_schedule(rows[0][0][1:-1], 8).entries == text_schedule(rows[1][0][1:-1], 8).entries


def test_both_languages_have_the_same_examples() -> None:
    english, chinese = map(tables, LANGUAGES)
    assert [[row[0] for row in table if "`" in row[0]] for table in english if len(table) > 6][:3] == [
        [row[0] for row in table if "`" in row[0]] for table in chinese if len(table) > 6
    ][:3]
    sessions = [
        re.findall(r"```python\n(.*?)```", (GUIDES / name).read_text(encoding="utf-8"), re.DOTALL)
        for name in LANGUAGES
    ]
    assert sessions[0] == sessions[1]
