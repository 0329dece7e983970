"""Hostile prompts, wildcards and styles: linear time, bounded results, no way out of a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.prompt import styles
from fewstep.prompt.advice import few_step_warnings
from fewstep.prompt.attention import parse_attention
from fewstep.prompt.chunks import TokenizerSpec, chunk
from fewstep.prompt.grammar import MAX_CHARACTERS, parse
from fewstep.prompt.networks import cut_networks
from fewstep.prompt.schedule import MAX_RENDERED, text_schedule
from fewstep.prompt.wildcard_files import WildcardFolder
from fewstep.prompt.wildcards import expand

# What is repeated, and what follows once.
HOSTILE = {
    "open square": ("[", ""),
    "open round": ("(", ""),
    "open brace": ("{", ""),
    "open mixed": ("[({", ""),
    "closers": ("])}", ""),
    "crossing": ("([)]", ""),
    "empty brackets": ("[](){}", ""),
    "edits": ("[a:b:2]", ""),
    "open edits": ("[a:", ":2]"),
    "steps": ("[a:b:1][a:b:7]", ""),
    "alternations": ("[a|b]", ""),
    "open alternations": ("[a|", ""),
    "open braces with bars": ("{[a|", "}"),
    "bars": ("|", ""),
    "colons": (":", ""),
    "colons and spaces": (": ", ")"),
    "weights": ("(a:1.5)", ""),
    "open weights": ("(a:1.5 ", ""),
    "points": ("(a:.", ""),
    "digits": ("1", ")"),
    "tags": ("<lora:a:1>", ""),
    "open tags": ("<a:", ""),
    "empty tags": ("<a:>", ""),
    "less than": ("<", ""),
    "letters": ("<a", ""),
    "wildcards": ("__a__", ""),
    "unknown wildcards": ("__../b__", ""),
    "underscores": ("_", ""),
    "open wildcards": ("__a b_c", ""),
    "counts": ("{2$$a|b}", ""),
    "ands": ("a AND ", ""),
    "weighted ands": ("a:1.5 AND ", ""),
    "breaks": ("BREAK ", ""),
    "spaces": (" ", "BREAK"),
    "newlines": ("\n", "AND"),
    "commas": (",", ""),
    "backslashes": ("\\", "a"),
    "words": ("a(b) ", ""),
    "control characters": ("\x00\x1b", ""),
    "surrogates": ("\ud800", ""),
}
# Nesting the same construct n times, with what closes it.
NESTED = {
    "square": ("[", "a", "]"),
    "round": ("(", "a", ")"),
    "edits": ("[", "a", ":b:2]"),
    "late edits": ("[b:", "a", ":2]"),
    "alternations": ("[a|", "b", "]"),
    "weights": ("(", "a", ":1.1)"),
    "braces": ("{", "a|b", "}"),
    "counts": ("{2$$a|", "b", "}"),
}
SPEC = TokenizerSpec(bos=0, eos=1, pad=1, commas=frozenset({ord(",")}))


def repeated(name: str, length: int) -> str:
    part, end = HOSTILE[name]
    return part * (length // len(part)) + end


def nested(name: str, length: int) -> str:
    begin, middle, end = NESTED[name]
    depth = length // len(begin + end)
    return begin * depth + middle + end * depth


CASES = [
    *[pytest.param(repeated, name, id=name) for name in HOSTILE],
    *[pytest.param(nested, name, id=f"nested {name}") for name in NESTED],
]


def everything(text: str) -> None:
    """Each stage on the whole text, without the bounds that `parse` puts before them."""
    cut_networks(text)
    text_schedule(text, 8, budget=10**9)
    segments = parse_attention(text)
    chunk(segments, lambda part: part.encode("utf-8", "replace"), SPEC)


def seconds(work: Callable[[str], object], text: str, tries: int = 3) -> float:
    """Processor time of the quickest of some tries: other processes do not count."""
    best = float("inf")
    for _ in range(tries):
        started = time.process_time()
        work(text)
        best = min(best, time.process_time() - started)
    return best


@pytest.mark.parametrize(("make", "name"), CASES)
@pytest.mark.parametrize(
    "work", [everything, lambda text: expand(text, 0, {"a": ["b"]})], ids=["parse", "expand"]
)
def test_H13_time_is_linear(
    work: Callable[[str], object], make: Callable[[str, int], str], name: str
) -> None:
    # Four times the length takes four times as long, and sixteen times if the time were quadratic.
    small, large = seconds(work, make(name, 4_000)), seconds(work, make(name, 16_000))
    assert large < 9 * small + 0.02


@pytest.mark.parametrize(("make", "name"), CASES)
def test_H13_two_hundred_thousand_characters_within_a_second(
    make: Callable[[str, int], str], name: str
) -> None:
    text = make(name, 200_000)

    def work(text: str) -> None:
        plan = parse(text, 50)
        few_step_warnings(plan, guidance_scale=1.0, negative_prompt=text)
        assert len(plan.text) <= MAX_CHARACTERS
        assert len(plan.warnings) <= 21
        assert sum(len(e.text) for s in plan.subprompts for e in s.schedule) <= MAX_RENDERED
        expand(text, 0, {"a": ["b"]})

    assert seconds(work, text, tries=1) < 1.0


@pytest.mark.parametrize("name", ["steps", "alternations"])
def test_H13_a_schedule_cannot_multiply_a_prompt(name: str) -> None:
    plan = parse(repeated(name, MAX_CHARACTERS), 1000)
    assert sum(len(e.text) for s in plan.subprompts for e in s.schedule) <= MAX_RENDERED
    assert seconds(lambda text: parse(text, 1000), repeated(name, MAX_CHARACTERS), tries=1) < 1.0


def test_H13_wildcards_cannot_multiply_a_prompt() -> None:
    wildcards = {"a": ["__b__ " * 500], "b": ["__c__ " * 500], "c": ["__a__ " * 500]}
    started = time.process_time()
    expansion = expand("__a__", 0, wildcards)
    assert time.process_time() - started < 1.0
    assert len(expansion.text) <= MAX_CHARACTERS
    assert len(expansion.warnings) <= 21


class _Counted(str):
    """A text that counts how often something is looked for in it."""

    looks = 0

    def find(self, *arguments) -> int:
        self.looks += 1
        return super().find(*arguments)


def test_H13_a_bracket_that_is_missing_is_looked_for_once() -> None:
    # Looking again behind each opener is quadratic, but so quick that a clock hardly shows it.
    text = _Counted("<a:" * 1000)
    assert cut_networks(text) == (text, (), ())
    assert text.looks == 1


def test_H13_many_arms_are_drawn_quickly() -> None:
    # One after the other would be 30,000 times 30,000.
    text = "{9999$$" + "|" * 30_000 + "}"
    assert seconds(lambda text: expand(text, 0), text, tries=1) < 1.0


def test_H13_warnings_do_not_repeat_a_hostile_text() -> None:
    for text in ("<" + "a" * 10_000 + ":1>", "<lora:a:" + "1" * 10_000 + ">", "[a" * 4_000 + "|\\"):
        assert all(len(warning) < 400 for warning in parse(text, 4).warnings)
    assert all(len(w) < 400 for w in expand("__" + "x" * 128 + "__", 0).warnings)


@pytest.mark.parametrize(
    "name",
    ["../secret", "sub/../../secret", "/etc/passwd", "..\\secret", "./a", "a.txt", "sub/", "link", "sub/out"],
)
def test_a_wildcard_name_is_a_key_and_never_a_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "wildcards"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("SECRET")
    (folder / "a.txt").write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "sub" / "out").symlink_to(tmp_path, target_is_directory=True)
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    wildcards = WildcardFolder(folder)
    assert set(wildcards) == {"a"}
    expansion = expand(f"__{name}__ __sub/out/secret__", 0, wildcards)
    assert expansion.text == f"__{name}__ __sub/out/secret__"
    assert len(expansion.warnings) == 2
    if ".." in name:
        assert "names of wildcards are keys, never paths" in expansion.warnings[0]


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert WildcardFolder(tmp_path)["b"] == ("x",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert set(WildcardFolder(tmp_path)) == set()


def test_a_wildcard_file_is_read_as_text_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\x00<lora:x:1>\xd7")
    plan = parse(expand("__a__", 0, WildcardFolder(tmp_path)).text, 1)
    plan.text.encode()
    assert "\x00" not in plan.text


def test_styles_cannot_multiply_a_prompt() -> None:
    double = [styles.Style(f"{n}", "{prompt}" * 2) for n in range(18)]
    with pytest.raises(styles.UsageError, match="longer than"):
        styles.apply("fox", "", double)
