"""Extras: pictures enlarged and restored."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gradio as gr
from gradio import processing_utils
from gradio.context import Context

from fewstep.errors import FewstepError, UsageError
from fewstep.studio import markup, painted, remedies, sending
from fewstep.studio.client import ENDED, Api, ApiError, api_of
from fewstep.studio.frame import Frame, Target
from fewstep.studio.tabs import create_draw, extras_results
from fewstep.studio.telling import told

if TYPE_CHECKING:
    from fewstep.studio.sending import Sent
    from fewstep.studio.words import Words

MOST: Final = 64
"""Pictures of one job."""
MAX_BYTES: Final = 47 << 20
"""Of files in one job: as base64, no more than a server takes in a request by default."""
RECENT: Final = 3600.0
"""Seconds for which a page that is loaded anew shows a job that has ended."""
_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_FORM: Final = (
    "upscaler", "upscaler_2", "visibility", "by", "factor", "width", "height", "crop", "noise", "restore",
    "strength", "prompt", "negative", "student", "steps",
)  # fmt: skip


def build(frame: Frame) -> None:
    """The tab; registers the target ``extras``."""
    words = frame.words
    made: dict[str, Any] = {}
    parent, chosen, ids, job = gr.State(None), gr.State(None), gr.State([]), gr.State(None)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            picture = _picture(words)
            origin = gr.Markdown(elem_id="extras-origin")
            files = gr.File(
                label=words("extras.several"), file_count="multiple", type="filepath", height=120,
                file_types=[".png", ".jpg", ".jpeg", ".webp"], elem_id="extras-files",
            )  # fmt: skip
            gr.Markdown(words("extras.several_info"))
            _settings(words, made)
            _restoring(words, made)
        with gr.Column(scale=6, min_width=300):
            with gr.Row():
                run = gr.Button(words("extras.run"), variant="primary", elem_id="extras-run")
                stop = gr.Button(words("extras.stop"), variant="stop", visible=False, elem_id="extras-stop")
            state = gr.HTML(elem_id="extras-state", padding=False)
            remedy = remedies.Button(words, "extras")
            compare = gr.ImageSlider(
                label=words("extras.compare"), interactive=False, visible=False, max_height=640, format="png",
                elem_id="extras-compare",
            )  # fmt: skip
            gallery = gr.Gallery(
                label=words("extras.results"), columns=4, object_fit="contain", interactive=False,
                height="auto", visible=False, elem_id="extras-results",
            )  # fmt: skip
            archive = gr.DownloadButton(words("extras.zip"), visible=False, elem_id="extras-zip")
            with gr.Row():
                sending.buttons(frame, "extras", chosen, "image", "inpaint", "info", "extras")
    form = [made[name] for name in _FORM]
    shown = [job, state, run, stop, compare, gallery, archive, ids, chosen, *remedy.outputs]

    async def followed(api: Api, job_id: str, before: str | None) -> AsyncIterator[dict[Any, Any]]:
        async for now in api.watch(job_id):
            going = now["state"] not in ENDED
            changes: dict[Any, Any] = {
                job: job_id, state: _state(words, now),
                run: gr.update(value=words("extras.run"), visible=not going),
                stop: gr.update(value=words("extras.stop"), visible=going),
                **remedy.shown(remedies.find(now["state"], {}), job=job_id),
            }  # fmt: skip
            if now["state"] == "done":
                results = (now["result"] or {}).get("images") or []
                changes |= await _results(api, results, before, compare, gallery, archive)
                changes |= {
                    ids: [one["id"] for one in results],
                    chosen: results[0]["id"] if results else None,
                }
            yield changes

    async def enlarge(
        request: gr.Request, path: str | None, several: list[str] | None, of: str | None, *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        api = api_of(request)
        form_values = dict(zip(_FORM, values, strict=True))
        try:
            body = await asyncio.to_thread(order, words, path, several or [], of, form_values)
            placed = await api.post("/api/v1/jobs", body)
            async for changes in followed(api, placed["id"], None if several else path):
                yield changes
        except (ApiError, FewstepError) as error:
            yield refused(error, form_values, None)

    def refused(
        error: ApiError | FewstepError, form_values: dict[str, Any], job_id: str | None
    ) -> dict[Any, Any]:
        helps = remedies.find(error, form_values, of=remedies.EXTRAS)
        return {
            state: remedies.sentence(error), run: gr.update(value=words("extras.run"), visible=True),
            stop: gr.update(visible=False), **remedy.shown(helps, job=job_id),
        }  # fmt: skip

    inputs = [picture, files, parent, *form]
    run.click(enlarge, inputs, shown, **_QUIET)

    def change(found: dict[str, Any] | None) -> list[Any]:
        changes = found["changes"] if found else {}
        return [gr.update(value=changes[name]) if name in changes else gr.skip() for name in upscalers]

    async def repeat(
        request: gr.Request, found: dict[str, Any] | None, *given: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        yield {job: gr.skip()}
        if not found or found["go"]:
            return
        yield remedy.hidden()
        if found["job"] is None:
            async for changes in enlarge(request, *given):
                yield changes
            return
        try:
            await api_of(request).post(f"/api/v1/jobs/{found['job']}/requeue")
            async for changes in followed(api_of(request), found["job"], None):
                yield changes
        except ApiError as error:
            yield refused(error, {}, found["job"])

    upscalers = ("upscaler", "upscaler_2")
    changed = remedy.button.click(change, [remedy.kept], [made[name] for name in upscalers], **_QUIET)
    changed.success(repeat, [remedy.kept, *inputs], shown, **_QUIET)

    @told
    async def cancel(job_id: str | None, request: gr.Request) -> None:
        if job_id:
            await api_of(request).post(f"/api/v1/jobs/{job_id}/cancel")

    stop.click(cancel, [job], None, **_QUIET)

    async def again(job_id: str | None, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """After a reload, or in a second window: the job that goes on, or the pictures of the last one."""
        # Gradio empties what an event without any answer was to change.
        yield {job: job_id}
        if job_id:
            return
        api = api_of(request)
        try:
            found = (await api.get("/api/v1/jobs", kind="upscale", limit=1))["jobs"]
            if found and (found[0]["finished"] or time.time()) > time.time() - RECENT:
                async for changes in followed(api, found[0]["id"], None):
                    yield changes
        except ApiError:
            return

    assert frame.tab is not None
    frame.tab.select(again, [job], shown, **_QUIET)

    def choose(of: list[str], event: gr.SelectData) -> str | None:
        return of[event.index] if isinstance(event.index, int) and event.index < len(of) else None

    gallery.select(choose, [ids], [chosen], **_QUIET)
    gr.on([picture.input, picture.clear], lambda: (None, ""), None, [parent, origin], **_QUIET)
    frame.targets["extras"] = _target(words, picture, files, parent, origin)
    assert Context.root_block is not None
    filled = [made["upscaler"], made["upscaler_2"], made["missing"], made["student"]]

    async def start(request: gr.Request) -> list[Any]:
        try:
            return await _choices(words, api_of(request))
        except ApiError:
            return [gr.skip()] * len(filled)

    Context.root_block.load(start, None, filled, **_QUIET)


def _picture(words: Words) -> gr.Image:
    picture = gr.Image(
        label=words("extras.picture"), type="filepath", sources=["upload", "clipboard"], height=300,
        format="png", buttons=[], elem_id="extras-picture",
    )  # fmt: skip
    # The file as it came: Gradio's own would decode it, of any size. The server does, within its limits.
    picture.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return picture


def _settings(words: Words, made: dict[str, Any]) -> None:
    made["upscaler"] = gr.Dropdown(
        [("auto", "auto")], value="auto", label=words("extras.upscaler"), elem_id="extras-upscaler"
    )
    made["missing"] = gr.Markdown(elem_id="extras-missing")
    with gr.Row():
        made["upscaler_2"] = gr.Dropdown(
            [(words("extras.none"), "none")], value="none", label=words("extras.upscaler_2"), min_width=140,
            elem_id="extras-upscaler-2",
        )  # fmt: skip
        made["visibility"] = gr.Slider(
            0, 1, 0.5, step=0.05, label=words("extras.visibility"), min_width=140, elem_id="extras-visibility"
        )
    made["by"] = gr.Radio(
        [(words("extras.by_factor"), "factor"), (words("extras.by_size"), "size")], value="factor",
        label=words("extras.by"), elem_id="extras-by",
    )  # fmt: skip
    made["factor"] = gr.Slider(1, 8, 4, step=0.5, label=words("extras.factor"), elem_id="extras-factor")
    with gr.Row(visible=False) as sizes:
        for name in ("width", "height"):
            made[name] = gr.Number(
                1024, precision=0, minimum=16, maximum=16384, label=words(f"extras.{name}"), min_width=100,
                elem_id=f"extras-{name}",
            )  # fmt: skip
        made["crop"] = gr.Checkbox(True, label=words("extras.crop"), min_width=120, elem_id="extras-crop")
    levels: list[tuple[str, int]] = [(words("extras.noise_none"), -1), *((str(n), n) for n in range(4))]
    made["noise"] = gr.Radio(
        levels, value=-1, label=words("extras.noise"), visible=False, elem_id="extras-noise"
    )
    made["by"].change(
        lambda by: (gr.Slider(visible=by == "factor"), gr.Row(visible=by == "size")), [made["by"]],
        [made["factor"], sizes], **_QUIET,
    )  # fmt: skip
    made["upscaler"].change(
        lambda name: gr.Radio(visible=str(name).startswith("waifu2x")), [made["upscaler"]], [made["noise"]],
        **_QUIET,
    )  # fmt: skip


def _restoring(words: Words, made: dict[str, Any]) -> None:
    with gr.Accordion(words("extras.restore"), open=False, elem_id="extras-restore"):
        made["restore"] = gr.Checkbox(
            label=words("extras.restore_on"), info=words("extras.restore_info"), elem_id="extras-restore-on"
        )
        made["strength"] = gr.Slider(
            0.05, 1, 0.2, step=0.05, label=words("extras.strength"), elem_id="extras-strength"
        )
        made["prompt"] = gr.Textbox(label=words("extras.prompt"), lines=2, elem_id="extras-prompt")
        made["negative"] = gr.Textbox(label=words("extras.negative"), elem_id="extras-negative")
        with gr.Row():
            made["student"] = gr.Dropdown(
                [(words("extras.student_auto"), "")], value="", label=words("extras.student"), min_width=140,
                elem_id="extras-student",
            )  # fmt: skip
            made["steps"] = gr.Number(
                0, precision=0, minimum=0, maximum=150, label=words("extras.steps"), min_width=140,
                elem_id="extras-steps",
            )  # fmt: skip


async def _choices(words: Words, api: Api) -> list[Any]:
    """Upscalers and students that there are, and what is not installed."""
    found = await api.get("/api/v1/upscalers")
    there = [(one["name"], one["name"]) for one in found["upscalers"] if one["installed"]]
    missing = ", ".join(one["name"] for one in found["upscalers"] if not one["installed"])
    none = (words("extras.none"), "none")
    first = gr.Dropdown([(words("extras.auto", name=found["default"]), "auto"), *there, none], value="auto")
    models = (await api.get("/api/v1/models"))["models"]
    default = next((one["name"] for one in models if one["default"]), None)
    students = (await api.get(f"/api/v1/models/{default}"))["students"] if default else []
    who = [
        (words("extras.student_auto"), ""), (words("extras.student_model"), "none"),
        *((one["name"], one["name"]) for one in students),
    ]  # fmt: skip
    return [
        first, gr.Dropdown([none, *there], value="none"),
        words("extras.missing", names=missing) if missing else "", gr.Dropdown(who, value=""),
    ]  # fmt: skip


def order(
    words: Words, path: str | None, several: Sequence[str], parent: str | None, form: dict[str, Any]
) -> dict[str, Any]:
    """The body of an ``upscale`` job; reads the files.

    Args:
        words: of the page.
        path: the one picture.
        several: in its place.
        parent: its id in the history, where it is from there.
        form: values by name of the form's components.

    Raises:
        UsageError: there is no picture, or too many.
    """
    body: dict[str, Any] = {"kind": "upscale", "upscaler": form["upscaler"] or "auto"}
    if several:
        if len(several) > MOST:
            raise UsageError(words("extras.too_many", n=len(several)), field="files")
        body["files"] = _read(words, several)
    elif parent:
        body["images"] = [parent]
    elif path:
        body["image"] = _read(words, [path])[0]
    else:
        raise UsageError(words("extras.nothing"), field="image")
    if form["by"] == "size":
        body |= {"width": int(form["width"] or 0), "height": int(form["height"] or 0), "crop": form["crop"]}
    else:
        body["scale"] = float(form["factor"])
    if str(form["upscaler"]).startswith("waifu2x"):
        body["noise"] = int(form["noise"])
    if form["upscaler_2"] not in (None, "none"):
        body |= {"upscaler_2": form["upscaler_2"], "visibility": float(form["visibility"])}
    if form["restore"]:
        own = {
            "negative_prompt": form["negative"], "student": form["student"],
            "num_inference_steps": int(form["steps"] or 0),
        }  # fmt: skip
        anew = {"strength": float(form["strength"]), "prompt": form["prompt"] or ""}
        body["restore"] = anew | {name: value for name, value in own.items() if value}
    return body


def _read(words: Words, paths: Sequence[str]) -> list[str]:
    size = sum(Path(path).stat().st_size for path in paths)
    if size > MAX_BYTES:
        text = words("extras.too_large", size=-(-size >> 20), most=MAX_BYTES >> 20)
        raise UsageError(text, field="files")
    return [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]


async def _results(
    api: Api,
    results: list[dict[str, Any]],
    before: str | None,
    compare: gr.ImageSlider,
    gallery: gr.Gallery,
    archive: gr.DownloadButton,
) -> dict[Any, Any]:
    """What shows the pictures that were made: one beside what it was, several with an archive."""
    paths = await create_draw.pictures(api, [one["id"] for one in results])
    if len(paths) == 1:
        if before is None and results[0]["parent"]:
            before = next(iter(await create_draw.pictures(api, [results[0]["parent"]])), None)
        pair = await asyncio.to_thread(extras_results.pair, before, paths[0]) if before else None
        return {
            compare: gr.ImageSlider(pair, visible=True) if pair else gr.ImageSlider(visible=False),
            gallery: gr.Gallery(paths, visible=pair is None), archive: gr.DownloadButton(visible=False),
        }  # fmt: skip
    packed = await asyncio.to_thread(extras_results.packed, paths) if paths else None
    return {
        compare: gr.ImageSlider(visible=False), gallery: gr.Gallery(paths, visible=bool(paths)),
        archive: gr.DownloadButton(value=packed, visible=packed is not None),
    }  # fmt: skip


def _target(words: Words, picture: gr.Image, files: gr.File, parent: gr.State, origin: gr.Markdown) -> Target:
    async def take(sent: Sent, request: gr.Request) -> list[Any]:
        if not sent.image_id:  # of a file that somebody has
            name = "picture" + painted.suffix(sent.data)
            path = await asyncio.to_thread(
                processing_utils.save_bytes_to_cache, sent.data, name, picture.GRADIO_CACHE
            )
            return [path, None, None, ""]
        paths = await create_draw.pictures(api_of(request), [sent.image_id])
        return [next(iter(paths), None), None, sent.image_id, words("extras.of_history")]

    return Target("extras", [picture, files, parent, origin], take)


def _state(words: Words, job: dict[str, Any]) -> str:
    """HTML that says how far a job is."""
    text, share = _said(words, job)
    bar = ""
    if share is not None:
        bar = f'<progress max="1" value="{share:.3f}" aria-label="{markup.text(text)}"></progress>'
    inner = f"{bar}<span>{markup.text(text)}</span>"
    return f'<div class="create-state" data-state="{markup.text(job["state"])}" role="status">{inner}</div>'


def _said(words: Words, job: dict[str, Any]) -> tuple[str, float | None]:
    kind, progress = job["state"], job.get("progress")
    if kind == "queued":
        position = job.get("position")
        return words("extras.waiting", position=position) if position else words("extras.starting"), 0.0
    if kind == "running":
        if not progress or not progress["total"]:
            return words("extras.starting"), 0.0
        step, total = progress["step"], progress["total"]
        text = words("extras.running", step=step, total=total, seconds=f"{progress['seconds']:.0f}")
        return text, min(step / total, 1.0)
    if kind == "done":
        results = (job.get("result") or {}).get("images") or []
        seconds = f"{max(job['finished'] - job['started'], 0.0):.1f}"
        if len(results) == 1:
            sizes = {"wide": results[0]["width"], "tall": results[0]["height"]}
            return words("extras.done", seconds=seconds, **sizes), None
        return words("extras.done_many", n=len(results), seconds=seconds), None
    if kind == "failed":
        return words("extras.failed", why=job.get("error") or ""), None
    return words("extras.stopped" if kind == "cancelled" else "extras.cut_off"), None
