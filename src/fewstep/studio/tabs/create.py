"""Create: pictures from text and from pictures.

What other parts may use of it, in ``frame.shared``: ``create`` is the form, see `fewstep.studio.orders`;
``create.facts`` the gr.State with what the server knows of the chosen model, ``/api/v1/models/NAME``;
``create.chosen`` the one with the id of the picture that is looked at, ``create.drawn`` the one with the ids
of all that ``create.gallery`` shows; ``create.fill`` an async function of (values by name, request) whose
result is for ``create.filled``, a list of components.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import gradio as gr
from gradio.context import Context

from fewstep.errors import FewstepError
from fewstep.studio import dial, edit, live, orders, preferred, recalled, remedies
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame, Target
from fewstep.studio.orders import Form
from fewstep.studio.sending import Sent
from fewstep.studio.tabs import (
    create_actions,
    create_draw,
    create_form,
    create_gallery,
    create_styles,
    create_trouble,
)
from fewstep.studio.telling import told

_KEY: Final = "fewstep"
"""Of what the browser keeps of the form: no secret, and the same after a restart of the server."""
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_KEPT: Final = """(kept, ...values) => {
  if (!window.fewstepCreate) return kept;
  const found = {};
  %s.forEach((name, place) => {
    const value = values[place];
    found[name] = value && typeof value === 'object' && 'chosen' in value ? {chosen: value.chosen} : value;
  });
  return found;
}"""
_PASTED: Final = """() => {
  window.fewstepCreate = true;
  if (window.fewstepPaste) return;
  window.fewstepPaste = true;
  document.addEventListener('paste', event => {
    if (!event.target.closest || !event.target.closest('#prompt')) return;
    if (!/(^|\\n)Steps: *\\d/.test(event.clipboardData.getData('text'))) return;
    setTimeout(() => document.getElementById('create-pasted').click(), 100);
  });
}"""


def build(frame: Frame) -> None:
    """The tab."""
    words, shared = frame.words, frame.shared
    form = shared["create"] = Form()
    facts, chosen, drawn = gr.State(None), gr.State(None), gr.State([])
    shared |= {"create.facts": facts, "create.chosen": chosen, "create.drawn": drawn}
    job = gr.BrowserState(None, storage_key="fewstep-create-job", secret=_KEY)
    kept = gr.BrowserState(None, storage_key="fewstep-create-form", secret=_KEY)
    made: dict[str, Any] = {}
    with gr.Row(elem_id="create-top"):
        with gr.Column(scale=6, min_width=280):
            made["prompt"] = create_form.top(words)
            note = gr.HTML(visible=False, elem_id="create-note", padding=False)
        with gr.Column(scale=1, min_width=120):
            draw = gr.Button(words("create.draw"), variant="primary", elem_id="create-draw")
            stop = gr.Button(words("create.stop"), variant="stop", visible=False, elem_id="create-stop")
            pasted = gr.Button("", visible="hidden", elem_id="create-pasted")
    with gr.Row(elem_id="create-body"):
        with gr.Column(scale=6, min_width=300):
            live.build(frame)
            state = gr.HTML(elem_id="create-state", padding=False)
            remedy = shared["create.remedy"] = remedies.Button(words, "create")
            gallery = gr.Gallery(
                label=words("create.pictures"), elem_id="create-gallery", columns=4, object_fit="contain",
                interactive=False, height=None, buttons=["download", "fullscreen"], show_label=False,
            )  # fmt: skip
            shared["create.gallery"] = gallery
            actions = create_actions.row(frame)
        with gr.Column(scale=5, min_width=300):
            made |= create_form.common(words)
            with gr.Row():
                random = gr.Button(words("create.random"), size="sm", min_width=90, elem_id="create-random")
                same = gr.Button(words("create.keep"), size="sm", min_width=90, elem_id="create-keep")
            made |= create_form.further(words)
            with gr.Accordion(words("adapters.title"), open=False, elem_id="create-adapters-fold"):
                made["adapters"] = create_form.gallery(words)
                missing = gr.Button(words("adapters.draw"), size="sm", elem_id="create-adapters-draw")
            form.edit = edit.build(frame)
            with gr.Accordion(words("create.advanced"), open=False, elem_id="create-advanced"):
                contract = gr.Markdown(elem_id="create-contract")
                made |= create_form.advanced(words)
            copied = create_actions.copying(frame)
    form.components = {name: made[name] for name in orders.FIELDS}
    form.edit.follow(made["num_inference_steps"], made["model"])
    names = list(form.components)
    own = list(form.components.values())
    filled = [facts, contract, note, *own]
    shared["create.filled"] = filled

    async def fill(wanted: Mapping[str, Any], request: gr.Request) -> list[Any]:
        updates, model = await create_form.filled(words, api_of(request), wanted)
        values = {name: update.get("value") for name, update in updates.items() if name != "adapters"}
        text = create_form.told(words, model, values)
        said = create_form.replaced(words, wanted, model)
        return [model, text, gr.update(value=said, visible=bool(said)), *create_form.in_order(updates, names)]

    shared["create.fill"] = fill

    def buttons(going: bool) -> dict[Any, Any]:
        return {
            draw: gr.update(value=words("create.draw"), visible=not going),
            stop: gr.update(value=words("create.stop"), visible=going),
            **remedy.hidden(),
        }

    shared["create.buttons"] = buttons

    async def watched(api: Api, job_id: str) -> AsyncIterator[dict[Any, Any]]:
        async for now, ids, files in create_draw.follow(api, job_id):
            going = now["state"] in ("queued", "running")
            changes: dict[Any, Any] = {
                job: job_id, state: create_draw.state(words, now) + create_draw.warnings(now),
                **buttons(going), **create_trouble.ended(remedy, now),
            }  # fmt: skip
            if ids:
                changes |= {gallery: gr.Gallery(files, selected_index=None), drawn: ids, chosen: ids[0]}
            yield changes

    shown = [job, state, draw, stop, gallery, drawn, chosen, *remedy.outputs]
    shared["create.shown"], shared["create.watched"] = shown, watched

    async def order(request: gr.Request, *values: Any) -> AsyncIterator[dict[Any, Any]]:
        api = api_of(request)
        try:
            body = form.body(*await preferred.early(api, form, values))
            placed = await api.post("/api/v1/jobs", body)
            async for changes in watched(api, placed["id"]):
                yield changes
        except (ApiError, FewstepError) as error:
            yield await refused(api, error, "order", *values)

    async def refused(api: Api, error: ApiError | FewstepError, again: str, *values: Any) -> dict[Any, Any]:
        offer = await create_trouble.refused(remedy, api, error, form.values(*values), again)
        return {state: remedies.sentence(error), **buttons(False), **offer}

    shared["create.order"], shared["create.refused"] = order, refused
    ordered = gr.on([draw.click, made["prompt"].submit], order, form.inputs, shown, **_QUIET)
    ordered.then(None, None, None, js=remedies.SEEN % "create", api_visibility="private")

    @told
    async def cancel(job_id: str | None, request: gr.Request) -> None:
        if job_id:
            await api_of(request).post(f"/api/v1/jobs/{job_id}/cancel")

    stop.click(cancel, [job], None, **_QUIET)

    def choose(ids: list[str], event: gr.SelectData) -> str | None:
        return ids[event.index] if isinstance(event.index, int) and event.index < len(ids) else None

    gallery.select(choose, [drawn], [chosen], **_QUIET)
    random.click(None, None, [made["seed"]], js="() => -1", api_visibility="private")

    @told
    async def seed(image_id: str | None, request: gr.Request) -> Any:
        if not image_id:
            return gr.skip()
        return (await api_of(request).get(f"/api/v1/images/{image_id}"))["record"].get("seed")

    same.click(seed, [chosen], [made["seed"]], **_QUIET)
    _wire_dial(frame, made, contract)
    create_gallery.wire(frame, made["adapters"], missing)
    create_actions.wire(frame, actions, copied, ordered)
    create_trouble.wire(frame)
    create_styles.wire(frame, made["style"])

    @told
    async def paste(request: gr.Request, *values: Any) -> list[Any]:
        now = form.values(*values)
        wanted = recalled.of_text(str(now["prompt"] or ""))
        return [gr.skip()] * len(filled) if wanted is None else await fill(now | wanted, request)

    pasted.click(paste, own, filled, **_QUIET)

    async def take(sent: Sent, request: gr.Request) -> list[Any]:
        return await fill(recalled.of_record(sent.view["record"]), request)

    frame.targets["settings"] = Target("create", filled, take)
    assert Context.root_block is not None

    # At once, and without Python, which may answer when somebody types already.
    Context.root_block.load(
        None, [kept], [made["prompt"]], js="kept => (kept && kept.prompt) || ''", api_visibility="private"
    )
    rest = [one for one in filled if one is not made["prompt"]]

    async def start(saved: Any, request: gr.Request) -> list[Any]:
        try:
            wanted = saved if isinstance(saved, Mapping) else await preferred.form(api_of(request))
            found = await fill(wanted, request)
        except ApiError:
            return [gr.skip()] * len(rest)
        return [value for one, value in zip(filled, found, strict=True) if one is not made["prompt"]]

    started = Context.root_block.load(start, [kept], rest, **_QUIET)
    started.then(None, None, None, js=_PASTED, api_visibility="private")
    changes = [one.change for one in own]  # type: ignore[attr-defined]
    gr.on(
        changes, None, [kept, *own], [kept], js=_KEPT % names, trigger_mode="always_last",
        api_visibility="private",
    )  # fmt: skip

    async def again(job_id: str | None, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        """After a reload: the job that was going on, or its pictures."""
        if not job_id:
            # Of a generator that gives nothing Gradio empties every output: the button lost its name.
            yield {job: None}
            return
        try:
            async for changes in watched(api_of(request), job_id):
                yield changes
        except ApiError:
            yield {job: None}

    Context.root_block.load(again, [job], shown, **_QUIET)

    _wire_times(frame, made["quality"])


def _wire_dial(frame: Frame, made: Mapping[str, Any], contract: gr.Markdown) -> None:
    """The dial sets the raw settings, and shows which stop they are."""
    words, facts = frame.words, frame.shared["create.facts"]
    raw = [made[name] for name in ("student", "num_inference_steps", "solver", "guidance_scale")]

    def turned(name: str | None, model: dict[str, Any] | None) -> list[Any]:
        stop = next((one for one in dial.stops(model) if one.name == name), None) if model else None
        if model is None or stop is None:
            return [gr.skip()] * 6
        values = stop.values()
        greyed = create_form.negative(words, model, values)
        return [*values.values(), greyed, create_form.told(words, model, values)]

    made["quality"].input(
        turned, [made["quality"], facts], [*raw, made["negative_prompt"], contract], **_QUIET
    )

    def set_by_hand(model: dict[str, Any] | None, *given: Any) -> list[Any]:
        if model is None:
            return [gr.skip()] * 3
        values = dict(zip(("student", "num_inference_steps", "solver", "guidance_scale"), given, strict=True))
        stop = dial.matching(model, values)
        return [
            stop.name if stop else None, create_form.negative(words, model, values),
            create_form.told(words, model, values),
        ]  # fmt: skip

    gr.on(
        [one.input for one in raw], set_by_hand, [facts, *raw],
        [made["quality"], made["negative_prompt"], contract], **_QUIET,
    )  # fmt: skip
    form: Form = frame.shared["create"]

    @told
    async def other(request: gr.Request, *values: Any) -> list[Any]:
        now = {name: value for name, value in form.values(*values).items() if name not in orders.OF_MODEL}
        filled: list[Any] = await frame.shared["create.fill"](now, request)
        return filled

    made["model"].input(other, [*form.components.values()], frame.shared["create.filled"], **_QUIET)


def _wire_times(frame: Frame, quality: gr.Radio) -> None:
    """What each stop takes is measured once the model is known, while the page can be used."""
    words, facts, measured = frame.words, frame.shared["create.facts"], gr.State(0)

    async def measure(model: dict[str, Any] | None, request: gr.Request) -> AsyncIterator[int]:
        count = 0
        yield count
        if model:
            try:
                async for _ in dial.measure(api_of(request), model):
                    count += 1
                    yield count
            except ApiError:
                return  # what was measured so far is there, the rest comes next time

    facts.change(measure, [facts], [measured], **_QUIET)
    measured.change(lambda model: create_form.relabelled(words, model), [facts], [quality], **_QUIET)
