"""Which prompts a model is measured with: deterministic sets that say of every prompt whether it was trained.

Four sets follow from the split of the drawing set and from what a model was trained on: ``seen`` (trained
compositions), ``combination`` (held-out combinations of trained parts), ``object`` (objects held out whole)
and ``synonyms`` (words that no caption holds). ``contact`` is a fixed list, and any text file is a set.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml

from fewstep.data import split
from fewstep.data.backgrounds import RGB, recipe_folder
from fewstep.data.captions import caption
from fewstep.data.compositions import Composition, compositions
from fewstep.data.emoji import Drawing
from fewstep.data.preparation import Selection
from fewstep.errors import DataError, NotFoundError, RecipeError, UsageError

Part = Literal["train", "combination", "object", "synonym", "free"]
"""``synonym``: the object is trained, the word is not; ``free``: not a caption of the drawing set."""

NAMES: Final = ("seen", "combination", "object", "synonyms", "contact")
MAX_FILE: Final = 1_000_000
"""Bytes of a prompt file, at most."""
_PARTS: Final[Mapping[str, split.Part]] = {"seen": "train", "combination": "combination", "object": "object"}


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One prompt, and what its picture must show.

    Attributes:
        text: what the model is given.
        label: the concept, None where the prompt names none of the drawing set.
        style: style word, None where the prompt names none.
        background: name of the background, None where the prompt names none.
        part: what training saw of it.
    """

    text: str
    label: str | None
    style: str | None
    background: str | None
    part: Part


def prompt_of(item: Composition, part: Part) -> EvalPrompt:
    """Return the prompt of one composition: its full caption."""
    text = caption(item.label, style=item.style, background=item.background)
    return EvalPrompt(text, item.label, item.style, item.background, part)


def chosen(
    items: Sequence[Drawing],
    backgrounds: Mapping[str, RGB],
    selection: Selection,
    part: split.Part,
    n: int,
    *,
    seed: int = 0,
) -> list[Composition]:
    """Choose compositions of one part, stratified by style and group.

    Of ``train`` only what `selection` really trained on is taken: its styles, groups, objects and number of
    backgrounds a drawing; objects held out whole are those of its styles and groups, as no list of trained
    objects names them. The first k of n are the same for every n, and every beginning of the list has the
    strata in about the proportions of the whole part. In a stratum every object comes once before one comes
    twice.

    Args:
        items: drawings of the set.
        backgrounds: name to colour.
        selection: what the model was trained on.
        part: part of the split.
        n: how many, at most: fewer where the part holds fewer.
        seed: changes the choice, not what is trained.

    Raises:
        UsageError: n under 1.
        DataError: the part is empty in this selection.
    """
    if n < 1:
        raise UsageError(f"number of prompts is {n}: give --n 1 or more")
    found = compositions(
        items,
        backgrounds,
        part=part,
        per_drawing=selection.per_drawing if part == "train" else len(backgrounds),
        caption_variants=1,
        styles=selection.styles,
        groups=selection.groups,
        labels=None if part == "object" else selection.labels,
    )
    strata: dict[tuple[str, str], list[Composition]] = defaultdict(list)
    for item in found:
        strata[item.style, items[item.drawing].group].append(item)
    placed: list[tuple[float, tuple[str, str], Composition]] = []
    for stratum, members in strata.items():
        times: Counter[str] = Counter()
        turns: list[tuple[int, Composition]] = []
        for item in sorted(members, key=lambda item: _key(seed, item)):
            turns.append((times[item.label], item))
            times[item.label] += 1
        turns.sort(key=lambda turn: turn[0])  # stable: by hash within a turn
        placed += [((rank + 0.5) / len(turns), stratum, item) for rank, (_, item) in enumerate(turns)]
    placed.sort(key=lambda place: place[:2])
    return [item for _, _, item in placed[:n]]


def build(
    name: str,
    n: int,
    *,
    items: Sequence[Drawing],
    backgrounds: Mapping[str, RGB],
    selection: Selection,
    seed: int = 0,
) -> list[EvalPrompt]:
    """Build a set by its name, or from a text file with one prompt a line.

    Args:
        name: one of `NAMES`, or a path that ends in .txt.
        n: how many prompts at most; the first ones of a fixed list.
        items: drawings of the set.
        backgrounds: name to colour.
        selection: what the model was trained on.
        seed: changes the choice where there is one.

    Raises:
        NotFoundError: neither a set nor a file.
        UsageError: n under 1, or a file without prompts.
        DataError: the set is empty for this selection.
        RecipeError: a list of the recipe folder is not valid.
    """
    if n < 1:
        raise UsageError(f"number of prompts is {n}: give --n 1 or more")
    if name in _PARTS:
        part = _PARTS[name]
        return [prompt_of(c, part) for c in chosen(items, backgrounds, selection, part, n, seed=seed)]
    if name == "synonyms":
        words = load_synonyms()
        return synonyms(words, items, backgrounds, selection, seed=seed)[:n]
    if name == "contact":
        from fewstep.evaluation.contact import load_contact

        return load_contact()[:n]
    if Path(name).suffix == ".txt":
        return read_file(Path(name), items, backgrounds)[:n]
    raise NotFoundError(f"prompt set {name!r}: give {', '.join(NAMES)}, or a file that ends in .txt")


