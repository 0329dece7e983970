"""History: every picture that was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import gradio as gr

from fewstep.studio import sending
from fewstep.studio.client import Api, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.tabs import history_view as view
from fewstep.studio.telling import told
from fewstep.studio.words import Words

_OPEN: Final = """element.addEventListener("click", event => {
  const one = event.target.closest("[data-open]");
  if (one) trigger("select", {ids: [one.dataset.open], last: one.dataset.open});
});"""
_ZIP: Final = """async () => {
  const [failed, nothing] = TEXTS;
  const chosen = [...document.querySelectorAll("#history-grid [aria-selected=true], #history-picture")];
  const ids = [...new Set(chosen.map(one => one.dataset.id))];
  if (!ids.length) { alert(nothing); return []; }
  const answer = await fetch("/api/v1/images/zip", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({ids})});
  if (!answer.ok) { alert(`${failed}: ${(await answer.json()).error.message}`); return []; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = "fewstep.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return [];
}"""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The components, in the order in which they are made."""

    text: gr.Textbox
    favourites: gr.Checkbox
    tag: gr.Dropdown
    model: gr.Dropdown
    trash: gr.Checkbox
    grid: gr.HTML
    newer: gr.Button
    older: gr.Button
    count: gr.Markdown
    details: gr.HTML
    infotext: gr.Textbox
    record: gr.JSON
    lineage: gr.HTML
    undo: gr.Button
    restore: gr.Button
    ids: gr.State
    """Ids of the chosen pictures."""
    last: gr.State
    """Id of the one whose details are shown."""
    pages: gr.State
    """Where the pages begin that lead to this one; the first begins at None."""
    after: gr.State
    """Where the next one begins; None where there is none."""
    token: gr.State
    """Of the last deletion."""

    @property
    def filters(self) -> list[Any]:
        """What a search is made of."""
        return [self.text, self.favourites, self.tag, self.model, self.trash]

    @property
    def shown(self) -> list[Any]:
        """What `_shown` gives values for."""
        return [self.grid, self.pages, self.after, self.newer, self.older, self.restore]

    @property
    def facts(self) -> list[Any]:
        """What `_facts` gives values for."""
        return [self.ids, self.last, self.count, self.details, self.infotext, self.record, self.lineage]


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    with gr.Row():
        text = gr.Textbox(
            value="", label=words("history.search"), placeholder=words("history.search_hint"), scale=3,
            elem_id="history-search", max_lines=1, max_length=1000,
        )  # fmt: skip
        tag = gr.Dropdown(
            [("", "")], value="", label=words("history.tag"), elem_id="history-tag", min_width=120
        )
        model = gr.Dropdown(
            [("", "")], value="", label=words("history.model"), elem_id="history-model", min_width=120
        )
    with gr.Row():
        favourites = gr.Checkbox(
            label=words("history.favourites"), elem_id="history-favourites", min_width=120
        )
        trash = gr.Checkbox(label=words("history.trash"), elem_id="history-trash", min_width=120)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            grid = gr.HTML(
                "",
                elem_id="history-grid",
                js_on_load=_asset("history.js"),
                css_template=_asset("history.css"),
            )
            with gr.Row():
                newer = gr.Button(
                    words("history.newer"), size="sm", elem_id="history-newer", interactive=False
                )
                older = gr.Button(
                    words("history.older"), size="sm", elem_id="history-older", interactive=False
                )
            gr.Markdown(words("history.keys"), elem_id="history-keys")
        with gr.Column(scale=2, min_width=320):
            last, ids = gr.State(None), gr.State([])
            count = gr.Markdown("", elem_id="history-count")
            with gr.Row():
                like = gr.Button(
                    words("history.favourite"), size="sm", min_width=90, elem_id="history-favourite"
                )
                delete = gr.Button(
                    words("history.delete"), size="sm", min_width=90, variant="stop", elem_id="history-delete"
                )
                undo = gr.Button("", size="sm", min_width=90, visible=False, elem_id="history-undo")
                restore = gr.Button(
                    words("history.restore"),
                    size="sm",
                    min_width=90,
                    visible=False,
                    elem_id="history-restore",
                )
                archive = gr.Button(words("history.zip"), size="sm", min_width=90, elem_id="history-zip")
            with gr.Row():
                sending.buttons(frame, "history", last, *sending.TARGETS)
            details = gr.HTML("", elem_id="history-details", css_template=_asset("facts.css"))
            tags = gr.Textbox(
                value="", label=words("history.tags"), placeholder=words("history.tags_hint"),
                elem_id="history-tags", max_lines=1, max_length=1000,
            )  # fmt: skip
            with gr.Row():
                add = gr.Button(words("history.add_tags"), size="sm", elem_id="history-tags-add")
                remove = gr.Button(words("history.remove_tags"), size="sm", elem_id="history-tags-remove")
            with gr.Accordion(words("history.lineage"), elem_id="history-lineage-part"):
                lineage = gr.HTML(
                    "", elem_id="history-lineage", js_on_load=_OPEN, css_template=_asset("facts.css")
                )
            with gr.Accordion(words("history.infotext"), open=False):
                infotext = gr.Textbox(
                    value="", show_label=False, container=False, label=words("history.infotext"), lines=4,
                    interactive=False, buttons=["copy"], elem_id="history-infotext",
                )  # fmt: skip
            with gr.Accordion(words("history.record"), open=False):
                record = gr.JSON(show_label=False, label=words("history.record"), elem_id="history-record")
    parts = _Parts(
        text, favourites, tag, model, trash, grid, newer, older, count, details, infotext, record, lineage,
        undo, restore, ids, last, gr.State([None]), gr.State(None), gr.State(None),
    )  # fmt: skip
    _searching(frame, parts)
    _choosing(words, parts)
    _marking(words, parts, like, delete, tags, add, remove)
    texts = json.dumps([words("history.zip_failed"), words("history.nothing")])
    archive.click(None, None, None, js=_ZIP.replace("TEXTS", texts), api_visibility="private")


