"""The whole grammar: order, AND, bounds."""

import pytest

from fewstep.errors import UsageError
from fewstep.prompt import grammar
from fewstep.prompt.grammar import MAX_CHARACTERS, MAX_SUBPROMPTS, MAX_WARNINGS, parse


def parts(prompt: str) -> list[tuple[str, float]]:
    return [(subprompt.schedule[0].text, subprompt.weight) for subprompt in parse(prompt, 1).subprompts]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("dog :1.2 AND cat:-0.5", [("dog", 1.2), ("cat", -0.5)]),  # executed in the web UI
        ("a AND b", [("a", 1.0), ("b", 1.0)]),
        ("a AND", [("a", 1.0), ("", 1.0)]),
        ("a: .5 AND b : +2. ", [("a", 0.5), ("b", 2.0)]),
        ("a:b AND c:1:2", [("a:b", 1.0), ("c:1", 2.0)]),
        ("a:nan AND b:1e3", [("a:nan", 1.0), ("b:1e3", 1.0)]),
        ("a:99999 AND b", [("a", 1000.0), ("b", 1.0)]),
        ("SAND AND LANDs", [("SAND", 1.0), ("LANDs", 1.0)]),
        ("a AND\nb", [("a", 1.0), ("b", 1.0)]),
    ],
)
def test_and(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parts(prompt) == expected


@pytest.mark.parametrize("prompt", ["a train at 10:30", "fox :1.2", "land and sea"])
def test_without_and_there_is_no_weight(prompt: str) -> None:
    # The web UI reads "a train at 10", thirty times over. The departure is on purpose.
    assert parts(prompt) == [(prompt, 1.0)]


def test_a_negative_prompt_is_one_prompt_without_networks() -> None:
    plan = parse("dog AND cat:0.5 <lora:ink:1> [a|b]", 2, negative=True)
    (subprompt,) = plan.subprompts
    assert [entry.text for entry in subprompt.schedule] == ["dog AND cat:0.5  a", "dog AND cat:0.5  b"]
    assert plan.networks == ()
    assert plan.warnings == ("networks in a negative prompt have no effect: ink",)


def test_order_of_processing() -> None:
    plan = parse("<lora:ink:0.5> [sand:(sea:1.2):2] view AND <lyco:x:1>sky:0.5", 4)
    assert [network.name for network in plan.networks] == ["ink", "x"]
    assert plan.text == " [sand:(sea:1.2):2] view AND sky:0.5"
    first, second = plan.subprompts
    assert [(entry.last_step, entry.text) for entry in first.schedule] == [
        (2, "sand view"),
        (4, "(sea:1.2) view"),
    ]
    assert [(s.text, s.weight) for s in first.schedule[1].segments] == [("sea", 1.2), (" view", 1.0)]
    assert (second.weight, second.schedule[0].text) == (0.5, "sky")


def test_the_entry_of_a_step() -> None:
    (subprompt,) = parse("[a:b:2]", 4).subprompts
    assert [subprompt.at(step).text for step in (1, 2, 3, 4, 5)] == ["a", "a", "b", "b", "b"]


def test_a_plan_for_a_second_pass() -> None:
    plan = parse("[sand:sea:1.5]", 8, hires_steps=4)
    assert plan.num_inference_steps == 4
    assert [entry.last_step for entry in plan.subprompts[0].schedule] == [2, 4]


def test_without_emphasis_brackets_are_literal_and_the_rest_works() -> None:
    plan = parse("(fox:1.2) [a|b] AND c:0.5 <lora:x:1>", 2, emphasis="none")
    assert plan.subprompts[0].schedule[0].segments[0].text == "(fox:1.2) a"
    assert len(plan.subprompts) == 2
    assert plan.networks


@pytest.mark.parametrize(
    "options", [{"num_inference_steps": 0}, {"num_inference_steps": 1, "hires_steps": 0}]
)
def test_steps_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is 0: at least one step"):
        parse("fox", **options)


def test_an_unknown_emphasis_is_refused() -> None:
    with pytest.raises(UsageError, match="give one of original, no_norm, ignore, none"):
        parse("fox", 1, emphasis="comfy")  # type: ignore[arg-type]


def test_the_number_of_prompts_is_bounded_and_said() -> None:
    plan = parse(" AND ".join(["a"] * 50), 1)
    assert len(plan.subprompts) == MAX_SUBPROMPTS
    assert plan.warnings == ("only the first 32 of 50 prompts joined by AND are used",)


def test_schedules_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MAX_RENDERED", 100)
    plan = parse("[aaaaa|bbbbb] AND [ccccc|ddddd] AND [e|f]", 6)
    assert [len(subprompt.schedule) for subprompt in plan.subprompts] == [6, 1, 6]
    assert "too much text" in plan.warnings[0]


def test_held_weights_are_said() -> None:
    assert parse("(fox:5000)", 1).warnings == ("weights are held within 1000 and -1000",)
    assert parse("(fox:5)", 1).warnings == ()


def test_warnings_are_few_and_not_repeated() -> None:
    warnings = parse("".join(f"<x{n}:1>" for n in range(50)) + "<x1:1>", 1).warnings
    assert len(warnings) == MAX_WARNINGS + 1
    assert warnings[-1] == "and 30 more of the kind"


def test_H13_what_is_too_long_is_cut_off_and_said() -> None:
    plan = parse("a" * 1_000_000, 1)
    assert plan.text == "a" * MAX_CHARACTERS
    assert plan.warnings == (
        f"prompt of 1000000 characters: only the first {MAX_CHARACTERS} are read; shorten it",
    )


def test_H13_control_characters_and_lone_surrogates_are_taken_out_and_said() -> None:
    plan = parse("a\x00b\ud800c\x7f\x85d\te\nf", 1)
    assert plan.text == "abcd\te\nf"
    assert plan.warnings == ("4 control characters or broken characters were taken out of the prompt",)
    plan.text.encode("utf-8")
