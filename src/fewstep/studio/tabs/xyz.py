"""X/Y/Z plot: pictures over two or three settings, drawn by ordinary jobs, joined into one picture."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final

import gradio as gr

from fewstep.errors import FewstepError, UsageError
from fewstep.studio import dial, remedies, xyz
from fewstep.studio.client import ENDED, Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.orders import Form
from fewstep.studio.telling import told
from fewstep.studio.words import Words

LETTERS: Final = "XYZ"
FLYING: Final = 3
"""Cells that are ordered at a time: others want to draw as well."""
LARGEST: Final = 1 << 20
"""Characters of a plot that the browser keeps, so that it can go on after a reload."""
_SEEDS: Final = 2**32
_AGAIN: Final = ("cut_off", "cancelled", "expired")
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_CSS: Final = resources.files("fewstep.studio").joinpath("assets", "xyz.css").read_text("utf-8")
_STYLE: Final = f"<style>{_CSS}</style>"


@dataclass(slots=True)
class Plot:
    """A plot while it is drawn: what the browser keeps, and what came of each cell."""

    id: str
    base: dict[str, Any]
    axes: list[xyz.Axis]
    ids: dict[tuple[int, int, int], str] = field(default_factory=dict)
    failed: dict[tuple[int, int, int], str] = field(default_factory=dict)
    refused: ApiError | None = None
    """Why the last cell that was not taken was not."""

    def kept(self) -> str | None:
        """As text that `again` reads; None where it is too long."""
        axes = [[axis.name, list(axis.values)] for axis in self.axes]
        made = json.dumps({"id": self.id, "base": self.base, "axes": axes}, ensure_ascii=False)
        return made if len(made) <= LARGEST else None


def again(kept: str) -> Plot:
    """The plot that a browser kept; UsageError where it is none."""
    try:
        values = json.loads(kept)
        axes = [xyz.Axis(str(name), tuple(found)) for name, found in values["axes"] if name in xyz.AXES]
        return Plot(str(values["id"]), dict(values["base"]), axes)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("what the browser kept is no plot: draw it anew") from error


def build(frame: Frame) -> None:
    """The tab."""
    words, form = frame.words, frame.shared.get("create")
    if not isinstance(form, Form):
        return  # without Create there is nothing that an axis could change
    gr.Markdown(words("xyz.about"))
    prompt = gr.Textbox(
        label=words("xyz.prompt"), placeholder=words("xyz.prompt_info"), lines=1, elem_id="xyz-prompt"
    )
    choices = [(words("xyz.none"), ""), *((words(f"xyz.axis_{name}"), name) for name in xyz.AXES)]
    names: list[gr.Dropdown] = []
    values: list[gr.Textbox] = []
    for letter, usual in zip(LETTERS, ("seed", "", ""), strict=True):
        with gr.Row():
            names.append(
                gr.Dropdown(
                    choices, value=usual, label=words("xyz.axis", letter=letter), min_width=160, scale=1,
                    elem_id=f"xyz-{letter.lower()}",
                )
            )  # fmt: skip
            values.append(
                gr.Textbox(
                    "1-4" if usual == "seed" else "", label=words("xyz.values", letter=letter), min_width=200,
                    scale=3, lines=1, elem_id=f"xyz-{letter.lower()}-values",
                )
            )  # fmt: skip
    gr.Markdown(words("xyz.grammar"))
    said = gr.HTML(elem_id="xyz-state", padding=False)
    remedy = remedies.Button(words, "xyz")
    with gr.Row():
        draw = gr.Button(words("xyz.draw"), variant="primary", elem_id="xyz-draw")
        stop = gr.Button(words("xyz.stop"), variant="stop", elem_id="xyz-stop")
        resume = gr.Button(words("xyz.resume"), visible=False, elem_id="xyz-resume")
    plot = gr.HTML(elem_id="xyz-plot", padding=False, apply_default_css=False)
    kept = gr.BrowserState(None, storage_key="fewstep-xyz-plot", secret="fewstep")  # noqa: S106 - none of it is
    axes_of = [*names, *values]
    shown = [said, plot, kept, resume]
    outputs = [*shown, *remedy.outputs]

    def axes(given: Sequence[Any]) -> list[xyz.Axis]:
        pairs = zip(given[:3], given[3:6], strict=True)
        return [xyz.parse(name, written or "") for name, written in pairs if name]

    def planned(given: Sequence[Any]) -> Plot:
        base = form.body(*given[7:])
        if own := str(given[6] or "").strip():
            base["prompt"] = own
        base.setdefault("seed", secrets.randbelow(_SEEDS))  # or every cell would be another picture
        return Plot(secrets.token_hex(8), base, axes(given))

    async def estimated(request: gr.Request, *given: Any) -> str:
        api = api_of(request)
        try:
            made = planned(given)
            facts = await _facts(api, made)
            cells = xyz.cells(made.base, made.axes, lambda name: _stops(facts[name]))
            return estimate(words, cells, facts)
        except (ApiError, UsageError) as error:
            return f'<p role="status">{text(error)}</p>'

    async def followed(
        api: Api, plan: Callable[[], Plot], values: Mapping[str, Any], way: str
    ) -> AsyncIterator[dict[Any, Any]]:
        """Draw a plot; what is refused is said in place, with what helps and then does `way` again."""
        yield remedy.hidden()
        made: Plot | None = None
        try:
            made = plan()
            async for now in drawn(words, api, made):
                yield dict(zip(shown, now, strict=True))
            if made.ids or made.refused is None:
                return
            error: ApiError | FewstepError = made.refused
        except (ApiError, FewstepError) as refusal:
            yield {said: remedies.sentence(refusal)}
            error, way = refusal, "resume" if made is not None and made.ids else way
        found = await helps(api, error, values, [] if made is None else made.axes)
        yield remedy.shown(found, again=way)

    async def begin(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        values = form.values(*given[7:])
        async for now in followed(api_of(request), lambda: planned(given), values, "draw"):
            yield now

    async def go_on(text_of_plot: str | None, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        async for now in followed(api_of(request), lambda: again(text_of_plot or ""), {}, "resume"):
            yield now

    async def change(request: gr.Request, found: dict[str, Any] | None, *values: Any) -> list[Any]:
        if not found or not found["changes"]:
            return [gr.skip()] * len(filled)
        return list(await frame.shared["create.fill"](form.values(*values) | found["changes"], request))

    async def once_more(
        request: gr.Request, found: dict[str, Any] | None, text_of_plot: str | None, *given: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        if not found:
            yield remedy.hidden()
        elif found["again"] == "resume":
            async for now in go_on(text_of_plot, request):
                yield now
        else:
            async for now in begin(request, *given):
                yield now

    inputs = [*axes_of, prompt, *form.inputs]
    started = draw.click(begin, inputs, outputs, **_QUIET)
    resumed = resume.click(go_on, [kept], outputs, **_QUIET)
    filled = frame.shared["create.filled"]
    changed = remedy.button.click(told(change), [remedy.kept, *form.components.values()], filled, **_QUIET)
    repeated = changed.success(once_more, [remedy.kept, kept, *inputs], outputs, **_QUIET)
    offered = gr.update(value=words("xyz.resume"), visible=True)
    stop.click(lambda: offered, None, [resume], cancels=[started, resumed, repeated], **_QUIET)
    gr.on(
        [*(one.change for one in names), *(one.change for one in values)],
        estimated,
        inputs,
        [said],
        trigger_mode="always_last",
        **_QUIET,
    )
    assert frame.tab is not None
    frame.tab.select(
        lambda one: gr.update(value=words("xyz.resume"), visible=bool(one)), [kept], [resume], **_QUIET
    )


async def helps(
    api: Api, error: ApiError | FewstepError, values: Mapping[str, Any], axes: Sequence[xyz.Axis]
) -> remedies.Remedy | None:
    """What helps against a refusal of a plot; nothing where an axis, and not the form, is to blame."""
    blamed = {"size": ("width", "height")}
    if error.field and any(error.field in (one.name, *blamed.get(one.name, ())) for one in axes):
        return None
    model, usual = await remedies.known(api, values.get("model")) if error.field else (None, "")
    return remedies.find(error, values, model, usual, of=None if values else {})


async def drawn(words: Words, api: Api, plot: Plot) -> AsyncIterator[list[Any]]:
    """Draw a plot; yields values of state, plot, what the browser keeps and the button to go on.

    Raises:
        UsageError: it cannot be.
        ApiError: the server does not answer.
    """
    facts = await _facts(api, plot)
    waiting = xyz.cells(plot.base, plot.axes, lambda name: _stops(facts[name]))
    total, began = len(waiting), time.monotonic()
    hide = gr.update(value=words("xyz.resume"), visible=False)
    yield [_said(words("xyz.starts", all=total)), table(words, plot), plot.kept(), hide]
    flying: dict[str, xyz.Cell] = {}
    try:
        while waiting or flying:
            changed = False
            while waiting and len(flying) < FLYING:
                cell = waiting.pop(0)
                try:
                    flying[(await _ordered(api, plot, cell))["id"]] = cell
                except ApiError as error:
                    if error.status == 429 or error.status == 503:  # others were first: later
                        waiting.insert(0, cell)
                        break
                    plot.failed[cell.x, cell.y, cell.z], plot.refused = str(error), error
                    changed = True
            await asyncio.sleep(0.1 if flying else 0.5)
            for job_id in list(flying):
                job = await api.get(f"/api/v1/jobs/{job_id}")
                if job["state"] in ENDED:
                    _ended(plot, flying.pop(job_id), job)
                    changed = True
            if changed:
                done = len(plot.ids) + len(plot.failed)
                left = (time.monotonic() - began) / max(done, 1) * (total - done)
                going = words("xyz.going", done=done, all=total, time=_time(words, left))
                yield [_said(going), table(words, plot), gr.skip(), hide]
    finally:
        for job_id in flying:  # the page was left, or somebody pressed stop
            with contextlib.suppress(ApiError):
                await api.post(f"/api/v1/jobs/{job_id}/cancel")
    trouble = ""
    if plot.failed:
        why = next(iter(plot.failed.values()))
        trouble = _said(words("xyz.failed", n=len(plot.failed), why=why))
    if not plot.ids:
        yield [trouble, table(words, plot), None, hide]
        return
    yield [_said(words("xyz.joining")), gr.skip(), gr.skip(), hide]
    body = {"axes": labelled(words, plot.axes), "cells": xyz.table(plot.ids, plot.axes)}
    whole = await api.post("/api/v1/images/grid", body)
    took = _time(words, time.monotonic() - began)
    said = _said(words("xyz.done", n=len(plot.ids), time=took)) + trouble
    yield [said, joined(words, whole) + table(words, plot), None, hide]


def labelled(words: Words, axes: Sequence[xyz.Axis]) -> list[dict[str, Any]]:
    """The axes as ``/api/v1/images/grid`` takes them: with their names for people."""
    return [
        {
            "name": words(f"xyz.axis_{axis.name}")[:64],
            "values": [xyz.label(axis.name, value)[:500] for value in axis.values],
        }
        for axis in axes
    ]


def estimate(words: Words, cells: Sequence[xyz.Cell], facts: Mapping[str | None, Mapping[str, Any]]) -> str:
    """HTML: how many pictures, and how long where every stop was measured on this machine."""
    seconds = 0.0
    for cell in cells:
        model = facts[cell.body.get("model")]
        stop = dial.matching(model, _filled(model, cell.body))
        took = None if stop is None else dial.times(model["hash"]).get(stop.name)
        if took is None:
            return _said(words("xyz.estimate_only", n=len(cells)))
        seconds += took
    return _said(words("xyz.estimate", n=len(cells), time=_time(words, seconds)))


def table(words: Words, plot: Plot) -> str:
    """HTML of the cells that there are."""
    labels = [
        [text(f"{axis['name']}: {value}") for value in axis["values"]] for axis in labelled(words, plot.axes)
    ]
    sheets = []
    for z, rows in enumerate(xyz.table(plot.ids, plot.axes)):
        head = "".join(f'<th scope="col">{label}</th>' for label in labels[0])
        first = labels[2][z] if len(labels) > 2 else ""
        lines = [f'<tr><th scope="col">{first}</th>{head}</tr>']
        for y, row in enumerate(rows):
            name = labels[1][y] if len(labels) > 1 else ""
            cells = "".join(_cell(plot, one, (x, y, z)) for x, one in enumerate(row))
            lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
        sheets.append(f"<table>{''.join(lines)}</table>")
    return f'{_STYLE}<div class="plot">{"".join(sheets)}</div>'


def joined(words: Words, whole: Mapping[str, Any]) -> str:
    """HTML of the picture of the plot, which a click shows at its own size."""
    place, name = f"/api/v1/images/{text(whole['id'])}/file", text(words("xyz.plot"))
    large = text(words("xyz.whole"))
    return (
        f'<div class="plot-whole" data-image="{text(whole["id"])}">'
        f'<img src="{place}" alt="{name}" tabindex="0"></div>'
        f'<p><a href="{place}" target="_blank">{large}</a></p>'
    )


def _cell(plot: Plot, image_id: str | None, where: tuple[int, int, int]) -> str:
    at = f'data-cell="{where[0]},{where[1]},{where[2]}"'
    if image_id:
        place = f"/api/v1/images/{text(image_id)}/file"
        return (
            f'<td {at}><a href="{place}" target="_blank"><img src="{place}" alt="" loading="lazy"></a></td>'
        )
    if why := plot.failed.get(where):
        return f'<td {at}><span title="{text(why)}">✕</span></td>'
    return f"<td {at}><span>…</span></td>"


def _ended(plot: Plot, cell: xyz.Cell, job: Mapping[str, Any]) -> None:
    images = (job.get("result") or {}).get("images") or []
    if job["state"] == "done" and images:
        plot.ids[cell.x, cell.y, cell.z] = images[0]
    else:
        plot.failed[cell.x, cell.y, cell.z] = job.get("error") or job["state"]


async def _ordered(api: Api, plot: Plot, cell: xyz.Cell) -> Any:
    """The job of a cell: the one of before, where the plot was begun already."""
    key = {"Idempotency-Key": xyz.key_of(plot.id, cell)}
    job = await api.send("POST", "/api/v1/jobs", json={**cell.body, "save": True}, headers=key)
    return await api.post(f"/api/v1/jobs/{job['id']}/requeue") if job["state"] in _AGAIN else job


async def _facts(api: Api, plot: Plot) -> dict[str | None, Mapping[str, Any]]:
    """What is known of every model that the plot draws with, by the name in its orders."""
    names: set[str | None] = {plot.base.get("model")}
    names |= {str(value) for axis in plot.axes if axis.name == "model" for value in axis.values}
    found: dict[str | None, Mapping[str, Any]] = {}
    for name in names:
        known = name
        if known is None:
            models = (await api.get("/api/v1/models"))["models"]
            known = next(
                (one["name"] for one in models if one["default"]), models[0]["name"] if models else ""
            )
        found[name] = await api.get(f"/api/v1/models/{known}")
    return found


def _stops(model: Mapping[str, Any]) -> xyz.Stops:
    """Stops of the dial by their steps, as an axis names them; the model itself is ``teacher``."""
    found: dict[str, Mapping[str, Any]] = {}
    for stop in dial.stops(model):
        found.setdefault(xyz.TEACHER if stop.student == dial.TEACHER else str(stop.steps), stop.values())
    return found | {stop.name: stop.values() for stop in dial.stops(model)}


def _filled(model: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """An order with what the stop for its steps would set, where it does not say so itself."""
    steps = body.get("num_inference_steps")
    if steps is None or body.get("student"):
        return dict(body)
    return {**_stops(model).get(str(steps), {}), **body}


def _said(sentence: str) -> str:
    return f'<p role="status">{text(sentence)}</p>'


def _time(words: Words, seconds: float) -> str:
    if seconds < 90:
        return words("xyz.seconds", n=max(1, round(seconds)))
    return words("xyz.minutes", n=round(seconds / 60))