def _searching(frame: Frame, parts: _Parts) -> None:
    """Filters, pages, and what there is to filter by."""
    words = frame.words
    how: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    @told
    async def first(request: gr.Request, *given: Any) -> list[Any]:
        return await _shown(api_of(request), words, given, [None], ())

    @told
    async def opened(request: gr.Request, *given: Any) -> list[Any]:
        api = api_of(request)
        *filters, ids, pages = given
        there = [one["name"] for one in (await api.get("/api/v1/models"))["models"]]
        tags = (await api.get("/api/v1/images/tags"))["tags"]
        return [
            _choices(words, [(name, name) for name in there], filters[3]),
            _choices(words, [(f"{name} ({count})", name) for name, count in tags.items()], filters[2]),
            *await _shown(api, words, filters, pages, ids),
        ]

    @told
    async def forward(request: gr.Request, *given: Any) -> list[Any]:
        *filters, pages, after = given
        return await _shown(api_of(request), words, filters, [*pages, after] if after else pages, ())

    @told
    async def back(request: gr.Request, *given: Any) -> list[Any]:
        *filters, pages, _ = given
        return await _shown(api_of(request), words, filters, pages[:-1] or [None], ())

    assert frame.tab is not None
    frame.tab.select(
        opened, [*parts.filters, parts.ids, parts.pages], [parts.model, parts.tag, *parts.shown], **how
    )
    parts.text.change(first, parts.filters, parts.shown, trigger_mode="always_last", **how)
    for part in parts.filters[1:]:
        part.input(first, parts.filters, parts.shown, **how)
    ways = [*parts.filters, parts.pages, parts.after]
    parts.older.click(forward, ways, parts.shown, **how)
    parts.newer.click(back, ways, parts.shown, **how)


def _choosing(words: Words, parts: _Parts) -> None:
    how: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    @told
    async def choose(request: gr.Request, event: gr.EventData) -> list[Any]:
        ids, last = _told_of(event)
        return await _facts(api_of(request), words, ids, last)

    parts.grid.select(choose, None, parts.facts, **how)
    parts.lineage.select(choose, None, parts.facts, **how)


