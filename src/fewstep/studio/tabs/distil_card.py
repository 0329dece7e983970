"""The report card on Distil: what a run that is done made, drawn beside its teacher, measured, and used.

Everything on it is the server's: the job and its curves, pictures of the history, evaluations as jobs. So it
is the same after a reload, and in a second window.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.studio import dial, evaluations, report
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.tabs.runs import EVERY, Runs
from fewstep.studio.telling import told
from fewstep.studio.words import Words

SEED: Final = 1
PROMPT: Final = "a red apple"
"""Of a run without captions."""
_PICTURES: Final = 200
_SEARCHED: Final = 8
"""Words of a prompt that its pictures are searched by: a search has a bound."""
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(slots=True)
class Parts:
    """The components."""

    card: gr.HTML
    used: gr.Row
    use: gr.Button
    compare: gr.Button
    measured: gr.Row
    steps: gr.Dropdown
    prompts: gr.Number
    evaluate: gr.Button
    said: gr.HTML
    timer: gr.Timer
    going: gr.State
    """Evaluations, while one of them is being done."""

    @property
    def outputs(self) -> list[Any]:
        """What `_shown` returns values for."""
        return [
            self.used, self.measured, self.steps, self.card, self.evaluate, self.said, self.timer, self.going
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Card:
    """What the card shows.

    Args:
        about: see `fewstep.studio.report.facts`.
        rows: ways to draw; none where the models are gone.
        prompt: that all of them draw.
        sample: address of the last sample grid.
        evaluated: of the rows, those that were or are being measured.
        model: that has the student, as ``/api/v1/models/NAME`` describes it.
    """

    about: list[tuple[str, object]]
    rows: list[report.Row]
    prompt: str
    sample: str | None
    evaluated: list[evaluations.Evaluated]
    model: Mapping[str, Any] | None

    def html(self, words: Words) -> str:
        """The card."""
        gone = "" if self.model else f'<p role="status">{text(words("distil.gone"))}</p>'
        figures = evaluations.table(words, self.evaluated)
        made = report.card(words, self.rows, about=self.about, sample=self.sample, evaluated=figures)
        return made + gone


def layout(words: Words) -> Parts:
    """The components; call it where they are to stand."""
    card = gr.HTML(elem_id="distil-card", padding=False, apply_default_css=False)
    with gr.Row(visible=False) as used:
        use = gr.Button(words("distil.use"), variant="primary", elem_id="distil-use")
        compare = gr.Button(words("distil.compare"), elem_id="distil-compare")
    with gr.Row(visible=False, elem_classes=["measured"]) as measured:
        steps = gr.Dropdown(
            [], label=words("distil.evaluate_steps"), elem_id="distil-evaluate-steps", min_width=110
        )
        prompts = gr.Number(
            evaluations.PROMPTS, label=words("distil.evaluate_prompts"), precision=0, minimum=8, maximum=4096,
            elem_id="distil-evaluate-prompts", min_width=110,
        )  # fmt: skip
        evaluate = gr.Button(words("distil.evaluate"), elem_id="distil-evaluate", min_width=110)
    said = gr.HTML(elem_id="distil-evaluating", padding=False)
    timer = gr.Timer(EVERY, active=False)
    return Parts(
        card, used, use, compare, measured, steps, prompts, evaluate, said, timer, going=gr.State([])
    )


def wire(frame: Frame, view: Runs, parts: Parts) -> None:
    """Connect the components with the run that is looked at."""
    words = frame.words

    async def opened(job: Mapping[str, Any] | None, request: gr.Request) -> list[Any]:
        try:
            return await _shown(words, api_of(request), job)
        except ApiError as error:
            return _nothing(f'<p role="status">{text(error)}</p>')

    async def again(
        job: Mapping[str, Any] | None, before: list[evaluations.Evaluated], request: gr.Request
    ) -> list[Any]:
        api, same = api_of(request), [gr.skip()] * len(parts.outputs)
        try:
            if (now := await evaluations.looked(api, before)) is not None:
                return [*same[:5], evaluations.told(words, now), *same[6:]]
            return [*same[:3], *(await _shown(words, api, job))[3:]]
        except ApiError:  # the server is away for a moment: the next look tells
            return same

    @told
    async def compared(job: Mapping[str, Any] | None, request: gr.Request) -> AsyncIterator[Any]:
        api = api_of(request)
        card = await gathered(words, api, _there(words, job))
        for place, row in enumerate(card.rows):
            said = words("distil.comparing", done=place, all=len(card.rows))
            yield card.html(words) + f'<p role="status">{text(said)}</p>'
            # Twice: the first one loads networks, which is no part of what a picture takes.
            await _draw(api, row.body(card.prompt, SEED) | {"save": False})
            card.rows[place] = row.drawn(await _draw(api, row.body(card.prompt, SEED)))
        yield card.html(words)

    @told
    async def evaluated(
        job: Mapping[str, Any] | None, steps: int | None, prompts: float | None, request: gr.Request
    ) -> list[Any]:
        api = api_of(request)
        card = await gathered(words, api, _there(words, job))
        for row in measured(card, steps):
            await api.post("/api/v1/jobs", evaluations.body(row, int(prompts or evaluations.PROMPTS)))
        return [gr.skip(), gr.skip(), gr.skip(), *(await _shown(words, api, job))[3:]]

    @told
    async def use_it(job: Mapping[str, Any] | None, request: gr.Request) -> list[Any]:
        card = await gathered(words, api_of(request), _there(words, job))
        row = report.usual(card.rows)
        if row is None or card.model is None:
            raise ApiError(words("distil.gone"))
        wanted = {"model": row.model, "student": row.student, "num_inference_steps": row.steps}
        wanted |= {"prompt": card.prompt, **_stop(card.model, row)}
        return [gr.Tabs(selected="create"), *await frame.shared["create.fill"](wanted, request)]

    finished = view.finished
    finished.change(opened, [finished], parts.outputs, **_QUIET)
    parts.timer.tick(again, [finished, parts.going], parts.outputs, trigger_mode="once", **_QUIET)
    parts.compare.click(compared, [finished], [parts.card], **_QUIET)
    inputs = [finished, parts.steps, parts.prompts]
    parts.evaluate.click(evaluated, inputs, parts.outputs, **_QUIET)
    if filled := frame.shared.get("create.filled"):
        assert frame.tabs is not None
        parts.use.click(use_it, [finished], [frame.tabs, *filled], **_QUIET)


async def gathered(words: Words, api: Api, job: Mapping[str, Any]) -> Card:
    """Everything that the card of a job shows.

    Args:
        words: texts.
        api: of the visitor.
        job: that is done.

    Raises:
        ApiError: the server does not answer. Models and datasets that are gone since are left out.
    """
    path, result = f"/api/v1/jobs/{job['id']}", job["result"]
    order = (await api.get(f"{path}/order"))["order"]
    stages = (await api.get(f"{path}/curves"))["stages"]
    samples = (await api.get(f"{path}/samples"))["samples"]
    dataset = await _or_gone(api, "datasets", order.get("dataset"))
    pictures = None if dataset is None else dataset["pictures"]
    captions = (one["caption"] for one in pictures or () if one["caption"].strip())
    prompt = next(captions, PROMPT)
    model = await _or_gone(api, "models", result.get("bundle") or result.get("model"))
    teacher = model  # of a bundle: what it draws by itself, on the same engine as its students
    if model is not None and not result.get("bundle"):
        teacher = await _or_gone(api, "models", order.get("model")) or model
    found: list[report.Row] = []
    if model is not None and teacher is not None:
        found = report.rows(model, result["model"], report.distances(stages), teacher)
    found = await _drawn(api, found, prompt, job.get("finished") or 0.0)
    return Card(
        about=report.facts(words, job, order, stages, None if pictures is None else len(pictures)),
        rows=found,
        prompt=prompt,
        sample=f"{path}/samples/{samples[-1]}" if samples else None,
        evaluated=await evaluations.found(api, found) if found else [],
        model=model,
    )


def measured(card: Card, steps: int | None) -> list[report.Row]:
    """The rows that an evaluation is for: the student's, and the teacher's where that was never measured."""
    wanted = next((row for row in card.rows if row.taught and row.steps == steps), report.usual(card.rows))
    known = {one.row for one in card.evaluated if one.going or one.report is not None}
    found = [] if wanted is None else [wanted]
    return found + [row for row in card.rows if not row.taught and row not in known]


async def _shown(words: Words, api: Api, job: Mapping[str, Any] | None) -> list[Any]:
    """Values for `Parts.outputs`."""
    if job is None:
        return _nothing("")
    card = await gathered(words, api, job)
    counts, chosen = [row.steps for row in card.rows if row.taught], report.usual(card.rows)
    going = any(one.going for one in card.evaluated)
    there = gr.update(visible=bool(counts))
    return [
        there, there, gr.update(choices=counts, value=chosen and chosen.steps), card.html(words),
        gr.update(interactive=not going), evaluations.told(words, card.evaluated), gr.update(active=going),
        card.evaluated if going else [],
    ]  # fmt: skip


def _nothing(said: str) -> list[Any]:
    """Values for `Parts.outputs` where there is no card."""
    off = gr.update(visible=False)
    return [off, off, gr.skip(), said, gr.skip(), "", gr.update(active=False), []]


async def _drawn(api: Api, rows: list[report.Row], prompt: str, since: float) -> list[report.Row]:
    """The rows with the pictures that *Compare* has drawn of them, as the history has them."""
    text = " ".join(prompt.split()[:_SEARCHED])
    pictures: dict[str, list[Mapping[str, Any]]] = {}
    for name in dict.fromkeys(row.model for row in rows):
        found = await api.get("/api/v1/images", model=name, text=text, since=since, limit=_PICTURES)
        pictures[name] = found["images"]
    return [row.among(pictures[row.model], prompt, SEED) for row in rows]


async def _or_gone(api: Api, what: str, name: str | None) -> Any:
    """A model or dataset; None where it is gone, or none was named."""
    if not name:
        return None
    try:
        return await api.get(f"/api/v1/{what}/{quote(name, safe='')}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise


async def _draw(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    job: dict[str, Any] = await api.post("/api/v1/jobs", body)
    async for now in api.watch(job["id"]):
        job = now
    if job["state"] != "done":
        raise ApiError(job.get("error") or job["state"])
    return job


def _there(words: Words, job: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if job is None:
        raise ApiError(words("distil.not_done"))
    return job


def _stop(model: Mapping[str, Any], row: report.Row) -> dict[str, Any]:
    """Values of Create's form for the stop of the dial that a row is."""
    found = (stop for stop in dial.stops(model) if (stop.student, stop.steps) == (row.student, row.steps))
    stop = next(found, None)
    return {} if stop is None else stop.values()
