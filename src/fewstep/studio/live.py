"""Live drawing in the page: the island of assets/live.*, and what the form tells it.

The island draws over the WebSocket by itself, see docs/reference/live.md. Python gives it the settings of the
form, and is told of the pictures that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import gradio as gr
from gradio.context import Context

from fewstep.errors import FewstepError
from fewstep.server.schemas.live import Draw
from fewstep.studio import preferred
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.tabs import create_draw
from fewstep.studio.words import texts

_MARK: Final = "\ue000"
"""Stands for the words of the prompt while the form makes an order; nobody types it."""
_OWN: Final = frozenset({"prompt", "type", "id", "save", "final", "format", "quality", "idle_ms"})
"""Fields of a wish that the island sets."""


def build(frame: Frame) -> gr.HTML:
    """The island, where it is to stand; `wire` connects it. It is ``frame.shared["live"]``."""
    words = {name: frame.words(f"live.{name}") for name in texts("live")}
    island = gr.HTML(
        settings({}, None), html_template=_asset("live.html"), css_template=_asset("live.css"),
        js_on_load=_asset("live.js"), apply_default_css=False, padding=False, elem_id="live", words=words,
    )  # fmt: skip
    frame.shared["live"] = island
    return island


def settings(body: Mapping[str, Any], shown: str | None) -> dict[str, Any]:
    """What the island is told.

    Args:
        body: an order for ``/api/v1/jobs`` in whose prompt `_MARK` stands for what is typed.
        shown: id in the history of the picture that is looked at.

    Returns:
        ``order``, fields of a wish; ``wrap``, what stands before and after the typed words; ``shown``. Of
        a form that makes no order also ``message``, the reason, and ``field``.
    """
    order = {name: value for name, value in body.items() if name in Draw.model_fields.keys() - _OWN}
    before, mark, after = str(body.get("prompt", _MARK)).partition(_MARK)
    return {"order": order, "wrap": [before, after] if mark else ["", ""], "shown": shown}


def wire(frame: Frame) -> None:
    """Tell the island of every change of the form, and the gallery of what is kept.

    Call it when all tabs are built: ``create``, ``create.chosen``, ``create.drawn`` and ``create.gallery`` of
    ``frame.shared`` are needed.
    """
    shared = frame.shared
    island, form = shared["live"], shared["create"]
    chosen, drawn, gallery = (shared[f"create.{name}"] for name in ("chosen", "drawn", "gallery"))
    place = list(form.components).index("prompt")

    async def told(shown: str | None, request: gr.Request, *values: Any) -> dict[str, Any]:
        marked = [*values]
        marked[place] = _MARK
        try:
            return settings(form.body(*await preferred.early(api_of(request), form, marked)), shown)
        except ApiError:
            return settings({}, shown)
        except FewstepError as error:
            return {**settings({}, shown), "message": str(error), "field": error.field}

    assert Context.root_block is not None
    # The prompt is the island's own business: it hears every key, Python none.
    changes = [one.change for one in form.inputs if one is not form.components["prompt"]]
    gr.on(
        [*changes, chosen.change, Context.root_block.load], told, [chosen, *form.inputs], [island],
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip

    async def kept(ids: list[str], event: gr.EventData, request: gr.Request) -> list[Any]:
        image_id = str(event.id)
        there = [image_id, *(one for one in ids if one != image_id)]
        try:
            files = await create_draw.pictures(api_of(request), there)
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return [gr.Gallery(files, selected_index=None), there, image_id]

    island.kept(kept, [drawn], [gallery, drawn, chosen], show_progress="hidden", api_visibility="private")


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
