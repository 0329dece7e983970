"""Create: pictures from text and from pictures.

The form is ``frame.shared["create"]``, see `fewstep.studio.orders`. ``frame.shared["create.chosen"]`` is the
gr.State with the id of the picture that is looked at, ``frame.shared["create.drawn"]`` the one with the ids of
all that the gallery shows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr
from gradio.context import Context

from fewstep.studio import live, orders
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.orders import Form
from fewstep.studio.tabs import create_draw

SECRET: Final = "fewstep"
"""Of what the browser keeps: it is no secret, and must be the same after a restart."""


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    form = Form()
    frame.shared["create"] = form
    made: dict[str, Any] = {}
    chosen, drawn = gr.State(None), gr.State([])
    frame.shared["create.chosen"], frame.shared["create.drawn"] = chosen, drawn
    job = gr.BrowserState(None, storage_key="fewstep-create-job", secret=SECRET)
    with gr.Row(elem_id="create-top"):
        with gr.Column(scale=6, min_width=300):
            made["prompt"] = gr.Textbox(
                label=words("create.prompt"), placeholder=words("create.prompt_hint"), lines=2, max_lines=6,
                autofocus=True, elem_id="prompt",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=120):
            draw = gr.Button(words("create.draw"), variant="primary", elem_id="create-draw")
            stop = gr.Button(words("create.stop"), variant="stop", visible=False, elem_id="create-stop")
    with gr.Row(elem_id="create-body"):
        with gr.Column(scale=6, min_width=300):
            live.build(frame)
            state = gr.HTML(elem_id="create-state", padding=False)
            gallery = gr.Gallery(
                label=words("create.pictures"), elem_id="create-gallery", columns=4, object_fit="contain",
                interactive=False, height="auto", buttons=["download", "fullscreen"], show_label=False,
            )  # fmt: skip
        with gr.Column(scale=4, min_width=300):
            _settings(frame, made)
    frame.shared["create.gallery"] = gallery
    form.components = {name: made[name] for name in orders.FIELDS if name in made}

    async def watched(api: Api, job_id: str) -> AsyncIterator[dict[Any, Any]]:
        async for now, ids, files in create_draw.follow(api, job_id):
            going = now["state"] in ("queued", "running")
            changes: dict[Any, Any] = {
                job: job_id, state: create_draw.state(words, now) + create_draw.warnings(now),
                draw: gr.update(visible=not going), stop: gr.update(visible=going),
            }  # fmt: skip
            if ids:
                changes |= {gallery: gr.Gallery(files, selected_index=None), drawn: ids, chosen: ids[0]}
            yield changes

    shown = [job, state, draw, stop, gallery, drawn, chosen]

    async def order(request: gr.Request, *values: Any) -> AsyncIterator[dict[Any, Any]]:
        api = api_of(request)
        try:
            placed = await api.post("/api/v1/jobs", form.body(*values))
            async for changes in watched(api, placed["id"]):
                yield changes
        except ApiError as error:
            yield {draw: gr.update(visible=True), stop: gr.update(visible=False)}
            raise gr.Error(str(error), print_exception=False) from None

    gr.on(
        [draw.click, made["prompt"].submit], order, form.inputs, shown, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip

    async def cancel(job_id: str | None, request: gr.Request) -> None:
        if job_id:
            try:
                await api_of(request).post(f"/api/v1/jobs/{job_id}/cancel")
            except ApiError as error:
                raise gr.Error(str(error), print_exception=False) from None

    stop.click(cancel, [job], None, show_progress="hidden", api_visibility="private")

    def choose(ids: list[str], event: gr.SelectData) -> str | None:
        return ids[event.index] if isinstance(event.index, int) and event.index < len(ids) else None

    gallery.select(choose, [drawn], [chosen], show_progress="hidden", api_visibility="private")

    async def again(job_id: str | None, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """After a reload: the job that was going on, or its pictures."""
        if not job_id:
            return
        try:
            async for changes in watched(api_of(request), job_id):
                yield changes
        except ApiError:
            yield {job: None}

    assert Context.root_block is not None
    Context.root_block.load(again, [job], shown, show_progress="hidden", api_visibility="private")

    async def models(request: gr.Request) -> list[Any]:
        api = api_of(request)
        try:
            found = (await api.get("/api/v1/models"))["models"]
            default = next((one["name"] for one in found if one["default"]), None)
            detail = await api.get(f"/api/v1/models/{default}")
        except ApiError:
            return [gr.Dropdown(), gr.Number(), gr.Number()]
        names = gr.Dropdown(choices=[one["name"] for one in found], value=default)
        return [names, detail["native_width"], detail["native_height"]]

    Context.root_block.load(
        models, None, [made["model"], made["width"], made["height"]], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip


def _settings(frame: Frame, made: dict[str, Any]) -> None:
    words = frame.words
    made["n"] = gr.Slider(
        1, 16, value=4, step=1, precision=0, label=words("create.count"), elem_id="create-count"
    )
    with gr.Row():
        made["seed"] = gr.Number(
            -1, precision=0, minimum=-1, label=words("create.seed"), info=words("create.seed_random"),
            elem_id="create-seed", min_width=120,
        )  # fmt: skip
        random = gr.Button(words("create.random"), size="sm", min_width=90, elem_id="create-random")
        keep = gr.Button(words("create.keep"), size="sm", min_width=90, elem_id="create-keep")
    with gr.Row():
        for name in ("width", "height"):
            made[name] = gr.Number(
                0, precision=0, minimum=0, step=8, label=words(f"create.{name}"), min_width=100,
                elem_id=f"create-{name}",
            )  # fmt: skip
    made["model"] = gr.Dropdown([], label=words("create.model"), elem_id="create-model")
    made["negative_prompt"] = gr.Textbox(
        label=words("create.negative"), lines=1, max_lines=4, elem_id="create-negative"
    )
    random.click(None, None, [made["seed"]], js="() => -1", api_visibility="private")

    async def kept(image_id: str | None, request: gr.Request) -> Any:
        if not image_id:
            return gr.skip()
        try:
            return (await api_of(request).get(f"/api/v1/images/{image_id}"))["record"].get("seed")
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    keep.click(
        kept, [frame.shared["create.chosen"]], [made["seed"]], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