def _marking(
    words: Words, parts: _Parts, like: gr.Button, delete: gr.Button, tags: gr.Textbox, add: gr.Button,
    remove: gr.Button,
) -> None:  # fmt: skip
    """Favourites, tags, the trash and the way back from it."""
    how: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    state = [*parts.filters, parts.pages, parts.ids, parts.last]
    both = [*parts.shown, *parts.facts]

    async def again(api: Api, given: Sequence[Any], ids: list[str], last: str | None) -> list[Any]:
        filters, pages = given[:5], given[5]
        return [
            *await _shown(api, words, filters, pages, ids),
            *await _facts(api, words, ids, last),
        ]

    async def mark(
        api: Api, given: Sequence[Any], ids: list[str], last: str | None, **body: Any
    ) -> list[Any]:
        for one in _some(ids, words):
            await api.send("PATCH", f"/api/v1/images/{one}", json=body)
        return await again(api, given, ids, last)

    async def liked(api: Api, given: Sequence[Any], ids: list[str], last: str | None) -> list[Any]:
        marked = [(await api.get(f"/api/v1/images/{one}"))["favourite"] for one in _some(ids, words)]
        return await mark(api, given, ids, last, favourite=not all(marked))

    async def thrown(api: Api, given: Sequence[Any], ids: list[str]) -> list[Any]:
        answer = await api.post("/api/v1/images/delete", {"ids": _some(ids, words)})
        button = gr.Button(words("history.undo", n=answer["deleted"]), visible=True)
        return [button, answer["undo"], *await again(api, given, [], None)]

    @told
    async def like_chosen(request: gr.Request, *given: Any) -> list[Any]:
        return await liked(api_of(request), given, given[6], given[7])

    @told
    async def like_these(request: gr.Request, event: gr.EventData, *given: Any) -> list[Any]:
        return await liked(api_of(request), given, *_told_of(event))

    @told
    async def delete_chosen(request: gr.Request, *given: Any) -> list[Any]:
        return await thrown(api_of(request), given, given[6])

    @told
    async def delete_these(request: gr.Request, event: gr.EventData, *given: Any) -> list[Any]:
        return await thrown(api_of(request), given, _told_of(event)[0])

    @told
    async def undone(request: gr.Request, *given: Any) -> list[Any]:
        api = api_of(request)
        ids = (await api.post("/api/v1/images/undo", {"token": given[8]}))["ids"]
        gr.Info(words("history.restored", n=len(ids)))
        return [gr.Button(visible=False), None, *await again(api, given, ids, ids[0])]

    @told
    async def restored(request: gr.Request, *given: Any) -> list[Any]:
        api = api_of(request)
        ids = (await api.post("/api/v1/images/restore", {"ids": _some(given[6], words)}))["ids"]
        gr.Info(words("history.restored", n=len(ids)))
        return await again(api, given, [], None)

    @told
    async def tagged(request: gr.Request, *given: Any) -> list[Any]:
        names = _names(given[8])
        return ["", *await mark(api_of(request), given, given[6], given[7], add_tags=names)]

    @told
    async def untagged(request: gr.Request, *given: Any) -> list[Any]:
        names = _names(given[8])
        return ["", *await mark(api_of(request), given, given[6], given[7], remove_tags=names)]

    like.click(like_chosen, state, both, **how)
    parts.grid.like(like_these, state, both, **how)
    gone = [parts.undo, parts.token, *both]
    delete.click(delete_chosen, state, gone, **how)
    parts.grid.delete(delete_these, state, gone, **how)
    parts.undo.click(undone, [*state, parts.token], gone, **how)
    parts.restore.click(restored, state, both, **how)
    gr.on([tags.submit, add.click], tagged, [*state, tags], [tags, *both], **how)
    remove.click(untagged, [*state, tags], [tags, *both], **how)


async def _shown(
    api: Api, words: Words, filters: Sequence[Any], pages: list[str | None], chosen: Sequence[str]
) -> list[Any]:
    """Values of `_Parts.shown`: the page that begins where ``pages`` ends."""
    text, favourites, tag, model, trash = filters
    size = (await api.get("/api/v1/settings"))["values"]["page"]
    page = await api.get(
        "/api/v1/images", text=text, favourite=True if favourites else None, tag=tag or None,
        model=model or None, trashed=trash, limit=size, before=pages[-1],
    )  # fmt: skip
    if not page["images"] and len(pages) > 1:  # the last of a page was thrown away
        return await _shown(api, words, filters, pages[:-1], chosen)
    if text or favourites or tag or model:
        empty = words("history.none")
    else:
        empty = words("history.trash_empty" if trash else "history.empty")
    return [
        view.grid(page["images"], words, chosen=chosen, empty=empty), pages, page["next"],
        gr.Button(interactive=len(pages) > 1), gr.Button(interactive=page["next"] is not None),
        gr.Button(visible=trash),
    ]  # fmt: skip


async def _facts(api: Api, words: Words, ids: list[str], last: str | None) -> list[Any]:
    """Values of `_Parts.facts`: of the picture that was chosen last."""
    count = words("history.chosen", n=len(ids)) if len(ids) > 1 else ""
    if last is None or last not in ids:
        last = ids[-1] if ids else None
    if last is None:
        return [ids, None, count, "", "", None, ""]
    facts = await api.get(f"/api/v1/images/{last}")
    family = await api.get(f"/api/v1/images/{last}/lineage")
    return [
        ids, last, count, view.details(facts, words), view.infotext_of(facts), facts["record"],
        view.lineage(family, facts["parent"], words),
    ]  # fmt: skip


def _choices(words: Words, found: list[tuple[str, str]], value: str) -> gr.Dropdown:
    kept = value if value in [name for _, name in found] else ""
    return gr.Dropdown([(words("history.any"), ""), *found], value=kept)


def _told_of(event: gr.EventData) -> tuple[list[str], str | None]:
    """What a browser says is chosen: ids as the API takes them, or none."""
    data = event._data if isinstance(event._data, dict) else {}
    ids, last = data.get("ids"), data.get("last")
    found = [one for one in ids if isinstance(one, str) and one.isalnum()] if isinstance(ids, list) else []
    return found, last if last in found else None


def _some(ids: list[str], words: Words) -> list[str]:
    if not ids:
        raise gr.Error(words("history.nothing"), print_exception=False)
    return ids


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.replace("，", ",").split(",") if name.strip()]


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
