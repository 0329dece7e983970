"""What can be done with a picture that was drawn, and with an order that is being made."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr

from fewstep.errors import FewstepError
from fewstep.studio import copy_as, orders, recalled, sending
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.orders import Form
from fewstep.studio.tabs import create_draw, create_trouble

VARIATIONS: Final = 4
STRENGTH: Final = 0.5
"""Of variations: the same composition, other details."""
_CHANGE: Final = 0.5
"""Strength of variations of a picture that was made from another."""
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def row(frame: Frame) -> dict[str, Any]:
    """Buttons below the gallery."""
    words, chosen = frame.words, frame.shared["create.chosen"]
    made: dict[str, Any] = {}
    with gr.Row(elem_id="create-actions"):
        made["vary"] = gr.Button(words("create.vary"), size="sm", min_width=90, elem_id="create-vary")
        made["enlarge"] = gr.Button(
            words("create.enlarge"), size="sm", min_width=90, elem_id="create-enlarge"
        )
        sending.buttons(frame, "create", chosen, "image", "inpaint", "settings", "extras", "info")
    return made


def copying(frame: Frame) -> dict[str, Any]:
    """The order as text for elsewhere."""
    words = frame.words
    made: dict[str, Any] = {}
    with gr.Accordion(words("create.copy"), open=False, elem_id="create-copy") as made["fold"]:
        made["form"] = gr.Radio(
            [(words(f"create.copy_{name}"), name) for name in copy_as.FORMS], value="cli", show_label=False,
            label=words("create.copy"), elem_id="create-copy-as",
        )  # fmt: skip
        made["text"] = gr.Code(
            "", language="shell", label=words("create.copy_text"), lines=3, max_lines=16, interactive=False,
            wrap_lines=True, elem_id="create-copy-text",
        )  # fmt: skip
    return made


def wire(frame: Frame, actions: dict[str, Any], copied: dict[str, Any], ordered: Any) -> None:
    """Connect both."""
    words, shared = frame.words, frame.shared
    form: Form = shared["create"]
    chosen, drawn = shared["create.chosen"], shared["create.drawn"]
    job, state, _, _, gallery, *_ = shared["create.shown"]
    buttons, remedy = shared["create.buttons"], shared["create.remedy"]

    async def vary(
        image_id: str | None, ids: list[str], request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        if not image_id:
            raise gr.Error(words("sending.nothing"), print_exception=False)
        api = api_of(request)
        found: list[str] = []
        try:
            placed = [
                (await api.post("/api/v1/jobs", body))["id"] for body in await _variations(api, image_id)
            ]
            for one in placed:
                async for now, made, _ in create_draw.follow(api, one):
                    going = now["state"] in ("queued", "running")
                    yield {
                        job: one, state: create_draw.state(words, now) + create_draw.warnings(now),
                        **buttons(going), **create_trouble.ended(remedy, now),
                    }  # fmt: skip
                    if made:
                        found += made
                        there = [image_id, *found]
                        files = await create_draw.pictures(api, there)
                        yield {gallery: gr.Gallery(files, selected_index=None), drawn: there}
        except (ApiError, FewstepError) as error:
            yield await shared["create.refused"](api, error, "vary")

    actions["vary"].click(vary, [chosen, drawn], shared["create.shown"], **_QUIET)

    async def enlarge(
        image_id: str | None, ids: list[str], request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        if not image_id:
            raise gr.Error(words("sending.nothing"), print_exception=False)
        api = api_of(request)
        try:
            placed = await api.post("/api/v1/jobs", {"kind": "upscale", "images": [image_id]})
            async for now, made, _ in create_draw.follow(api, placed["id"]):
                going = now["state"] in ("queued", "running")
                yield {
                    job: placed["id"], state: create_draw.state(words, now), **buttons(going),
                    **create_trouble.ended(remedy, now),
                }  # fmt: skip
                if made:
                    there = [*made, *ids]
                    files = await create_draw.pictures(api, there)
                    yield {gallery: gr.Gallery(files, selected_index=None), drawn: there, chosen: made[0]}
        except ApiError as error:
            yield await shared["create.refused"](api, error, "enlarge")

    shared["create.vary"], shared["create.enlarge"] = vary, enlarge
    actions["enlarge"].click(enlarge, [chosen, drawn], shared["create.shown"], **_QUIET)

    def written(request: gr.Request, name: str, *values: Any) -> Any:
        try:
            body = form.body(*values)
        except FewstepError as error:
            raise gr.Error(str(error), print_exception=False) from None
        url = str(request.request.base_url) if request.request is not None else ""
        origin = "/".join(url.split("/")[:3])
        text = copy_as.FORMS[name if name in copy_as.FORMS else "cli"](body, origin)
        return gr.Code(text, language="shell" if name in ("cli", "curl") else "python")

    given: dict[str, Any] = {
        "inputs": [copied["form"], *form.inputs], "outputs": [copied["text"]], **_QUIET,
    }  # fmt: skip
    gr.on([copied["form"].input, copied["fold"].expand], written, **given)
    ordered.then(written, **given)


async def _variations(api: Api, image_id: str) -> list[dict[str, Any]]:
    """Orders of variations of a picture: of its noise, or of itself when it was made from another picture."""
    record = (await api.get(f"/api/v1/images/{image_id}"))["record"]
    body = orders.body({**recalled.of_record(record), "n": 1}) | {"parent": image_id}
    if record.get("task", "txt2img") == "txt2img":
        return [
            {**body, "variation_seed": secrets.randbelow(1 << 32), "variation_strength": STRENGTH}
            for _ in range(VARIATIONS)
        ]
    data = await api.data(f"/api/v1/images/{image_id}/file")
    picture = await asyncio.to_thread(lambda: base64.b64encode(data).decode())
    for name in ("width", "height", "variation_seed", "variation_strength"):
        body.pop(name, None)
    return [
        {**body, "image": picture, "strength": _CHANGE, "seed": secrets.randbelow(1 << 32)}
        for _ in range(VARIATIONS)
    ]
