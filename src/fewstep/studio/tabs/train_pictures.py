"""Pictures for training or distillation: a dataset of the server, its captions in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr

from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.tabs import train_cards
from fewstep.studio.tabs.train_cards import Cards, Rows
from fewstep.studio.words import Words

_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
SENT: Final = 16 << 20
"""Bytes of one request; more pictures are sent in several."""


@dataclass(slots=True)
class Pictures:
    """The components, and what other parts of a tab need of them."""

    dataset: gr.Dropdown
    captions: gr.Dataframe
    trigger: gr.Textbox | None
    cards: Cards

    @property
    def inputs(self) -> list[Any]:
        """Of an event that needs the captions: dataset, table, and name and caption of the card."""
        return [self.dataset, self.captions, self.cards.name, self.cards.caption]


def build(frame: Frame, tab: str, *, trigger: gr.Textbox | None = None) -> Pictures:
    """Call it where the pictures are to stand.

    Args:
        frame: of the page.
        tab: begin of the components' ids.
        trigger: a word that empty captions can be filled with.
    """
    words = frame.words
    dataset = gr.Dropdown(
        [], value="", label=words("train.dataset"), info=words("train.dataset_info"), allow_custom_value=True,
        elem_id=f"{tab}-dataset",
    )  # fmt: skip
    files = gr.File(
        label=words("train.files"), file_count="multiple", height=170, elem_id=f"{tab}-files",
        file_types=[".png", ".jpg", ".jpeg", ".webp", ".txt"],
    )  # fmt: skip
    with gr.Accordion(words("train.captions"), open=True, visible=False) as fold:
        cards = train_cards.build(words, tab)
        table = gr.Dataframe(
            headers=[words("train.picture"), words("train.name_of_picture"), words("train.caption")],
            datatype=["html", "str", "str"], column_count=3, column_widths=["100px", "120px", "60%"],
            type="array", static_columns=[0, 1], interactive=True, wrap=True, max_height=360,
            show_label=False, label=words("train.captions"), elem_id=f"{tab}-captions",
        )  # fmt: skip
        with gr.Row():
            fill = gr.Button(
                words("train.fill"), size="sm", visible=trigger is not None, elem_id=f"{tab}-fill"
            )
            save = gr.Button(words("train.save"), size="sm", elem_id=f"{tab}-save")
    made = Pictures(dataset, table, trigger, cards)
    shown = [dataset, table, fold, *cards.outputs]

    async def added(name: str | None, paths: list[str] | None, request: gr.Request) -> list[Any]:
        if not paths:
            return [gr.skip()] * (len(shown) + 1)
        api = api_of(request)
        try:
            wanted = (name or "").strip() or free_name(await names(api))
            for part in parts(paths):
                await api.send("POST", f"/api/v1/datasets/{wanted}", files=part)
            return [*await view(words, api, wanted), None]
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def look(name: str | None, rows: Rows, request: gr.Request) -> list[Any]:
        try:
            return await view(words, api_of(request), name, rows, stands=name or "")
        except ApiError:
            return [gr.skip()] * len(shown)

    async def kept(
        name: str | None, rows: Rows, picture: str, caption: str, request: gr.Request
    ) -> list[Any]:
        after = train_cards.merged(rows, picture, caption)
        try:
            await keep(api_of(request), name, after)
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None
        gr.Info(words("train.saved"))
        place = train_cards.place_of(after, picture)
        return [after if after is not rows else gr.skip(), *train_cards.shown(words, name, after, place)]

    def going(by: int) -> Callable[..., Any]:
        """To the picture before or after; what was typed is saved on the way."""

        async def go(
            name: str | None, rows: Rows, picture: str, caption: str, request: gr.Request
        ) -> list[Any]:
            after = train_cards.merged(rows, picture, caption)
            try:
                await keep(api_of(request), name, train_cards.changed(rows, after))
            except ApiError as error:
                gr.Warning(str(error))  # it stays in the table
            place = train_cards.place_of(after, picture) + by
            return [after if after is not rows else gr.skip(), *train_cards.shown(words, name, after, place)]

        return go

    def choose(name: str | None, rows: Rows, event: gr.SelectData) -> list[Any]:
        place = event.index[0] if isinstance(event.index, list | tuple) else event.index
        return train_cards.shown(words, name, rows, int(place or 0))

    def seen(name: str | None, rows: Rows, picture: str) -> list[Any]:
        return train_cards.shown(words, name, rows, train_cards.place_of(rows, picture))

    files.upload(added, [dataset, files], [*shown, files], show_progress="minimal", api_visibility="private")

    async def other(name: str | None, request: gr.Request) -> list[Any]:
        return await look(name, [], request)

    dataset.input(other, [dataset], shown, **_QUIET)
    of_card = [table, *cards.outputs]
    save.click(kept, made.inputs, of_card, **_QUIET)
    gr.on([cards.after.click, cards.caption.submit], going(1), made.inputs, of_card, **_QUIET)
    cards.before.click(going(-1), made.inputs, of_card, **_QUIET)
    cards.caption.blur(train_cards.merged, made.inputs[1:], [table], **_QUIET)
    table.select(choose, [dataset, table], cards.outputs, **_QUIET)
    table.input(seen, [dataset, table, cards.name], cards.outputs, **_QUIET)
    if trigger is not None:
        everywhere = fill.click(
            lambda rows, picture, caption, word: filled(train_cards.merged(rows, picture, caption), word),
            [*made.inputs[1:], trigger], [table], **_QUIET,
        )  # fmt: skip
        everywhere.then(seen, [dataset, table, cards.name], cards.outputs, **_QUIET)
    assert frame.tab is not None
    frame.tab.select(look, [dataset, table], shown, **_QUIET)
    return made


async def names(api: Api) -> list[str]:
    """Datasets of the visitor."""
    return [one["name"] for one in (await api.get("/api/v1/datasets"))["datasets"]]


async def view(
    words: Words, api: Api, name: str | None, before: Rows | None = None, *, stands: str | None = None
) -> list[Any]:
    """Values for the choice of a dataset, its table, the fold around that, and its card.

    Args:
        words: texts.
        api: of the visitor.
        name: of the dataset; None or empty is the first one.
        before: the table as it is; where it has the same pictures, what was typed in it stays.
        stands: what the choice says already. It is not written there again: by the time that this arrives,
            somebody may have typed another name.
    """
    there = await names(api)
    chosen = name or (there[0] if there else "")
    choice = gr.update(choices=there) if chosen == stands else gr.update(choices=there, value=chosen)
    if chosen not in there:
        return [choice, [], gr.update(visible=False), *train_cards.shown(words, chosen, [], 0)]
    found, fold = (await api.get(f"/api/v1/datasets/{chosen}"))["pictures"], gr.update(visible=True)
    if train_cards.same(before or [], found):
        return [choice, gr.skip(), fold, *[gr.skip()] * 5]
    table = rows(found)
    return [choice, table, fold, *train_cards.shown(words, chosen, table, 0)]


async def keep(api: Api, name: str | None, table: Rows) -> None:
    """Save the captions of a table; ApiError where the server refuses."""
    if captions := {str(row[1]): str(row[2] or "") for row in table if len(row) > 2 and row[1]}:
        await api.send("PATCH", f"/api/v1/datasets/{name}", json={"captions": captions})


def rows(pictures: Sequence[Mapping[str, Any]]) -> Rows:
    """Of the table; names are the server's, and of letters, digits, _ and - alone."""
    return [
        [
            f'<img src="{text(one["thumbnail"])}" alt="" width="64" loading="lazy">',
            one["name"],
            one["caption"],
        ]
        for one in pictures
    ]


