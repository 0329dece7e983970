"""The contact sheet's 100 prompts, chosen once and then fixed: sheets of years can be laid side by side.

``python -m fewstep.evaluation.contact > recipes/emoji-128/contact.yaml`` chooses them again, from what the
selection of ``recipes/emoji-128/data.yaml`` trains on; the file says which selection that was.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from fewstep.data import split
from fewstep.data.backgrounds import RGB, load_backgrounds, recipe_folder
from fewstep.data.emoji import Drawing, open_drawings
from fewstep.data.emoji_sets import STYLES
from fewstep.data.preparation import Selection, load_selection
from fewstep.errors import RecipeError
from fewstep.evaluation.promptsets import EvalPrompt, chosen, parse, prompt_of, read_yaml

COUNTS: Final[Mapping[split.Part, int]] = {"train": 64, "combination": 28, "object": 8}
"""Prompts of each part; 100 in all."""
_HEAD: Final = """\
# The 100 prompts of the contact sheet. Fixed: change them and old sheets cannot be compared any more.
# Chosen by `python -m fewstep.evaluation.contact` from the compositions of `chosen_from`.
# `combination` and `object` are held out: no model of fewstep has seen them.
"""


def choose(
    items: Sequence[Drawing], backgrounds: Mapping[str, RGB], selection: Selection
) -> list[EvalPrompt]:
    """Choose the prompts from a drawing set; the held-out ones last."""
    return [
        prompt_of(item, part)
        for part, count in COUNTS.items()
        for item in chosen(items, backgrounds, selection, part, count)
    ]


def contact_text(prompts: Sequence[EvalPrompt], selection: Selection) -> str:
    """Return the YAML file that `load_contact` reads."""
    origin = {
        "styles": list(selection.styles),
        "groups": list(selection.groups),
        "labels": None if selection.labels is None else list(selection.labels),
        "per_drawing": selection.per_drawing,
    }
    data = {"chosen_from": origin} | {
        part: [prompt.text for prompt in prompts if prompt.part == part] for part in COUNTS
    }
    return _HEAD + yaml.safe_dump(data, sort_keys=False, width=110)


def load_contact(path: Path | None = None) -> list[EvalPrompt]:
    """Read the prompts of the contact sheet.

    Args:
        path: YAML file; default the one of ``emoji-128``.

    Raises:
        RecipeError: not such a file, a text that is not a full caption, or one whose part of the split is
            another than the file says.
    """
    file = path if path is not None else recipe_folder() / "contact.yaml"
    data = read_yaml(file)
    if not isinstance(data, dict) or not set(data) <= {*COUNTS, "chosen_from"}:
        raise RecipeError(f"{file}: must hold lists of prompts under {', '.join(COUNTS)}")
    backgrounds = load_backgrounds()
    found = []
    for part in COUNTS:
        for text in data.get(part) or []:
            prompt = _read(text, backgrounds)
            if prompt is None or prompt.part != part:
                is_part = "not a full caption" if prompt is None else f"of part {prompt.part!r}"
                raise RecipeError(
                    f"{file}: {text!r} is {is_part}, but stands under {part!r}; correct the list"
                )
            found.append(prompt)
    if not found:
        raise RecipeError(f"{file}: no prompt in it; must hold lists under {', '.join(COUNTS)}")
    return found


def _read(text: object, backgrounds: Mapping[str, RGB]) -> EvalPrompt | None:
    """Read a full caption without the drawing set: what is left of style and background is the object."""
    if not isinstance(text, str):
        return None
    bare = text.split(",")[0]
    label = bare.split(" ", 1)[1] if bare.startswith(("a ", "an ")) else bare
    prompt = parse(text, {bare: label}, frozenset(STYLES), backgrounds)
    return None if None in (prompt.label, prompt.style, prompt.background) else prompt


def main(drawings: str = ".cache/emoji-128/drawings") -> None:
    """Print the file for the drawing set of a checkout."""
    selection = load_selection()
    prompts = choose(open_drawings(Path(drawings)).items, load_backgrounds(), selection)
    sys.stdout.write(contact_text(prompts, selection))


if __name__ == "__main__":
    main(*sys.argv[1:])
