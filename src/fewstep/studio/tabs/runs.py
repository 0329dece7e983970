"""Runs of one kind of long work, on the tab that starts them: state, curves, sample grids, log.

The server owns them: whoever opens the tab sees the one that runs, or the newest. A timer asks while
something runs, and stands still otherwise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import gradio as gr

from fewstep.studio import curves
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.words import Words
from fewstep.studio.working import lasting

EVERY: Final = 2.0
"""Seconds between two looks at what runs."""
GOING: Final = ("queued", "running")
AGAIN: Final = ("cut_off", "cancelled", "failed", "expired")
_QUIET: Final[Mapping[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_GRIDS: Final = 4
_LINES: Final = 40
_RUNS: Final = 30
_CSS: Final = resources.files("fewstep.studio").joinpath("assets", "runs.css").read_text("utf-8")
_STYLE: Final = f"<style>{_CSS}</style>"


@dataclass(slots=True)
class Runs:
    """The view of a tab."""

    kind: str
    run: gr.Dropdown
    outputs: list[Any]
    """What `shown` returns values for."""
    finished: gr.State
    """The job that is looked at when it is done, else None; its change is an event."""
    words: Words

    async def shown(self, api: Api, chosen: str | None) -> list[Any]:
        """Values for `outputs`.

        Args:
            api: of the visitor.
            chosen: id of a job; None is the one that runs, or the newest.

        Raises:
            ApiError: the server does not answer.
        """
        jobs = (await api.get("/api/v1/jobs", kind=self.kind, limit=_RUNS))["jobs"]
        known = {job["id"]: job for job in jobs}
        if chosen not in known:
            chosen = next((job["id"] for job in jobs if job["state"] == "running"), None)
            chosen = chosen or (jobs[0]["id"] if jobs else None)
        choices = [(self._name(job), job["id"]) for job in jobs]
        run = gr.update(choices=choices, value=chosen, visible=bool(jobs))
        return [run, *await self._one(api, known[chosen] if chosen else None)]

    async def _one(self, api: Api, job: Mapping[str, Any] | None) -> list[Any]:
        words = self.words
        stop, again = words("runs.cancel"), words("runs.again")
        if job is None:
            said = f'<p role="status">{text(words("runs.none"))}</p>'
            off = [gr.update(value=stop, visible=False), gr.update(value=again, visible=False)]
            return [said, "", "", "", *off, gr.update(active=False), None]
        path, state = f"/api/v1/jobs/{job['id']}", job["state"]
        stages = (await api.get(f"{path}/curves"))["stages"]
        samples = (await api.get(f"{path}/samples"))["samples"]
        lines = (await api.get(f"{path}/log", lines=_LINES))["lines"]
        return [
            status(words, job), drawn(words, stages), grids(words, path, samples), "\n".join(lines),
            gr.update(value=stop, visible=state in GOING), gr.update(value=again, visible=state in AGAIN),
            gr.update(active=state in GOING), dict(job) if state == "done" else None,
        ]  # fmt: skip

    def _name(self, job: Mapping[str, Any]) -> str:
        when = time.strftime("%m-%d %H:%M", time.localtime(job["created"]))
        state = self.words(f"runs.state_{job['state']}")
        return f"{job['title']} · {state} · {when}"


def build(frame: Frame, tab: str, kind: str, *, made: Callable[[], None] | None = None) -> Runs:
    """The view; call it where it is to stand.

    Args:
        frame: of the page; its tab is the one that is being built.
        tab: begin of the components' ids.
        kind: of the jobs.
        made: builds what tells of a run that is done, between its state and its curves.
    """
    words = frame.words
    run = gr.Dropdown([], label=words("runs.choose"), elem_id=f"{tab}-run", visible=False)
    said = gr.HTML(elem_id=f"{tab}-state", padding=False)
    with gr.Row():
        stop = gr.Button(words("runs.cancel"), variant="stop", visible=False, elem_id=f"{tab}-stop")
        again = gr.Button(words("runs.again"), visible=False, elem_id=f"{tab}-again")
    if made is not None:
        made()
    curve = gr.HTML(elem_id=f"{tab}-curves", padding=False)
    pictures = gr.HTML(elem_id=f"{tab}-samples", padding=False)
    with gr.Accordion(words("runs.log"), open=False):
        log = gr.Textbox(
            show_label=False,
            label=words("runs.log"),
            lines=6,
            max_lines=16,
            interactive=False,
            elem_id=f"{tab}-log",
        )
    timer, finished = gr.Timer(EVERY, active=False), gr.State(None)
    view = Runs(kind, run, [run, said, curve, pictures, log, stop, again, timer, finished], finished, words)

    async def look(chosen: str | None, request: gr.Request) -> list[Any]:
        return await view.shown(api_of(request), chosen)

    async def quietly(chosen: str | None, request: gr.Request) -> list[Any]:
        try:
            return await look(chosen, request)
        except ApiError:  # the server is away for a moment: the next look tells
            return [gr.skip()] * len(view.outputs)

    def verb(name: str) -> Any:
        async def ask(chosen: str | None, request: gr.Request) -> list[Any]:
            try:
                await api_of(request).post(f"/api/v1/jobs/{chosen}/{name}")
                return await look(chosen, request)
            except ApiError as error:
                raise gr.Error(str(error), print_exception=False) from None

        return ask

    timer.tick(quietly, [run], view.outputs, trigger_mode="once", **_QUIET)
    run.input(quietly, [run], view.outputs, **_QUIET)
    stop.click(verb("cancel"), [run], view.outputs, **_QUIET)
    again.click(verb("requeue"), [run], view.outputs, **_QUIET)
    assert frame.tab is not None
    frame.tab.select(quietly, [run], view.outputs, **_QUIET)
    return view


def status(words: Words, job: Mapping[str, Any]) -> str:
    """HTML: how far a job is, or how it ended."""
    state, now, bar = job["state"], job.get("progress") or {}, ""
    if state == "queued":
        said = words("runs.queued", n=job["position"]) if job.get("position") else words("runs.starting")
    elif state == "running":
        said, bar = _running(words, now)
    elif state == "done":
        took = (job.get("finished") or 0) - (job.get("started") or 0)
        said = words("runs.done", time=lasting(words, max(took, 0)))
    elif state == "failed":
        said = words("runs.failed", why=job.get("error") or "")
    else:
        said = words("runs.cut_off" if state == "cut_off" else "runs.cancelled")
    return f'{_STYLE}<div class="run" data-state="{text(state)}" role="status">{bar}<p>{text(said)}</p></div>'


def _running(words: Words, now: Mapping[str, Any]) -> tuple[str, str]:
    step, total, message = now.get("step") or 0, now.get("total") or 0, now.get("message") or ""
    seconds = round(now.get("seconds") or 0)
    left = re.search(r"(\d+):(\d\d):(\d\d) left$", message)
    if total and left:  # of a training's own line, which knows its rate
        rest = lasting(words, 3600 * int(left[1]) + 60 * int(left[2]) + int(left[3]))
        said = words("runs.counted", step=step, total=total, left=rest)
    else:
        said = message or words("runs.starting")
    said = words("runs.running", text=said, seconds=seconds)
    if not total:
        return said, f'<progress aria-label="{text(said)}"></progress>'
    return said, f'<progress max="{int(total)}" value="{int(step)}" aria-label="{text(said)}"></progress>'


def drawn(words: Words, stages: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the curves: losses, and how far a student ends from its teacher."""
    found = []
    for begin in ("loss", "teacher_distance"):
        label = words(f"runs.{begin}")
        if made := curves.svg(curves.chosen(stages, begin), label=label, x=words("runs.images")):
            found.append(f"<h4>{text(label)}</h4>{made}")
    return "".join(found)


def grids(words: Words, path: str, samples: Sequence[str]) -> str:
    """HTML of the newest sample grids.

    Args:
        words: texts.
        path: of the job in the API.
        samples: names, the oldest first.
    """
    found = []
    path = text(path)
    for name in list(samples)[: -_GRIDS - 1 : -1]:
        stage, _, number = name.removesuffix(".png").rpartition("-")
        said = words("runs.sample", n=int(number)) if number.isdecimal() else number
        said = f"{stage} · {said}" if stage else said
        place, said = f"{path}/samples/{text(name)}", text(said)
        found.append(
            f'<figure><a href="{place}" target="_blank"><img src="{place}" alt="{said}" loading="lazy"></a>'
            f"<figcaption>{said}</figcaption></figure>"
        )
    return f'<h4>{text(words("runs.samples"))}</h4><div class="grids">{"".join(found)}</div>' if found else ""