def filled(table: Rows, trigger: str | None) -> Rows:
    """The table with the word in every caption: alone where there was none."""
    word = (trigger or "").strip()
    if not word:
        return table
    return [[row[0], row[1], with_word(str(row[2] or ""), word)] for row in table]


def with_word(caption: str, word: str) -> str:
    """The caption with the word in front, where it does not have it."""
    if word in caption:
        return caption
    return f"{word}, {caption.strip()}" if caption.strip() else word


def parts(paths: Sequence[str], most: int = SENT) -> list[list[tuple[str, tuple[str, bytes, str]]]]:
    """Files as forms of at most so many bytes; a caption goes with its picture."""
    by_stem: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        by_stem.setdefault(path.stem, []).append(path)
    found: list[list[tuple[str, tuple[str, bytes, str]]]] = []
    size = most + 1
    for group in by_stem.values():
        if all(path.suffix.lower() == ".txt" for path in group):
            continue  # the caption of nothing
        pieces = [("pictures", (path.name, path.read_bytes(), _kind(path))) for path in group]
        weight = sum(len(piece[1][1]) for piece in pieces)
        if size + weight > most:
            found.append([])
            size = 0
        found[-1] += pieces
        size += weight
    return found


def free_name(there: Sequence[str]) -> str:
    """A name for a dataset that is not taken."""
    return next(name for i in range(1, len(there) + 2) if (name := f"pictures-{i}") not in there)


def product_name(title: str) -> str:
    """A name that the server takes, near what somebody wrote."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-_")[:64]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return {".txt": "text/plain", ".png": "image/png", ".webp": "image/webp"}.get(suffix, "image/jpeg")


async def trainable(api: Api) -> list[str]:
    """Models that can be taught, the server's own first: folders and single files with weights.

    Runtime bundles cannot. The others come by name, and what was made here would often be before its teacher.
    """
    models = (await api.get("/api/v1/models"))["models"]
    found = [one for one in models if {"pipeline", "checkpoint"} & {one["kind"], *one["kinds"]}]
    return [one["name"] for one in sorted(found, key=lambda one: not one["default"])]


def wire_models(frame: Frame, none: gr.HTML, model: gr.Dropdown) -> None:
    """When the tab is opened, offer the models that can be taught, or say what to do where there are none."""
    words = frame.words
    assert frame.tab is not None

    async def opened(before: str | None, request: gr.Request) -> list[Any]:
        try:
            return offered(words, await trainable(api_of(request)), before)
        except ApiError:
            return [gr.skip()] * 2

    # Unchecked: after a restart of the server the choices that this page has are none that Gradio knows.
    frame.tab.select(opened, [model], [none, model], preprocess=False, **_QUIET)


def offered(words: Words, there: Sequence[str], before: str | None) -> list[Any]:
    """Values for the sentence and the choice of a model; what was chosen before stays while it is there."""
    chosen = before if before in there else next(iter(there), None)
    return [sentence(words, there), gr.update(choices=list(there), value=chosen)]


def sentence(words: Words, there: Sequence[str]) -> str:
    """HTML that says what to do where no model can be taught."""
    return "" if there else f'<p role="status">{text(words("train.no_model"))}</p>'
