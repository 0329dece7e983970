"""Small folders of pictures in one style each, with captions: what `fewstep train lora` learns a style from.

`recipes/emoji-128/styles.yaml` says which objects of which emoji set are shown, and which are held out: those
are drawn only to be compared with, never to be trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.checkpoint import atomic
from fewstep.data import restyle
from fewstep.data.backgrounds import RGB, load_backgrounds, recipe_folder
from fewstep.data.captions import caption
from fewstep.data.emoji import collect
from fewstep.data.emoji_sets import SOURCES, check_known, terms
from fewstep.errors import DataError, RecipeError, UsageError

FILE: Final = "styles.yaml"
MADE: Final = "style.json"
NOTICE: Final = "NOTICE"
OBJECT: Final = "{object}"
_FORMAT: Final = 1  # of the pictures: raise it when a style changes

Report = Callable[[int, int], None]


class StyleEntry(BaseModel):
    """One style of ``styles.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    drawings: str
    """The emoji set whose drawings are shown in it, by its style word."""
    licence: str
    """SPDX name of that set's licence."""
    backgrounds: tuple[str, ...] = ()
    """Names of the backgrounds that take turns; empty for a style with a ground of its own."""
    captions: tuple[str, ...] = ()
    """Other ways to ask a model for the style, ``{object}`` for the object: what words alone can do."""


