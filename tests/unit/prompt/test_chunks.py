"""Chunks of tokens. The tokenizer here gives every character its code, and drops spaces."""

from collections.abc import Sequence

import pytest

from fewstep.errors import UsageError
from fewstep.prompt.attention import parse_attention
from fewstep.prompt.chunks import Chunk, Chunked, Placeholder, TokenizerSpec, chunk, pad_to_same

BOS, EOS, PAD = 1, 2, 3
COMMA = ord(",")
SD1 = TokenizerSpec(bos=BOS, eos=EOS, pad=EOS, commas=frozenset({COMMA}))
SD2 = TokenizerSpec(bos=BOS, eos=EOS, pad=PAD, commas=frozenset({COMMA}))
SHORT = TokenizerSpec(bos=BOS, eos=EOS, pad=PAD, length=30, commas=frozenset({COMMA}))


def tokenise(text: str) -> Sequence[int]:
    return [ord(character) for character in text if character != " "]


def chunked(text: str, spec: TokenizerSpec = SD1, **options) -> Chunked:
    return chunk(parse_attention(text), tokenise, spec, **options)


def content(one: Chunk) -> str:
    return "".join(chr(token) for token in one.ids if token > PAD)


def contents(text: str, spec: TokenizerSpec = SD1, **options) -> list[str]:
    return [content(one) for one in chunked(text, spec, **options).chunks]


def test_ids_weights_and_mask_of_one_chunk() -> None:
    (one,) = chunked("a(bc:1.5)").chunks
    assert one.ids == (BOS, 97, 98, 99, *[EOS] * 73)
    assert one.weights == (1.0, 1.0, 1.5, 1.5, *[1.0] * 73)
    assert one.mask == (*[1] * 5, *[0] * 72)


@pytest.mark.parametrize(("spec", "length"), [(SD1, 77), (SD2, 77), (SHORT, 32)])
@pytest.mark.parametrize("text", ["", "fox", "a" * 500, "a,b" * 100, "a BREAK b"])
def test_all_chunks_have_the_encoders_length(spec: TokenizerSpec, length: int, text: str) -> None:
    for one in chunked(text, spec).chunks:
        assert len(one.ids) == len(one.weights) == len(one.mask) == length
        assert one.ids[0] == BOS
        assert one.ids[sum(one.mask) - 1] == EOS


def test_padding_is_the_end_token_or_another_one_behind_it() -> None:
    assert chunked("a", SD1).chunks[0].ids[2:] == (EOS,) * 75
    assert chunked("a", SD2).chunks[0].ids[2:] == (EOS, *[PAD] * 74)
    # A full chunk has no padding, and its end token in both.
    assert chunked("a" * 75, SD1).chunks == chunked("a" * 75, SD2).chunks


def test_an_encoder_without_a_begin_token() -> None:
    (one,) = chunked("ab", TokenizerSpec(bos=None, eos=EOS, pad=PAD, length=4)).chunks
    assert (one.ids, one.mask) == ((97, 98, EOS, PAD, PAD), (1, 1, 1, 0, 0))


def test_an_empty_prompt_is_one_empty_chunk() -> None:
    found = chunked("")
    assert contents("") == [""]
    assert found.tokens == 0


def test_break_ends_a_chunk() -> None:
    assert contents("mist BREAK sun") == ["mist", "sun"]
    assert contents("(mist BREAK sun:1.2)") == ["mist", "sun"]
    # As in the web UI: BREAK at the end begins no chunk, and between two there is an empty one.
    assert contents("mist BREAK") == ["mist"]
    assert contents("BREAK mist BREAK BREAK sun") == ["", "mist", "", "sun"]


def test_a_full_chunk_goes_on_in_the_next() -> None:
    found = chunked("a" * 75 + "b" * 76)
    assert [content(one) for one in found.chunks] == ["a" * 75, "b" * 75, "b"]
    assert found.tokens == 151


@pytest.mark.parametrize(("distance", "moves"), [(1, True), (19, True), (20, False), (21, False)])
def test_text_behind_a_near_comma_moves_to_the_next_chunk(distance: int, moves: bool) -> None:
    # The comma and `distance` tokens behind it fill the first chunk: 20 tokens count from the comma itself.
    before, behind = "a" * (74 - distance), "b" * distance
    expected = [before + ",", behind + "c"] if moves else [before + "," + behind, "c"]
    assert contents(f"{before},{behind}c") == expected


def test_the_comma_rule_can_be_switched_off() -> None:
    text = "a" * 70 + ",bbbbc"
    assert contents(text) == ["a" * 70 + ",", "bbbbc"]
    assert contents(text, comma_padding_backtrack=0) == ["a" * 70 + ",bbbb", "c"]
    none = TokenizerSpec(bos=BOS, eos=EOS, pad=EOS)
    assert contents(text, none) == ["a" * 70 + ",bbbb", "c"]


