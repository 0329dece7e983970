"""Create: the present prompts kept as a style, replaced and deleted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gradio as gr

from fewstep.studio import remedies, styles
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.words import Words

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def build(words: Words) -> dict[str, Any]:
    """The fold below the styles."""
    made: dict[str, Any] = {}
    with gr.Accordion(words("create.style_fold"), open=False, elem_id="create-style") as made["fold"]:
        made["name"] = gr.Dropdown(
            [], value=None, allow_custom_value=True, label=words("create.style_name"),
            info=words("create.style_info"), elem_id="create-style-name",
        )  # fmt: skip
        with gr.Row():
            made["keep"] = gr.Button(
                words("create.style_keep"), size="sm", min_width=90, elem_id="create-style-keep"
            )
            made["remove"] = gr.Button(
                words("create.style_remove"), size="sm", min_width=90, variant="stop",
                elem_id="create-style-remove",
            )  # fmt: skip
        made["state"] = gr.HTML(elem_id="create-style-state", padding=False)
    return made


def wire(frame: Frame, made: Mapping[str, Any]) -> None:
    """Connect it with the form."""
    words, form = frame.words, frame.shared["create"].components
    asked = gr.State("")  # the name of a style that is there, whose replacement was asked about
    listed = [form["styles"], made["name"], made["keep"], asked, made["state"]]

    def shown(found: Mapping[str, Any], name: str, chosen: Any, said: str) -> list[Any]:
        there = styles.read(found)
        return [
            gr.update(choices=styles.choices(there), value=styles.among(there, chosen)),
            gr.update(choices=styles.own(found), value=name or None), words("create.style_keep"), "", said,
        ]  # fmt: skip

    def refused(error: object) -> list[Any]:
        return [gr.skip(), gr.skip(), words("create.style_keep"), "", remedies.sentence(error)]

    async def look(name: Any, chosen: Any, request: gr.Request) -> list[Any]:
        try:
            return shown(await api_of(request).get(styles.PATH), _name(name), chosen, "")
        except ApiError as error:
            return refused(error)

    async def keep(
        name: Any, before: str, prompt: str, negative: str, chosen: Any, request: gr.Request
    ) -> list[Any]:
        style = {"name": _name(name), "prompt": prompt or "", "negative_prompt": negative or ""}
        if not style["name"]:
            return refused(words("create.style_nameless"))
        api = api_of(request)
        try:
            if before != style["name"] and style["name"] in styles.own(await api.get(styles.PATH)):
                said = _said(words("create.style_there", name=style["name"]))
                return [gr.skip(), gr.skip(), words("create.style_replace"), style["name"], said]
            found = await api.send("PUT", styles.PATH, json=style)
        except ApiError as error:
            return refused(error)
        return shown(found, style["name"], chosen, _said(words("create.style_kept", name=style["name"])))

    async def remove(name: Any, chosen: Any, request: gr.Request) -> list[Any]:
        if not (wanted := _name(name)):
            return refused(words("create.style_nameless"))
        try:
            found = await api_of(request).send("DELETE", styles.PATH, params={"name": wanted})
        except ApiError as error:
            return refused(error)
        return shown(found, "", chosen, _said(words("create.style_removed", name=wanted)))

    made["fold"].expand(look, [made["name"], form["styles"]], listed, **_QUIET)
    prompts = [form["prompt"], form["negative_prompt"]]
    made["keep"].click(keep, [made["name"], asked, *prompts, form["styles"]], listed, **_QUIET)
    made["remove"].click(remove, [made["name"], form["styles"]], listed, **_QUIET)


def _name(given: Any) -> str:
    return str(given or "").strip()[: styles.MOST]


def _said(sentence: str) -> str:
    return f'<p class="create-warning" role="status">{text(sentence)}</p>'