def synonyms(
    words: Mapping[str, str],
    items: Sequence[Drawing],
    backgrounds: Mapping[str, RGB],
    selection: Selection,
    *,
    seed: int = 0,
) -> list[EvalPrompt]:
    """Put each word in the place of its object, in a composition of the object that was trained.

    Words whose object the selection does not hold are left out. The order follows from a hash of the words,
    so that a short set is not all of one kind.

    Raises:
        DataError: no word is left.
    """
    trained: dict[str, list[Composition]] = defaultdict(list)
    for item in chosen(items, backgrounds, selection, "train", 10**9, seed=seed):
        trained[item.label].append(item)
    found = []
    for word, label in sorted(words.items(), key=lambda pair: _hash(f"{seed}|synonym|{pair[0]}")):
        if trained.get(label):
            item = min(trained[label], key=lambda item: _key(seed, item))
            text = caption(word, style=item.style, background=item.background)
            found.append(EvalPrompt(text, label, item.style, item.background, "synonym"))
    if not found:
        raise DataError("no synonym names an object of this selection: choose another prompt set")
    return found


def load_synonyms(path: Path | None = None) -> dict[str, str]:
    """Read the synonyms: word to label, in the order of the file.

    Args:
        path: YAML file; default the one of ``emoji-128``.

    Raises:
        RecipeError: the file is missing or not a mapping of words to labels.
    """
    file = path if path is not None else recipe_folder() / "synonyms.yaml"
    data = read_yaml(file)
    words = data if isinstance(data, dict) else {}
    if not words or not all(isinstance(text, str) for pair in words.items() for text in pair):
        raise RecipeError(f"{file}: must map words to labels, such as 'hound: dog'")
    return words


def read_yaml(file: Path) -> object:
    """Read one YAML file of a recipe folder.

    Raises:
        RecipeError: it is missing or not YAML.
    """
    try:
        return yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{file}: cannot be read as YAML ({reason}); give another file") from error


def read_file(path: Path, items: Sequence[Drawing], backgrounds: Mapping[str, RGB]) -> list[EvalPrompt]:
    """Read one prompt a line; blank lines and those that begin with # are left out.

    What a prompt must show is read off those that are captions of the drawing set; others are only drawn, and
    compared with the drawings as a whole.

    Raises:
        NotFoundError: no such file.
        UsageError: not text, too large, or without prompts.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"{path}: larger than {MAX_FILE} bytes; give a file with one prompt a line")
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text ({error.reason}); give a file with one prompt a line"
        ) from error
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror}); give a file of prompts") from error
    texts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not texts:
        raise UsageError(f"{path}: no prompt in it; write one a line")
    labels = {caption(item.label): item.label for item in items}
    styles = frozenset(item.style for item in items)
    return [parse(text, labels, styles, backgrounds) for text in texts]


_BACKGROUND: Final = re.compile(r"^(?P<rest>.+?),? on an? (?P<name>[\w ]+) background$")
_STYLE: Final = re.compile(r"^(?P<rest>.+), (?P<name>[\w ]+) style$")


def parse(
    text: str, labels: Mapping[str, str], styles: frozenset[str], backgrounds: Mapping[str, RGB]
) -> EvalPrompt:
    """Read a caption backwards: background, style, object; each None where the text does not name it.

    Args:
        text: a prompt.
        labels: caption of the object alone ("a red apple") to its label.
        styles: known style words.
        backgrounds: known backgrounds.
    """
    rest, background, style = text, None, None
    found = _BACKGROUND.match(rest)
    if found and found["name"] in backgrounds:
        rest, background = found["rest"], found["name"]
    found = _STYLE.match(rest)
    if found and found["name"] in styles:
        rest, style = found["rest"], found["name"]
    label = labels.get(rest)
    return EvalPrompt(text, label, style, background, part_of(label, style, background))


def part_of(label: str | None, style: str | None, background: str | None) -> Part:
    """Say what training may have seen: without style or background, whether the object is held out."""
    if label is None:
        return "free"
    if style is None or background is None:
        return "object" if split.object_held_out(label) else "train"
    return split.part(label, style, background)


def _key(seed: int, item: Composition) -> bytes:
    return _hash(f"{seed}|prompt|{item.label}|{item.style}|{item.background}")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
