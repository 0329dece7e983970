"""Train: adapters, embeddings, fine-tuned models, from pictures that are dropped here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gradio as gr

from fewstep.errors import UsageError
from fewstep.server.schemas.work import TrainBody
from fewstep.studio import forms
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.tabs import runs, train_cards, train_pictures

WHAT: Final = ("lora", "embedding", "dreambooth")
FURTHER: Final = ("minutes", "rank", "learning_rate", "batch_size", "grids", "seed", "precision", "threads")
"""Fields of the order that are chosen seldom."""
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            none = gr.HTML(elem_id="train-none", padding=False)
            with gr.Group():
                trigger = gr.Textbox(
                    label=words("train.trigger"), info=words("train.trigger_info"), max_lines=1,
                    elem_id="train-trigger",
                )  # fmt: skip
            pictures = train_pictures.build(frame, "train", trigger=trigger)
            what = gr.Radio(
                [(words(f"train.{one}"), one) for one in WHAT], value="lora", label=words("train.what"),
                elem_id="train-what",
            )  # fmt: skip
            with gr.Row():
                name = gr.Textbox(
                    label=words("train.name"), info=words("train.name_info"), max_lines=1,
                    elem_id="train-name", min_width=140,
                )  # fmt: skip
                model = gr.Dropdown([], label=words("train.model"), elem_id="train-model", min_width=140)
                student = gr.Dropdown(
                    [(words("train.no_student"), "")], value="", label=words("train.student"),
                    elem_id="train-student", min_width=140,
                )  # fmt: skip
            images = gr.Number(
                2000, label=words("train.images"), info=words("train.images_info"), precision=0, minimum=1,
                elem_id="train-images",
            )  # fmt: skip
            with gr.Accordion(words("train.further"), open=False, elem_id="train-further"):
                further = forms.optional(words, "train", TrainBody, FURTHER, tab="train")
            start = gr.Button(words("train.start"), variant="primary", elem_id="train-start")
        with gr.Column(scale=6, min_width=300):
            gr.Markdown(f"### {words('runs.title')}")
            view = runs.build(frame, "train", "train")
            with gr.Row(visible=False) as used:
                use = gr.Button(words("train.use"), variant="primary", elem_id="train-use")

    async def begin(
        dataset: str, table: Any, picture: str, caption: str, what: str, name: str, trigger: str,
        model: str | None, student: str | None, images: float | None, request: gr.Request, *more: Any,
    ) -> list[Any]:  # fmt: skip
        api = api_of(request)
        try:
            body = {
                "kind": "train", "what": what, "dataset": dataset, "model": model,
                "name": train_pictures.product_name(name or trigger or dataset or ""),
                **forms.given(words, "train", TrainBody, dict(zip(FURTHER, more, strict=True))),
            }  # fmt: skip
            if images:
                body["images"] = int(images)
            if (trigger or "").strip():
                body["trigger"] = trigger.strip()
            if student:
                body["student"] = student
            await train_pictures.keep(api, dataset, train_cards.merged(table, picture, caption))
            job = await api.post("/api/v1/jobs", body)
            return await view.shown(api, job["id"])
        except (ApiError, UsageError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    async def students(model: str | None, request: gr.Request) -> Any:
        found = []
        if model:
            try:
                found = [
                    one["name"] for one in (await api_of(request).get(f"/api/v1/models/{model}"))["students"]
                ]
            except ApiError:
                found = []  # one that cannot be opened is told of when it is started
        return gr.update(choices=[(words("train.no_student"), ""), *found], value="")

    async def use_it(job: Mapping[str, Any] | None, request: gr.Request) -> list[Any]:
        if job is None:
            raise gr.Error(words("train.not_done"), print_exception=False)
        api = api_of(request)
        try:
            order = (await api.get(f"/api/v1/jobs/{job['id']}/order"))["order"]
            wanted = wish(
                job["result"], order, (await api.get(f"/api/v1/datasets/{order['dataset']}"))["pictures"]
            )
            return [gr.Tabs(selected="create"), *await frame.shared["create.fill"](wanted, request)]
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    inputs = [*pictures.inputs, what, name, trigger, model, student, images]
    start.click(begin, [*inputs, *further.values()], view.outputs, **_QUIET)
    model.change(students, [model], [student], **_QUIET)
    view.finished.change(lambda job: gr.update(visible=job is not None), [view.finished], [used], **_QUIET)
    assert frame.tab is not None and frame.tabs is not None
    train_pictures.wire_models(frame, none, model)
    if filled := frame.shared.get("create.filled"):
        use.click(use_it, [view.finished], [frame.tabs, *filled], **_QUIET)


def wish(
    result: Mapping[str, Any], order: Mapping[str, Any], pictures: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """What stands in Create's form so that it draws with what was made.

    Args:
        result: of the job.
        order: of the job.
        pictures: of its dataset: the first caption is the prompt, with the word that calls what was learnt.
    """
    word = result.get("embedding") or order.get("trigger") or ""
    captions = [one["caption"].strip() for one in pictures if one["caption"].strip()]
    prompt = (
        train_pictures.with_word(captions[0] if captions else "", word) if word else (captions or [""])[0]
    )
    wanted: dict[str, Any] = {"prompt": prompt}
    if lora := result.get("lora"):
        wanted["adapters"] = [{"name": lora, "weight": 1.0}]
    if order.get("what") == "dreambooth":
        wanted["model"] = result.get("model")
    elif order.get("model"):
        wanted["model"] = order["model"]
    if order.get("student"):
        wanted["student"] = order["student"]
    return wanted
