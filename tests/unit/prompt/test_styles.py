"""Style files, and styles in prompts. The examples of taking out are those of the web UI's own code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import DataError, NotFoundError, UsageError
from fewstep.prompt.grammar import MAX_CHARACTERS
from fewstep.prompt.styles import Style, apply, find, read, unapply, write

INK = Style("ink", "ink drawing", "photo")
FILM = Style("film", "film still of {prompt}, 35mm", "")
CLEAN = Style("clean", "", "blurry")


def test_read_a_file_of_the_web_ui() -> None:
    data = (
        "\ufeffname,prompt,negative_prompt\r\n"
        'ink,"ink drawing, (detailed:1.2)",photo\r\n'
        '"two\nlines","a ""quoted"" thing",\r\n'
        "# comment,x,y\r\n,nameless,\r\nshort\r\nink,later,\r\n"
    ).encode()
    assert read(data) == (
        Style("ink", "later", ""),
        Style("two\nlines", 'a "quoted" thing', ""),
        Style("short", "", ""),
    )


def test_read_the_old_columns() -> None:
    assert read("name,text\nink,ink drawing\n") == (Style("ink", "ink drawing"),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "no column 'name'"),
        ("title,prompt\na,b", "no column 'name'"),
        ("name\n" + "x" * 200_000, "field larger"),
        (b"x" * (4 * 2**20 + 1), "larger than 4 MiB"),
        ("name\n" + "".join(f"{n}\n" for n in range(10_001)), "more than 10000 styles"),
    ],
    ids=["empty", "columns", "field", "bytes", "rows"],
)
def test_files_that_are_none_are_refused(data: bytes | str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(data)


@given(st.lists(st.builds(Style, *[st.text(alphabet='ab ,"\n\r#é', min_size=1)] * 3)))
def test_what_is_written_is_read_back(styles: list[Style]) -> None:
    kept = {s.name.strip(): s for s in styles if s.name.strip() and not s.name.strip().startswith("#")}
    assert read(write(styles)) == tuple(Style(name, s.prompt, s.negative_prompt) for name, s in kept.items())


def test_apply() -> None:
    assert apply("a fox ", "", [INK]) == ("a fox, ink drawing", "photo")
    assert apply("a fox", "dark", [FILM, INK]) == ("film still of a fox, 35mm, ink drawing", "dark, photo")
    assert apply("", "", [INK]) == ("ink drawing", "photo")
    assert apply("a fox", "dark", []) == ("a fox", "dark")
    assert apply("x", "", [Style("twice", "{prompt} and {prompt}")]) == ("x and x", "")


@pytest.mark.parametrize(
    ("style", "prompt", "left"),
    [
        ("masterpiece", "1girl, art by greg, masterpiece", "1girl, art by greg"),
        ("masterpiece, {prompt}", "masterpiece, 1girl, art by greg", "1girl, art by greg"),
        ("masterpiece, {prompt}", "exquisite, 1girl, art by greg", None),
        ("ab{prompt}bc", "abc", None),
    ],
)
def test_unapply_one(style: str, prompt: str, left: str | None) -> None:
    found = unapply(prompt, "", [Style("s", style)])
    assert (found.prompt, len(found.styles)) == ((prompt, 0) if left is None else (left, 1))


def test_unapply_needs_both_prompts_to_match() -> None:
    assert unapply("a fox, ink drawing", "", [INK]).styles == ()
    assert unapply("a fox, ink drawing", "photo", [INK]).styles == (INK,)


def test_a_style_that_says_nothing_is_never_found() -> None:
    assert unapply("a fox", "", [Style("nothing")]).styles == ()


@pytest.mark.parametrize("styles", [[INK], [FILM], [CLEAN], [INK, FILM], [FILM, INK, CLEAN]], ids=len)
@pytest.mark.parametrize(("prompt", "negative"), [("a fox", "dark"), ("", ""), ("a, b", "")])
def test_unapply_undoes_apply(styles: list[Style], prompt: str, negative: str) -> None:
    found = unapply(*apply(prompt, negative, styles), [CLEAN, FILM, INK])
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert set(found.styles) == set(styles)
    assert apply(prompt, negative, found.styles) == apply(prompt, negative, styles)


def test_find() -> None:
    assert find([INK, FILM], ["film", "ink"]) == (FILM, INK)
    with pytest.raises(NotFoundError, match="'fim' is not known: there is film"):
        find([INK, FILM], ["fim"])
    with pytest.raises(NotFoundError, match="there is film, ink"):
        find([INK, FILM], ["zzz"])


def test_styles_that_make_a_prompt_too_long_are_refused() -> None:
    double = [Style(f"{n}", "{prompt} {prompt}") for n in range(16)]
    with pytest.raises(UsageError, match=f"longer than {MAX_CHARACTERS} characters"):
        apply("fox", "", double)