class StyleSets(BaseModel):
    """``styles.yaml``: which objects are shown in which styles."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    styles: dict[str, StyleEntry]
    objects: Annotated[tuple[str, ...], Field(min_length=1)]
    """Unicode names of the objects that are trained; the first n of them make a set of n pictures."""
    held_out: Annotated[tuple[str, ...], Field(min_length=1)]
    """Objects whose pictures in these styles are never trained."""


@dataclass(frozen=True, slots=True)
class Styled:
    """One picture that belongs to a set, not drawn yet.

    Attributes:
        style: one of `restyle.STYLES`.
        label: the object.
        caption: what stands beside it.
        background: sRGB colour; of no effect in a style with a ground of its own.
        svg: the drawing.
    """

    style: str
    label: str
    caption: str
    background: RGB
    svg: str

    @property
    def stem(self) -> str:
        """Name of its files, without ending."""
        return "".join(c if c.isalnum() else "-" for c in self.label.lower())

    def draw(self) -> restyle.Picture:
        """Draw it: uint8 (128, 128, 3)."""
        seed = hashlib.sha256(f"{self.style}|{self.label}".encode()).digest()[:8]
        rng = np.random.Generator(np.random.Philox(int.from_bytes(seed, "little")))
        try:
            art = restyle.artwork(self.svg)
        except DataError as error:
            raise DataError(f"{self.label}: {error}") from error
        return restyle.restyle(self.style, art, self.background, rng)


def load_sets(path: Path | None = None) -> StyleSets:
    """Read ``styles.yaml``; the one of ``emoji-128`` when no file is given.

    Raises:
        RecipeError: not such a file, an unknown style, emoji set or background, another licence than the
            set's, or an object that is both trained and held out.
    """
    file = path if path is not None else recipe_folder() / FILE
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
        sets = StyleSets.model_validate_json(json.dumps(values))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"{file}: not a file of styles ({reason}); see recipes/emoji-128/{FILE}") from error
    both = sorted(set(sets.objects) & set(sets.held_out))
    if both:
        raise RecipeError(f"{file}: {both[0]!r} is trained and held out; take it from one of the lists")
    try:
        check_known("style", tuple(sets.styles), tuple(restyle.STYLES))
        for entry in sets.styles.values():
            check_known("emoji set", (entry.drawings,), tuple(SOURCES))
            check_known("background", entry.backgrounds or ("white",), tuple(load_backgrounds()))
    except UsageError as error:
        raise RecipeError(f"{file}: {error}") from error
    for name, entry in sets.styles.items():
        odd = [said for said in entry.captions if said.count(OBJECT) != 1]
        if odd:
            raise RecipeError(f"{file}: {name} has the caption {odd[0]!r}; put {OBJECT} into it once")
        right = SOURCES[entry.drawings].licence
        if entry.licence != right:
            raise RecipeError(
                f"{file}: {name} names the licence {entry.licence!r}; drawings of {entry.drawings} are under "
                f"{right}"
            )
    return sets


def styled(
    sets: StyleSets, style: str, packages: Path, *, held_out: bool = False, n: int | None = None
) -> list[Styled]:
    """List the pictures of one style.

    Args:
        sets: of `load_sets`.
        style: one of its styles.
        packages: folder of npm packages, see `fewstep.data.emoji_sets.fetch_packages`.
        held_out: those that are never trained instead of those that are.
        n: the first n objects; all when not given.

    Raises:
        UsageError: an unknown style, or more pictures than there are objects.
        DataError: an object that the emoji set does not draw, or packages that cannot be read.
    """
    return sorted(
        _listed(sets, (style,), packages, held_out=held_out, n=n)[style], key=lambda item: item.stem
    )


def write_sets(
    folder: Path,
    sets: StyleSets,
    packages: Path,
    *,
    styles: tuple[str, ...] | None = None,
    held_out: bool = False,
    n: int | None = None,
    replace: bool = False,
    on_progress: Report | None = None,
) -> dict[str, Path]:
    """Write a folder of PNG and ``.txt`` files for each style, with a ``NOTICE`` of the drawings' terms.

    A picture that is there already is kept, so a broken run goes on where it was; every file appears complete
    or not at all.

    Args:
        folder: gets one folder a style, named after it.
        sets: of `load_sets`.
        packages: folder of npm packages.
        styles: only these; default all.
        held_out: the pictures that are never trained instead.
        n: the first n objects; default all.
        replace: draw again, and remove, what a folder holds from other drawings or of other objects.
        on_progress: called with (pictures done, total).

    Returns:
        The folder of each style.

    Raises:
        UsageError: an unknown style, or more pictures than there are objects.
        DataError: see `styled`; or a folder that holds other pictures.
        OutputError: a folder cannot be written.
    """
    chosen = styles or tuple(sets.styles)
    found = _listed(sets, chosen, packages, held_out=held_out, n=n)
    total, done = sum(map(len, found.values())), 0
    written: dict[str, Path] = {}
    for style, items in found.items():
        place = folder / style.replace(" ", "-")
        entry = sets.styles[style]
        source = SOURCES[entry.drawings]
        key = {"format": _FORMAT, "style": style, "package": source.package, "version": source.version}
        _start(place, key | {"held_out": held_out}, {item.stem for item in items}, replace=replace)
        atomic.write_text(place / NOTICE, _notice(style, entry))
        for item in items:
            _write(place, item)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        written[style] = place
    return written


def _listed(
    sets: StyleSets, styles: tuple[str, ...], packages: Path, *, held_out: bool, n: int | None
) -> dict[str, list[Styled]]:
    check_known("style", styles, tuple(sets.styles))
    objects = sets.held_out if held_out else sets.objects
    if n is not None and not 1 <= n <= len(objects):
        raise UsageError(f"{n} pictures a style: give 1 to {len(objects)}, there are so many objects")
    objects = objects[:n]
    drawings = tuple(dict.fromkeys(sets.styles[style].drawings for style in styles))
    svgs = {(item.style, item.label): svg for item, svg in collect(packages, styles=drawings)}
    return {style: list(_entries(sets, style, objects, svgs)) for style in styles}


def _entries(
    sets: StyleSets, style: str, objects: tuple[str, ...], svgs: Mapping[tuple[str, str], str]
) -> Iterator[Styled]:
    colours, entry = load_backgrounds(), sets.styles[style]
    for place, label in enumerate(objects):
        svg = svgs.get((entry.drawings, label))
        if svg is None:
            raise DataError(f"{label!r}: {entry.drawings} has no drawing of it; take it out of {FILE}")
        # Every second caption leaves the background out, so that a prompt may leave it out too.
        name = entry.backgrounds[place % len(entry.backgrounds)] if entry.backgrounds else None
        said = caption(label, style=style, background=None if place % 2 else name)
        yield Styled(style, label, said, colours[name or "white"], svg)


def _start(place: Path, key: Mapping[str, object], stems: set[str], *, replace: bool) -> None:
    """Make a folder ready, or see that what it holds belongs to the set."""
    there = {path for path in place.glob("*") if path.suffix in {".png", ".txt"}}
    others = {path for path in there if path.stem not in stems}
    if there and _key(place) != dict(key):
        others = there
    if others and not replace:
        raise DataError(
            f"{place}: holds {len(others)} files of other pictures, such as {min(others).name}; give another "
            "folder, or --replace"
        )
    for path in others:
        path.unlink()
    atomic.write_text(place / MADE, json.dumps(key, indent=1) + "\n")


def _key(place: Path) -> object:
    try:
        return json.loads((place / MADE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _write(place: Path, item: Styled) -> None:
    """Write caption and picture; the picture last, so that none is without its caption."""
    picture, text = place / f"{item.stem}.png", place / f"{item.stem}.txt"
    said = item.caption + "\n"
    if not text.is_file() or text.read_text("utf-8") != said:
        picture.unlink(missing_ok=True)  # the caption may name another background
        atomic.write_text(text, said)
    if not picture.is_file():
        buffer = io.BytesIO()
        Image.fromarray(item.draw()).save(buffer, "PNG", optimize=True)
        atomic.write_bytes(picture, buffer.getvalue())


def _notice(style: str, entry: StyleEntry) -> str:
    source = terms(entry.drawings, SOURCES[entry.drawings].version)
    return (
        f"Pictures made from drawings of the emoji set {source['package']} {source['version']}\n"
        f"holder: {source['holder']}\nsource: {source['url']}\n"
        f"licence: {source['licence']}, {source['licence_url']}\n"
        f"changed: redrawn in the style {style!r} by fewstep, rasterised, captions added\n"
        "The holder does not endorse these pictures.\n"
    )
