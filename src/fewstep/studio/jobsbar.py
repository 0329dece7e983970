"""The strip of jobs on every tab: what runs and waits, how long it takes, and what was cut off.

A script of the page asks the server's own API (`assets/jobs.js`), so nothing of Gradio is busy with it, and a
page that is loaded again, or in a second window, shows the same jobs. It asks every second while something
runs, every five while nothing does, and twice a minute while the page is hidden.
"""

from __future__ import annotations

import html
import json
from importlib import resources

import gradio as gr

from fewstep.studio.frame import Frame
from fewstep.studio.words import texts


def build(frame: Frame) -> None:
    """Call it once, outside of the tabs."""
    gr.HTML(
        markup({name: frame.words(f"jobsbar.{name}") for name in texts("jobsbar")}),
        js_on_load=_asset("jobs.js"), elem_id="jobs-strip", padding=False, apply_default_css=False,
    )  # fmt: skip


def markup(words: dict[str, str]) -> str:
    """The empty strip, with the texts that its script writes."""
    told = html.escape(json.dumps(words, ensure_ascii=False), quote=True)
    label = html.escape(words["label"], quote=True)
    # Here and not as a template of the component: its style reaches the whole page, and braces stay braces.
    return (
        f"<style>{_asset('jobs.css')}</style>"
        f'<section id="jobs" aria-label="{label}" data-words="{told}" hidden><ul></ul></section>'
    )


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