def test_a_comma_that_finds_the_chunk_full_begins_the_next() -> None:
    assert contents("a" * 70 + ",bbbb,c") == ["a" * 70 + ",bbbb", ",c"]


def test_the_comma_rule_takes_weights_along() -> None:
    _, second = chunked("a" * 70 + ",(bbbb:1.5)c").chunks
    assert second.weights[:6] == (1.0, 1.5, 1.5, 1.5, 1.5, 1.0)


def test_an_embedding_stands_for_its_name() -> None:
    (one,) = chunked("a (cat:1.5) b", embeddings={"cat": 2, "ca": 1}).chunks
    assert one.ids[:6] == (BOS, 97, 0, 0, 98, EOS)
    assert one.weights[:6] == (1.0, 1.0, 1.5, 1.5, 1.0, 1.0)
    assert one.placeholders == (Placeholder(position=2, name="cat", vectors=2),)


def test_the_longest_name_wins_and_names_do_not_reach_over_weights() -> None:
    (one,) = chunked("cats ca(t)", embeddings={"cat": 2, "ca": 1, "cats": 3}).chunks
    assert [(p.name, p.position) for p in one.placeholders] == [("cats", 1), ("ca", 4)]


@pytest.mark.parametrize("text", ["wildcat", "cats", "cat2", "2cat", "cat_b", "c at"])
def test_a_name_inside_a_word_is_none(text: str) -> None:
    (one,) = chunked(text, embeddings={"cat": 2}).chunks
    assert one.placeholders == () and content(one) == text.replace(" ", "")


@pytest.mark.parametrize("text", ["Cat", "(cat)", "my-cat,b", "CAT: b", "cat's"])
def test_case_and_punctuation_do_not_hide_a_name(text: str) -> None:
    (one,) = chunked(text, embeddings={"cat": 2}).chunks
    assert [place.name for place in one.placeholders] == ["cat"]


def test_a_name_of_several_pieces() -> None:
    names = {"<cat toy>": 2, "cat": 1, "<cat": 3, "bad dream 2": 4}
    (one,) = chunked("<cat  toy>, a cat, bad dream 25, Bad dream 2", embeddings=names).chunks
    assert [place.name for place in one.placeholders] == ["<cat toy>", "cat", "bad dream 2"]


def test_an_embedding_is_never_split() -> None:
    first, second = chunked("a" * 74 + " cat", embeddings={"cat": 3}).chunks
    assert content(first) == "a" * 74
    assert second.placeholders == (Placeholder(position=1, name="cat", vectors=3),)


def test_an_embedding_moves_with_the_text_behind_a_comma() -> None:
    # In the web UI its tokens move and its place stays in the first chunk.
    first, second = chunked("a" * 70 + ",cat c", embeddings={"cat": 4}).chunks
    assert (content(first), first.placeholders) == ("a" * 70 + ",", ())
    assert second.placeholders == (Placeholder(position=1, name="cat", vectors=4),)
    assert second.ids[5] == ord("c")


@pytest.mark.parametrize("vectors", [0, 76])
def test_an_embedding_that_fits_no_chunk_is_refused(vectors: int) -> None:
    with pytest.raises(UsageError, match=f"'cat' has {vectors} vectors"):
        chunked("a", embeddings={"cat": vectors})


def test_what_does_not_fit_is_counted() -> None:
    found = chunked("a" * 40, SHORT, max_chunks=1)
    assert ([content(one) for one in found.chunks], found.tokens, found.left_out) == (["a" * 30], 30, 10)
    found = chunked("a BREAK bb", SHORT, max_chunks=1)
    assert (found.tokens, found.left_out) == (1, 2)
    # What follows an embedding that does not fit is left out too, though it would.
    found = chunked("a" * 29 + " cat b", SHORT, max_chunks=1, embeddings={"cat": 5})
    assert (found.tokens, found.left_out) == (29, 6)


def test_the_comma_rule_throws_nothing_out_of_the_last_chunk() -> None:
    assert contents("a" * 20 + "," + "b" * 20, SHORT, max_chunks=1) == ["a" * 20 + "," + "b" * 9]


@pytest.mark.parametrize(
    "options", [{"length": 0}, {"placeholder": EOS}, {"placeholder": 5, "eos": 5}], ids=str
)
def test_impossible_tokenizers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TokenizerSpec(**{"bos": BOS, "eos": EOS, "pad": PAD, **options})  # type: ignore[arg-type]


def test_no_chunk_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="max_chunks is 0"):
        chunked("a", max_chunks=0)


def test_prompts_are_padded_to_the_same_number_of_chunks() -> None:
    long, short = chunked("a" * 200).chunks, chunked("b").chunks
    padded = pad_to_same([long, short], SD1)
    assert padded[0] == long
    assert [content(one) for one in padded[1]] == ["b", "", ""]
    assert padded[1][2] == chunked("").chunks[0]
    assert pad_to_same([], SD1) == ()
