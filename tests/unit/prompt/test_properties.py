"""What holds for every prompt."""

import math
import string
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from fewstep.prompt.advice import few_step_warnings
from fewstep.prompt.attention import EMPHASIS_MODES
from fewstep.prompt.chunks import TokenizerSpec, chunk, pad_to_same
from fewstep.prompt.grammar import Plan, cleaned, parse
from fewstep.prompt.wildcards import expand

WORDS = [
    *"[]()<>{}:|\\,_ab \n",
    "AND", " AND ", "BREAK", " BREAK ", "<lora:", ":1>", ":1.2)", ":0.5]", ":2]", "[a:b:2]",
    "[a|b]", "(x:1.3)", "__a__", "{2$$", "2::", "\x00", "\ud800", "٣", "é", "[", "]",
]  # fmt: skip
anything = st.text(st.characters()) | st.lists(st.sampled_from(WORDS)).map("".join)
steps = st.integers(1, 12)


def within(part: str, whole: Iterable[str]) -> bool:
    """Whether the characters of ``part`` stand in ``whole`` in this order."""
    rest = iter(whole)
    return all(character in rest for character in part)


def check(plan: Plan, text: str, count: int) -> None:
    assert plan.subprompts
    assert within(plan.text, text)
    for subprompt in plan.subprompts:
        assert math.isfinite(subprompt.weight)
        last_steps = [entry.last_step for entry in subprompt.schedule]
        assert last_steps == sorted(set(last_steps))
        assert last_steps[0] >= 1
        assert last_steps[-1] == count
        for entry in subprompt.schedule:
            assert entry.segments
            assert all(math.isfinite(segment.weight) for segment in entry.segments)
            assert within("".join(s.text for s in entry.segments if not s.is_break), entry.text)
            assert within(entry.text, plan.text)
    assert all(math.isfinite(n.te) and math.isfinite(n.unet) for n in plan.networks)
    assert all("\n" not in n.name or "\n" in text for n in plan.networks)


@given(anything, steps, st.none() | steps, st.sampled_from(EMPHASIS_MODES))
def test_H13_any_text_has_a_plan(text: str, count: int, second, emphasis) -> None:
    plan = parse(text, count, hires_steps=second, emphasis=emphasis)
    check(plan, text, second or count)
    few_step_warnings(plan, guidance_scale=1.0, negative_prompt=text)
    plan.text.encode()


@given(st.text(string.ascii_letters + string.digits + " ,.-'\n"), steps)
def test_a_plain_text_is_one_segment(text: str, count: int) -> None:
    if any(word in text for word in ("AND", "BREAK")):
        return
    plan = parse(text, count)
    ((segment,),) = [entry.segments for entry in plan.subprompts[0].schedule]
    assert (segment.text, segment.weight, plan.warnings) == (text.strip(), 1.0, ())


@given(anything)
def test_parsing_again_changes_nothing(text: str) -> None:
    once, _ = cleaned(text)
    assert cleaned(once) == (once, [])
    assert parse(once, 3).subprompts == parse(text, 3).subprompts


@given(anything, st.integers(0, 2**70))
def test_any_text_is_a_template(text: str, seed: int) -> None:
    wildcards = {"a": ["[x|__a__]", "{y|z}", text]}
    assert expand(text, seed, wildcards) == expand(text, seed, wildcards)


@given(anything, st.integers(1, 40), st.integers(0, 25), st.integers(1, 5), st.integers(1, 3))
def test_chunks_lose_no_token(text: str, length: int, backtrack: int, most: int, vectors: int) -> None:
    def tokenise(part: str) -> list[int]:
        return [3 + ord(character) for character in part]

    spec = TokenizerSpec(bos=0, eos=1, pad=2, length=length, commas=frozenset({3 + ord(",")}), placeholder=2)
    segments = parse(text, 1).subprompts[0].schedule[0].segments
    embeddings = {"ab": min(vectors, length)}
    options = {"embeddings": embeddings, "comma_padding_backtrack": backtrack}
    all_of_it = chunk(segments, tokenise, spec, **options, max_chunks=10**6)
    tokens = "".join(s.text for s in segments if not s.is_break)
    found = [token for one in all_of_it.chunks for token in one.ids if token > 2]
    placed = sum(len(one.placeholders) for one in all_of_it.chunks)
    assert len(found) + 2 * placed == len(tokens)
    assert all(len(one.ids) == length + 2 for one in all_of_it.chunks)
    for one in all_of_it.chunks:
        for place in one.placeholders:
            assert one.ids[place.position : place.position + place.vectors] == (2,) * place.vectors
    some = chunk(segments, tokenise, spec, **options, max_chunks=most)
    assert len(some.chunks) <= most
    assert some.tokens + some.left_out == all_of_it.tokens
    assert {len(padded) for padded in pad_to_same([some.chunks, all_of_it.chunks], spec)} == {
        len(all_of_it.chunks)
    }
