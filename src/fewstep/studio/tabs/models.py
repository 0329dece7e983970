"""Models: what there is, and more of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.studio import working
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.tabs import models_view as view
from fewstep.studio.telling import told
from fewstep.studio.words import Words

_OPEN: Final = """element.addEventListener("click", event => {
  const one = event.target.closest("[data-open]");
  if (one) trigger("select", {name: one.dataset.open});
});"""
_HOW: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    chosen = gr.State(None)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            table = gr.HTML("", elem_id="models-table", js_on_load=_OPEN, css_template=_asset("library.css"))
            memory = gr.Markdown("", elem_id="models-memory")
            with gr.Row():
                refresh = gr.Button(
                    words("models.refresh"), size="sm", min_width=90, elem_id="models-refresh"
                )
                unload = gr.Button(words("models.unload"), size="sm", min_width=90, elem_id="models-unload")
        with gr.Column(scale=2, min_width=320):
            details = gr.HTML(
                view.details(None, words), elem_id="models-details", css_template=_asset("facts.css")
            )
            with gr.Row():
                use = gr.Button(
                    words("models.use"), size="sm", min_width=90, visible=False, elem_id="models-use"
                )
                remove = gr.Button(
                    "", size="sm", min_width=90, variant="stop", visible=False, elem_id="models-remove"
                )
                really = gr.Button(
                    "", size="sm", min_width=90, variant="stop", visible=False, elem_id="models-really"
                )
                leave = gr.Button(
                    words("models.keep"), size="sm", min_width=90, visible=False, elem_id="models-leave"
                )
    closed = gr.Markdown(words("models.closed"), visible=False, elem_id="models-closed")
    listing = [table, memory]
    facts = [chosen, table, details, use, remove, really, leave]

    async def shown(api: Api, name: str | None) -> list[Any]:
        return _listing(await api.get("/api/v1/models"), name, words)

    async def opened(api: Api, name: str | None) -> list[Any]:
        found = await api.get("/api/v1/models")
        there = next((one for one in found["models"] if one["name"] == name), None)
        listed = _listing(found, name if there else None, words)[0]
        off = gr.Button(visible=False)
        if there is None:
            return [None, listed, view.details(None, words), off, off, off, off]
        model = await api.get(f"/api/v1/models/{quote(there['name'], safe='')}")
        how = model["removable"] if found["managed"] and not model["default"] else None
        remove = gr.Button(words(f"models.remove_{how}"), visible=True) if how else off
        return [name, listed, view.details(model, words), gr.Button(visible=True), remove, off, off]

    @told
    async def choose(request: gr.Request, event: gr.EventData) -> AsyncIterator[list[Any]]:
        name = event._data.get("name") if isinstance(event._data, dict) else None
        wait, off = f"<p>{text(words('models.opening', name=name))}</p>", gr.Button(visible=False)
        yield [name, gr.skip(), wait, off, off, off, off]
        try:
            yield await opened(api_of(request), name)
        except ApiError as error:  # a model that cannot be opened can still be taken away
            found = await api_of(request).get("/api/v1/models")
            there: dict[str, Any] = next((one for one in found["models"] if one["name"] == name), {})
            how = there.get("removable") if found["managed"] else None
            remove = gr.Button(words(f"models.remove_{how}"), visible=True) if how else off
            why = f"<p>{text(words('models.failed', why=error))}</p>"
            yield [name, _listing(found, name, words)[0], why, off, remove, off, off]

    @told
    async def again(request: gr.Request, name: str | None) -> list[Any]:
        return await shown(api_of(request), name)

    @told
    async def unloaded(request: gr.Request, name: str | None) -> list[Any]:
        api = api_of(request)
        before = (await api.post("/api/v1/models/unload"))["model"]
        gr.Info(words("models.unloaded", name=before) if before else words("models.nothing_loaded"))
        return await shown(api, name)

    @told
    async def used(request: gr.Request, name: str | None) -> None:
        await api_of(request).send("PATCH", "/api/v1/settings", json={"model": name})
        gr.Info(words("models.used", name=name))

    def ask(name: str | None) -> list[Any]:
        return [
            gr.Button(visible=False),
            gr.Button(words("models.really", name=name), visible=True),
            gr.Button(visible=True),
        ]

    def left() -> list[Any]:
        return [gr.Button(visible=True), gr.Button(visible=False), gr.Button(visible=False)]

    @told
    async def removed(request: gr.Request, name: str | None) -> list[Any]:
        api = api_of(request)
        answer = await api.send("DELETE", f"/api/v1/models/{quote(name or '', safe='')}?files=true")
        gr.Info(words("models.removed" if answer["files"] else "models.removed_name", name=name))
        return [*await opened(api, None)]

    table.select(choose, None, facts, **_HOW)
    refresh.click(again, [chosen], listing, **_HOW)
    unload.click(unloaded, [chosen], listing, **_HOW)
    use.click(used, [chosen], None, **_HOW)
    remove.click(ask, [chosen], [remove, really, leave], **_HOW)
    leave.click(left, None, [remove, really, leave], **_HOW)
    really.click(removed, [chosen], facts, **_HOW)
    sections = [closed, *_downloading(frame, listing, shown), *_adding(frame, listing, shown)]

    @told
    async def entered(request: gr.Request, name: str | None) -> list[Any]:
        found = await api_of(request).get("/api/v1/models")
        visible = (not found["managed"], found["managed"], found["paths"])
        return [*_listing(found, name, words), *(gr.update(visible=one) for one in visible)]

    assert frame.tab is not None
    frame.tab.select(entered, [chosen], [*listing, *sections], **_HOW)


def _downloading(frame: Frame, listing: list[Any], shown: Callable[..., Any]) -> list[Any]:
    """From the hub, as a job of the server: a page that is loaded again finds it."""
    words = frame.words
    with gr.Accordion(words("models.download"), open=False, elem_id="models-download") as part:
        with gr.Row():
            repository = gr.Textbox(
                value="", label=words("models.repository"), placeholder=words("models.repository_hint"),
                elem_id="models-repository", max_lines=1, max_length=193,
            )  # fmt: skip
            revision = gr.Textbox(
                value="", label=words("models.revision"), placeholder=words("models.revision_hint"),
                elem_id="models-revision", max_lines=1, max_length=200, min_width=100,
            )  # fmt: skip
            file = gr.Textbox(
                value="", label=words("models.file"), placeholder=words("models.file_hint"), max_lines=1,
                info=words("models.file_info"), elem_id="models-file", max_length=200,
            )  # fmt: skip
        with gr.Row():
            start = gr.Button(words("models.start"), variant="primary", elem_id="models-start")
            cancel = gr.Button(words("models.cancel"), variant="stop", visible=False, elem_id="models-cancel")
        state = gr.HTML("", elem_id="models-state", css_template=_asset("library.css"))
    job = gr.State(None)
    followed = [job, state, start, cancel, *listing]

    async def follow(api: Api, job_id: str) -> AsyncIterator[list[Any]]:
        async for now in api.watch(job_id):
            going = now["state"] in ("queued", "running")
            buttons = [gr.Button(interactive=not going), gr.Button(visible=going)]
            if now["state"] != "done":
                yield [job_id, working.line(now, words), *buttons, gr.skip(), gr.skip()]
                continue
            name = next(iter(now["result"].values()))
            said = words(
                "models.downloaded_lora" if "lora" in now["result"] else "models.downloaded", name=name
            )
            line = f"<p role='status'>{text(said)}</p>"
            yield [job_id, line, *buttons, *await shown(api, name)]

    @told
    async def begin(
        request: gr.Request, repository: str, revision: str, file: str
    ) -> AsyncIterator[list[Any]]:
        body = {"kind": "download", "repository": repository.strip(), "revision": revision.strip() or None,
                "file": file.strip() or None}  # fmt: skip
        api = api_of(request)
        async for changes in follow(api, (await api.post("/api/v1/jobs", body))["id"]):
            yield changes

    @told
    async def attach(request: gr.Request) -> AsyncIterator[list[Any]]:
        api = api_of(request)
        jobs = (await api.get("/api/v1/jobs", kind="download", limit=1))["jobs"]
        if jobs and jobs[0]["state"] in ("queued", "running"):
            async for changes in follow(api, jobs[0]["id"]):
                yield changes
        else:  # without any values Gradio would empty the components
            yield [gr.skip()] * len(followed)

    @told
    async def stop(request: gr.Request, job_id: str | None) -> None:
        if job_id:
            await api_of(request).post(f"/api/v1/jobs/{job_id}/cancel")

    gr.on([start.click, repository.submit], begin, [repository, revision, file], followed, **_HOW)
    cancel.click(stop, [job], None, **_HOW)
    assert frame.tab is not None
    frame.tab.select(attach, None, followed, trigger_mode="once", **_HOW)
    return [part]


def _adding(frame: Frame, listing: list[Any], shown: Callable[..., Any]) -> list[Any]:
    """A name for a file or folder of the machine, where the server is its user's own."""
    words = frame.words
    with gr.Accordion(words("models.add"), open=False, visible=False, elem_id="models-add") as part:
        with gr.Row():
            name = gr.Textbox(
                value="",
                label=words("models.add_name"),
                max_lines=1,
                max_length=100,
                elem_id="models-add-name",
            )
            path = gr.Textbox(
                value="", label=words("models.path"), placeholder=words("models.path_hint"), scale=3,
                max_lines=1, max_length=4096, elem_id="models-path",
            )  # fmt: skip
        start = gr.Button(words("models.add_start"), elem_id="models-add-start")

    @told
    async def added(request: gr.Request, name: str, path: str) -> list[Any]:
        api = api_of(request)
        made = await api.post("/api/v1/models/add", {"name": name.strip(), "path": path.strip()})
        gr.Info(words("models.added", name=made["model"]))
        return ["", "", *await shown(api, made["model"])]

    gr.on([start.click, path.submit], added, [name, path], [name, path, *listing], **_HOW)
    return [part]


def _listing(found: dict[str, Any], chosen: str | None, words: Words) -> list[Any]:
    memory = words(
        "models.memory", process=working.size(found["process_bytes"]), free=working.size(found["free_bytes"])
    )
    return [view.table(found["models"], chosen, words), memory]


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
