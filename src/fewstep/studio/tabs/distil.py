"""Distil: fewer steps for a model; the student becomes a stop of the quality dial, with a report card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gradio as gr

from fewstep.errors import UsageError
from fewstep.server.schemas.work import DistillBody
from fewstep.studio import forms
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.tabs import distil_card, runs, train_cards, train_pictures

METHODS: Final = ("flash", "lightning", "lcm", "dmd2", "progressive")
ANY_STEPS: Final = "lcm"
"""Its student draws in any number of steps."""
FURTHER: Final = ("minutes", "batch_size", "grids", "precision", "bundle_precision", "seed", "threads")
"""Fields of the order that are chosen seldom."""
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
            parts: list[distil_card.Parts] = []
            view = runs.build(
                frame, "distil", "distill", made=lambda: parts.append(distil_card.layout(words))
            )

    async def begin(
        dataset: str, table: Any, picture: str, caption: str, model: str | None, method: str, steps: str,
        name: str, images: float | None, dial: bool, request: gr.Request, *more: Any,
    ) -> list[Any]:  # fmt: skip
        api = api_of(request)
        try:
            chosen = {**dict(zip(FURTHER, more, strict=True)), "steps": "" if method == ANY_STEPS else steps}
            values = forms.given(words, "distil", DistillBody, chosen)
            body = order(values, dataset, model, method, name, images, dial=dial)
            await train_pictures.keep(api, dataset, train_cards.merged(table, picture, caption))
            job = await api.post("/api/v1/jobs", body)
            return await view.shown(api, job["id"])
        except (ApiError, UsageError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    inputs = [*pictures.inputs, model, method, steps, name, images, dial]
    start.click(begin, [*inputs, *further.values()], view.outputs, **_QUIET)
    method.change(lambda one: gr.update(visible=one != ANY_STEPS), [method], [steps], **_QUIET)
    distil_card.wire(frame, view, parts[0])
    train_pictures.wire_models(frame, none, model)


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
