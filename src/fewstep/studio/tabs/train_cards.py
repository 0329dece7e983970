"""Captions picture by picture: a card with the picture, its caption, and the way to the next one.

The card is a second look at the table of `fewstep.studio.tabs.train_pictures`, which has all captions. What
is typed belongs to the picture whose name came along with it from the browser, so that it cannot land at
another one while the card goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.studio.markup import text
from fewstep.studio.words import Words

Rows = list[list[str]]
"""Of the table: a small picture as HTML, the name, the caption."""
_CSS: Final = resources.files("fewstep.studio").joinpath("assets", "cards.css").read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Cards:
    """The components."""

    picture: gr.HTML
    name: gr.Textbox
    """Hidden: of the picture that is shown."""
    caption: gr.Textbox
    before: gr.Button
    after: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """What `shown` has values for."""
        return [self.picture, self.name, self.caption, self.before, self.after]


def build(words: Words, tab: str) -> Cards:
    """The card, where it is to stand."""
    with gr.Row(elem_id=f"{tab}-one"):
        with gr.Column(scale=2, min_width=160):
            picture = gr.HTML(elem_id=f"{tab}-one-picture", padding=False)
        with gr.Column(scale=3, min_width=200):
            name = gr.Textbox("", visible="hidden", elem_id=f"{tab}-one-name")
            caption = gr.Textbox(
                label=words("train.caption"), info=words("train.card_info"), lines=4, max_lines=8,
                elem_id=f"{tab}-one-caption",
            )  # fmt: skip
            with gr.Row():
                before = gr.Button(
                    words("train.card_before"), size="sm", min_width=90, elem_id=f"{tab}-one-before"
                )
                after = gr.Button(
                    words("train.card_after"), size="sm", min_width=90, elem_id=f"{tab}-one-after"
                )
    return Cards(picture, name, caption, before, after)


def shown(words: Words, dataset: str | None, rows: Rows, place: int) -> list[Any]:
    """Values of a card's outputs.

    Args:
        words: texts.
        dataset: name of it.
        rows: of the table.
        place: of the picture, from 0; what is out of range is brought into it.
    """
    if not rows:
        return ["", "", gr.update(value=""), gr.update(interactive=False), gr.update(interactive=False)]
    place = min(max(place, 0), len(rows) - 1)
    name = str(rows[place][1])
    without = sum(1 for row in rows if not str(row[2] or "").strip())
    told = words("train.card_place", place=place + 1, all=len(rows), name=name)
    if without:
        told += " · " + words("train.card_without", n=without)
    source = f"/api/v1/datasets/{quote(str(dataset or ''), safe='')}/pictures/{quote(name, safe='')}"
    picture = (
        f'<style>{_CSS}</style><figure class="caption-card" data-picture="{text(name)}">'
        f'<img src="{text(source)}" alt="{text(name)}"><figcaption>{text(told)}</figcaption></figure>'
    )
    return [
        picture, name, gr.update(value=str(rows[place][2] or "")), gr.update(interactive=place > 0),
        gr.update(interactive=place < len(rows) - 1),
    ]  # fmt: skip


def place_of(rows: Rows, name: str | None) -> int:
    """Where a picture stands; the first one where it is gone."""
    return next((place for place, row in enumerate(rows) if str(row[1]) == name), 0)


def merged(rows: Rows, name: str | None, caption: str | None) -> Rows:
    """The table with what stands in the card; the same table where that is nothing new."""
    said = str(caption or "")
    if not name or all(str(row[2] or "") == said for row in rows if str(row[1]) == name):
        return rows
    return [[row[0], row[1], said] if str(row[1]) == name else row for row in rows]


def changed(before: Rows, after: Rows) -> Rows:
    """The rows of a table that are not as they were."""
    return [] if before is after else [row for row, was in zip(after, before, strict=True) if row != was]


def same(rows: Rows, pictures: Sequence[Any]) -> bool:
    """Whether a table has the pictures of a dataset, each once and in its order."""
    return bool(rows) and [str(row[1]) for row in rows] == [str(one["name"]) for one in pictures]
