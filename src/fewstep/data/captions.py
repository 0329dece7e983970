"""Captions of composed drawings: "a red apple, noto style, on a sky blue background" and shorter forms of it.

Training sees the shorter forms too, so that "a red apple" alone works. Which form a sample gets is drawn from
the generator that the caller gives; the text of each form follows from its parts alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from fewstep.errors import UsageError

FORMS: Final = ("full", "no style", "no background", "object", "keyword")
"""Forms of a caption, in the order in which `variants` takes them."""

# Singular nouns that end like plurals, beyond the endings -ss, -us and -is.
_SINGULAR_S: Final = frozenset({"rhinoceros", "canvas", "gas", "lens", "wireless", "plus", "minus"})
_PLURALS: Final = frozenset(
    {"people", "men", "women", "children", "teeth", "feet", "mice", "geese", "dice", "police", "skis"}
)
_MASS: Final = frozenset(
    "bacon bread broccoli butter cheese corn rice custard garlic ice salt spaghetti popcorn sushi sake mate "
    "oden food fire fog wood water money soap coral yarn thread confetti dna blood tennis badminton lacrosse "
    "hockey cooking camping construction bowling sunrise sunset bamboo milk liquid paper pong".split()
)
# Names and phrases that take no article though they look like singular nouns.
_BARE: Final = frozenset(
    {
        "thumbs up",
        "thumbs down",
        "santa claus",
        "mrs. claus",
        "mx claus",
        "mount fuji",
        "tokyo tower",
        "dashing away",
        "dizzy",
        "star-struck",
        "zzz",
        "foggy",
        "performing arts",
        "night with stars",
        "cityscape at dusk",
        "rolling on the floor laughing",
        "infinity",
        "restroom",
        "information",
        "customs",
        "baggage claim",
        "left luggage",
        "passport control",
        "e-mail",
        "curly hair",
        "red hair",
        "leafy green",
        *"aries taurus gemini cancer leo virgo libra scorpio".split(),
        *"sagittarius capricorn aquarius pisces ophiuchus".split(),
    }
)
# Words that end the head of a noun phrase: "glass of milk", "dog with hat", "beach with umbrella".
_AFTER_HEAD: Final = re.compile(
    r"[,:(]| \w+ing |(?: (?:with|without|of|in|on|at|and|behind|over|tilted|from|for)\b)"
)
_SPELT_WITH_VOWEL: Final = frozenset("aefhilmnorsx")
_AN: Final = re.compile(r"hour|honest|heir|honou?r", re.IGNORECASE)
_A: Final = re.compile(r"uni(?!mp)|use|usu|eu|ewe|one\b|once|ufo|ut[ie]|uk", re.IGNORECASE)


def object_text(label: str) -> str:
    """Turn a Unicode short name into words for a caption, without article.

    Typographic quotes go, and colons become words: "man: red hair" is "man with red hair", "man walking:
    facing right" is "man walking facing right", "family: man, boy" is "family of man and boy".
    """
    text = label.replace("’", "'").replace("“", "").replace("”", "")
    text = re.sub(r"^(\w+): bald$", r"bald \1", text)
    text = re.sub(r"^(\w+): (beard|.+ hair)$", r"\1 with \2", text)
    text = text.replace(" with beard", " with a beard").replace(": facing", " facing")
    whole, colon, members = text.partition(": ")
    if not colon:
        return text
    rest, comma, last = members.rpartition(", ")
    return f"{whole} of {rest} and {last}" if comma else f"{whole} of {members}"


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun phrase, or nothing before plurals, mass nouns and names.

    A best effort by word lists and endings: enough for the labels of the drawing set (listed in a test).
    """
    lower = noun.lower()
    if lower in _BARE:
        return noun
    if lower == "statue of liberty":
        return f"the {noun}"
    head = _AFTER_HEAD.split(lower)[0].split()
    last = head[-1] if head else ""
    if last in _PLURALS or last in _MASS:
        return noun
    if last.endswith("s") and not last.endswith(("ss", "us", "is", "'s")) and last not in _SINGULAR_S:
        return noun
    return f"{_article(noun)} {noun}"


