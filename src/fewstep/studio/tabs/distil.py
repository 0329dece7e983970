"""Distil: fewer steps for a model; the student becomes a stop of the quality dial, with a report card."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import gradio as gr

from fewstep.errors import UsageError
from fewstep.server.schemas.work import DistillBody
from fewstep.studio import forms, report
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.tabs import runs, train_pictures

METHODS: Final = ("flash", "lightning", "lcm", "dmd2", "progressive")
ANY_STEPS: Final = "lcm"
"""Its student draws in any number of steps."""
FURTHER: Final = ("minutes", "batch_size", "grids", "precision", "bundle_precision", "seed", "threads")
"""Fields of the order that are chosen seldom."""
SEED: Final = 1
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            gr.Markdown(words("distil.about"))
            none = gr.HTML(elem_id="distil-none", padding=False)
            pictures = train_pictures.build(frame, "distil")
            model = gr.Dropdown([], label=words("distil.model"), elem_id="distil-model")
            method = gr.Radio(
                [(words(f"distil.{one}"), one) for one in METHODS], value="flash",
                label=words("distil.method"), elem_id="distil-method",
            )  # fmt: skip
            steps = forms.optional(words, "distil", DistillBody, ("steps",), tab="distil")["steps"]
            with gr.Row():
                name = gr.Textbox(
                    label=words("distil.name"), info=words("distil.name_info"), max_lines=1,
                    elem_id="distil-name", min_width=140,
                )  # fmt: skip
                images = gr.Number(
                    20_000, label=words("distil.images"), info=words("distil.images_info"), precision=0,
                    minimum=1, elem_id="distil-images", min_width=140,
                )  # fmt: skip
            dial = gr.Checkbox(
                True, label=words("distil.dial"), info=words("distil.dial_info"), elem_id="distil-dial"
            )
            with gr.Accordion(words("distil.further"), open=False, elem_id="distil-further"):
                further = forms.optional(words, "distil", DistillBody, FURTHER, tab="distil")
            start = gr.Button(words("distil.start"), variant="primary", elem_id="distil-start")
        with gr.Column(scale=6, min_width=300):
            gr.Markdown(f"### {words('runs.title')}")
            view = runs.build(frame, "distil", "distill")
            card = gr.HTML(elem_id="distil-card", padding=False, apply_default_css=False)
            with gr.Row(visible=False) as done:
                use = gr.Button(words("distil.use"), variant="primary", elem_id="distil-use")
                compare = gr.Button(words("distil.compare"), elem_id="distil-compare")

    async def begin(
        dataset: str, table: Any, model: str | None, method: str, steps: str, name: str, images: float | None,
        dial: bool, request: gr.Request, *more: Any,
    ) -> list[Any]:  # fmt: skip
        api = api_of(request)
        try:
            chosen = {**dict(zip(FURTHER, more, strict=True)), "steps": "" if method == ANY_STEPS else steps}
            values = forms.given(words, "distil", DistillBody, chosen)
            body = order(values, dataset, model, method, name, images, dial=dial)
            await train_pictures.keep(api, dataset, table)
            job = await api.post("/api/v1/jobs", body)
            return await view.shown(api, job["id"])
        except (ApiError, UsageError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def reported(job: Mapping[str, Any] | None, request: gr.Request) -> list[Any]:
        if job is None or not job["result"].get("model"):
            return ["", gr.update(visible=False)]
        try:
            found, _ = await _rows(api_of(request), job)
        except ApiError as error:  # a model that was removed since
            return [f'<p role="status">{text(error)}</p>', gr.update(visible=False)]
        return [report.card(words, found), gr.update(visible=True)]

    async def compared(job: Mapping[str, Any] | None, request: gr.Request) -> AsyncIterator[Any]:
        if job is None:
            raise gr.Error(words("distil.not_done"), print_exception=False)
        api = api_of(request)
        try:
            found, prompt = await _rows(api, job)
            for place, row in enumerate(found):
                told = words("distil.comparing", done=place, all=len(found))
                yield report.card(words, found) + f'<p role="status">{text(told)}</p>'
                # Twice: the first one loads networks, which is no part of what a picture takes.
                await _draw(api, row.body(prompt, SEED) | {"save": False})
                found[place] = row.drawn(await _draw(api, row.body(prompt, SEED)))
            yield report.card(words, found)
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def use_it(job: Mapping[str, Any] | None, request: gr.Request) -> list[Any]:
        if job is None:
            raise gr.Error(words("distil.not_done"), print_exception=False)
        try:
            found, prompt = await _rows(api_of(request), job)
            first = found[0]
            wanted = {
                "prompt": prompt, "model": first.model, "student": first.student,
                "num_inference_steps": first.steps,
            }  # fmt: skip
            made = await api_of(request).get(f"/api/v1/models/{first.model}")
            wanted |= _stop(made, first)
            return [gr.Tabs(selected="create"), *await frame.shared["create.fill"](wanted, request)]
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    inputs = [pictures.dataset, pictures.captions, model, method, steps, name, images, dial]
    start.click(begin, [*inputs, *further.values()], view.outputs, **_QUIET)
    method.change(lambda one: gr.update(visible=one != ANY_STEPS), [method], [steps], **_QUIET)
    view.finished.change(reported, [view.finished], [card, done], **_QUIET)
    compare.click(compared, [view.finished], [card], **_QUIET)
    assert frame.tab is not None and frame.tabs is not None
    train_pictures.wire_models(frame, none, model)
    if filled := frame.shared.get("create.filled"):
        use.click(use_it, [view.finished], [frame.tabs, *filled], **_QUIET)


def order(
    values: Mapping[str, Any], dataset: str, model: str | None, method: str, name: str, images: float | None,
    *, dial: bool,
) -> dict[str, Any]:  # fmt: skip
    """The order of a distillation.

    Args:
        values: fields that were chosen further; minutes go before images.
        dataset: by name.
        model: the teacher.
        method: one of `METHODS`.
        name: of the student; made from the method where it is empty.
        images: of all stages.
        dial: also make a bundle that has the student among the teacher's.
    """
    student = train_pictures.product_name(name) or f"{method}-{train_pictures.product_name(dataset or 'x')}"
    body = {
        "kind": "distill", "method": method, "dataset": dataset, "model": model, "name": student, **values,
    }  # fmt: skip
    if images and not values.get("minutes"):
        body["images"] = int(images)
    if not dial:
        body.pop("bundle_precision", None)
    else:
        body["bundle"] = train_pictures.product_name(f"{model or 'model'}-{student}")
    return body


async def _rows(api: Api, job: Mapping[str, Any]) -> tuple[list[report.Row], str]:
    """The report's rows, and the prompt that both draw."""
    path, result = f"/api/v1/jobs/{job['id']}", job["result"]
    ordered = (await api.get(f"{path}/order"))["order"]
    measured = report.distances((await api.get(f"{path}/curves"))["stages"])
    made = await api.get(f"/api/v1/models/{result.get('bundle') or result['model']}")
    teacher = await api.get(f"/api/v1/models/{ordered['model']}") if ordered["model"] else made
    prompt = ""
    if ordered["dataset"]:
        pictures = (await api.get(f"/api/v1/datasets/{ordered['dataset']}"))["pictures"]
        prompt = next((one["caption"] for one in pictures if one["caption"].strip()), "")
    return report.rows(made, result["model"], measured, teacher), prompt or "a red apple"


async def _draw(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = await api.post("/api/v1/jobs", body)
    async for now in api.watch(job["id"]):
        job = now
    if job["state"] != "done":
        raise ApiError(job.get("error") or job["state"])
    return job


def _stop(model: Mapping[str, Any], row: report.Row) -> dict[str, Any]:
    """Values of Create's form for the stop of the dial that a row is."""
    from fewstep.studio import dial

    found = next(
        (stop for stop in dial.stops(model) if (stop.student, stop.steps) == (row.student, row.steps)), None
    )
    return {} if found is None else found.values()
