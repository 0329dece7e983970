"""The six emoji sets: packages, versions, licences and the style words of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fewstep.data.sources import npm
from fewstep.errors import UsageError

CHANGES: Final = "rasterised, recomposed on plain backgrounds, used as training data"


@dataclass(frozen=True, slots=True)
class DrawingSource:
    """One emoji set: where it comes from and on which terms."""

    style: str
    package: str
    version: str
    holder: str
    url: str
    licence: str
    licence_url: str


_CC_BY = ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/")
_FLUENT = (
    "Microsoft Corporation",
    "https://github.com/microsoft/fluentui-emoji",
    "MIT",
    "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE",
)

SOURCES: Final[Mapping[str, DrawingSource]] = {
    source.style: source
    for source in (
        DrawingSource(
            "noto",
            "@iconify-json/noto",
            "1.2.9",
            "Google",
            "https://github.com/googlefonts/noto-emoji",
            "Apache-2.0",
            "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE",
        ),
        DrawingSource(
            "twemoji",
            "@iconify-json/twemoji",
            "1.2.5",
            "Twitter, Inc and other contributors",
            "https://github.com/jdecked/twemoji",
            *_CC_BY,
        ),
        DrawingSource("fluent flat", "@iconify-json/fluent-emoji-flat", "1.2.6", *_FLUENT),
        DrawingSource("fluent 3d", "@iconify-json/fluent-emoji", "1.2.7", *_FLUENT),
        DrawingSource(
            "emojione",
            "@iconify-json/emojione",
            "1.2.3",
            "EmojiOne 2.x (EmojiTwo)",
            "https://github.com/EmojiTwo/emojitwo",
            *_CC_BY,
        ),
        # Iconify's metadata says Apache-2.0, which is the licence of fxemoji's code, not of its drawings.
        DrawingSource(
            "firefox",
            "@iconify-json/fxemoji",
            "1.2.2",
            "Mozilla",
            "https://github.com/mozilla/fxemoji",
            *_CC_BY,
        ),
    )
}
"""The six sets by the style word that captions use."""

STYLES: Final = tuple(SOURCES)
GROUPS: Final = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
)
LABELS_PACKAGE: Final = "emojibase-data"
LABELS_VERSION: Final = "17.0.0"
PACKAGES: Final[Mapping[str, str]] = {s.package: s.version for s in SOURCES.values()} | {
    LABELS_PACKAGE: LABELS_VERSION,
    "emojibase": LABELS_VERSION,
}
"""npm packages and exact versions; emojibase only because emojibase-data names it as a peer."""


def fetch_packages(cache: Path, styles: Sequence[str] = STYLES) -> Path:
    """Fetch the npm packages that `styles` need into `cache`; return the folder for `build_drawings`.

    Raises:
        UsageError: an unknown style.
        DependencyError: the npm client is missing.
        DataError: npm failed.
    """
    check_known("style", styles, STYLES)
    wanted = {SOURCES[style].package for style in styles} | {LABELS_PACKAGE, "emojibase"}
    return npm.fetch({name: version for name, version in PACKAGES.items() if name in wanted}, cache)


def terms(style: str, version: str) -> dict[str, str]:
    """Return what a notice must say about one set: holder, links, version, licence, and what was changed."""
    return asdict(SOURCES[style]) | {"version": version, "changed": CHANGES}


def check_known(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an empty list and names that are not known.

    Raises:
        UsageError: names what is known.
    """
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UsageError(f"{kind} {wrong or 'list is empty'}: known are {', '.join(known)}")