def _article(noun: str) -> str:
    word = noun.split()[0]
    first = re.split(r"[-!]", word)[0]
    if re.match(r"8|11(?!\d)|18(?!\d)", word):
        return "an"
    # Letters that are spelt out: an X-ray, an OK button, a T-Rex.
    spelt = first.isupper() and len(first) <= 3 and first not in ("NEW", "TOP", "UP", "ON")
    if (len(first) == 1 and first.isalpha()) or spelt:
        return "an" if first[0].lower() in _SPELT_WITH_VOWEL else "a"
    if _AN.match(word):
        return "an"
    return "an" if word[0].lower() in "aeiou" and not _A.match(word) else "a"


def caption(
    label: str, *, style: str | None = None, background: str | None = None, also: str | None = None
) -> str:
    """Write one caption: object, then a keyword, style and background where given.

    Args:
        label: Unicode short name, or a keyword in its place.
        style: style word, such as "noto".
        background: name of the background, such as "sky blue".
        also: keyword to add after the object.
    """
    parts = [with_article(object_text(label))]
    if also is not None:
        parts.append(object_text(also))
    if style is not None:
        parts.append(f"{style} style")
    if background is None:
        return ", ".join(parts)
    # "a red apple on a white background", but "a red apple, noto style, on a white background".
    separator = ", " if len(parts) > 1 else " "
    return f"{', '.join(parts)}{separator}on {_article(background)} {background} background"


def keyword_caption(
    label: str, tags: Sequence[str], style: str, background: str, rng: np.random.Generator
) -> str:
    """Write a caption with a keyword in place of the object or after it; the full caption without keywords.

    Only a keyword that is a word of the label ("apple" for "red apple") may replace it: the others ("health",
    "ripe") do not say what is drawn.
    """
    words = object_text(label).lower().split()
    inside = [tag for tag in tags if tag.lower() in words and tag.lower() != label.lower()]
    beside = [tag for tag in tags if tag.lower() not in words]
    if inside and (not beside or rng.random() < 0.5):
        return caption(inside[rng.integers(len(inside))], style=style, background=background)
    if beside:
        return caption(label, style=style, background=background, also=beside[rng.integers(len(beside))])
    return caption(label, style=style, background=background)


def variants(
    label: str,
    tags: Sequence[str],
    style: str,
    background: str,
    rng: np.random.Generator,
    *,
    count: int = 4,
) -> list[str]:
    """Return the first `count` forms of a caption: full, no style, no background, object alone, keyword.

    Args:
        label: Unicode short name.
        tags: keywords of the object.
        style: style word.
        background: name of the background.
        rng: draws the keyword; unused by the first four forms.
        count: 1 to 5.

    Raises:
        UsageError: `count` out of range.
    """
    if not 1 <= count <= len(FORMS):
        raise UsageError(f"caption variants {count}: give 1 to {len(FORMS)}")
    texts = [
        caption(label, style=style, background=background),
        caption(label, background=background),
        caption(label, style=style),
        caption(label),
    ]
    if count == len(FORMS):
        texts.append(keyword_caption(label, tags, style, background, rng))
    return texts[:count]


def random_caption(
    label: str, tags: Sequence[str], style: str, background: str, rng: np.random.Generator
) -> str:
    """Draw one caption: style and background dropped with probability 0.25 each, a keyword with 0.15.

    Args:
        label: Unicode short name.
        tags: keywords of the object.
        style: style word.
        background: name of the background.
        rng: generator; three or more numbers are drawn from it.
    """
    drop_style, drop_background, keyword = rng.random(3) < (0.25, 0.25, 0.15)
    if keyword:
        return keyword_caption(label, tags, style, background, rng)
    return caption(
        label, style=None if drop_style else style, background=None if drop_background else background
    )
