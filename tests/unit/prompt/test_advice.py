"""What is said of prompts that few steps cannot follow."""

import pytest

from fewstep.prompt.advice import few_step_warnings
from fewstep.prompt.grammar import parse


def said(prompt: str, steps: int, guidance: float = 5.0, negative: str = "") -> tuple[str, ...]:
    return few_step_warnings(parse(prompt, steps), guidance_scale=guidance, negative_prompt=negative)


@pytest.mark.parametrize(
    ("prompt", "steps"),
    [("(fox:1.2)", 1), ("[a:b:0.5]", 4), ("[a|b]", 2), ("[a|b|c]", 3), ("[a:b:2]", 4), ("[x:0.7]", 10)],
)
def test_what_works_is_not_spoken_of(prompt: str, steps: int) -> None:
    assert said(prompt, steps) == ()


@pytest.mark.parametrize(
    ("prompt", "steps", "sentence"),
    [
        ("[sand:sea:0.5]", 1, 'with 1 step nothing can change on the way; only "sea" is drawn'),
        ("[sand:sea:1]", 1, 'only "sand" is drawn'),
        ("[a|b]", 1, 'only "a" is drawn'),
        ("[sea::0]", 1, "only nothing is drawn"),
        ("[a:b:0.3]", 4, "this is 1.2 of 4 steps, and there are only whole ones: it changes after step 1"),
        ("[b:0.1]", 4, "it changes before the first step"),
        ("[a:b:0.1]", 4, '"a" is never drawn in 4 steps'),
        ("[a:b:9]", 4, '"b" is never drawn in 4 steps'),
        ("[a:b:1.0]", 4, '"b" is never drawn in 4 steps'),
        ("[a|b|c]", 2, '"c" is never drawn in 2 steps'),
        ("[a|[b|c]]", 4, '"b" is never drawn in 4 steps'),
    ],
)
def test_editing_and_alternation(prompt: str, steps: int, sentence: str) -> None:
    assert any(sentence in each for each in said(prompt, steps))


def test_edits_inside_an_arm_that_is_never_drawn_are_not_spoken_of() -> None:
    assert said("[a:[b|c|d]:9]", 4) == ('[a:[b|c|d]:9]: "[b|c|d]" is never drawn in 4 steps',)


def test_an_empty_arm_is_not_missed() -> None:
    assert said("[a|b|]", 2) == ()


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance(guidance: float) -> None:
    (sentence,) = said("dog AND cat", 4, guidance)
    assert sentence.startswith(f"AND needs guidance, and guidance {guidance:g} is no guidance: of the 2")
    (sentence,) = said("dog", 4, guidance, "blurry")
    assert sentence.startswith("the negative prompt has no effect")
    assert said("dog AND cat", 4, 2.0, "blurry") == ()
    assert said("dog", 4, guidance, "  ") == ()


def test_the_sentences_are_few() -> None:
    assert len(said(" ".join(f"[x{n}:9]" for n in range(100)), 4)) == 21
