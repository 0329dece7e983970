"""One page in one language: its head, its tabs, and what leads from one tab to another."""

from __future__ import annotations

import html
from dataclasses import dataclass
from importlib import resources
from typing import Final

import gradio as gr

from fewstep import __version__
from fewstep.studio import jobsbar, keys, live, sending
from fewstep.studio.frame import Frame
from fewstep.studio.tabs import TABS
from fewstep.studio.words import COOKIE, LANGUAGES, Words

_FONTS: Final = ("system-ui", "sans-serif")
"""Of the system: nothing is loaded from elsewhere."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the page looks like, and the script that all of it shares."""

    theme: gr.Theme
    css: str
    js: str
    head: str


def look() -> Look:
    """Of every language's page."""
    theme = gr.themes.Soft(primary_hue="violet", font=_FONTS, font_mono=("ui-monospace", "monospace"))
    # Gradio's own are too pale to read: 2.4 to 4.3 to 1, where WCAG asks for 4.5.
    theme.set(
        body_text_color_subdued="*neutral_500", input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400", block_title_text_color="*primary_700",
        block_label_text_color="*primary_700", button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        checkbox_label_background_fill_selected="*primary_600", link_text_color_dark="*secondary_300",
        link_text_color_visited_dark="*secondary_300", link_text_color_hover_dark="*secondary_200",
    )  # fmt: skip
    return Look(theme=theme, css=_asset("page.css"), js=_asset("page.js"), head="")


def build(language: str) -> gr.Blocks:
    """The page.

    Args:
        language: one of `fewstep.studio.words.LANGUAGES`.
    """
    words = Words(language)
    frame = Frame(words)
    blocks: gr.Blocks
    with gr.Blocks(title=words("page.title"), analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_header(words), elem_id="top", padding=False)
        with gr.Tabs(elem_id="tabs") as tabs:
            frame.tabs = tabs
            for name, build_tab in TABS.items():
                with gr.Tab(words(f"page.{name}"), id=name, elem_id=f"tab-{name}") as tab:
                    frame.tab = tab
                    build_tab(frame)
        sending.wire(frame)
        jobsbar.build(frame)
        live.wire(frame)
        gr.HTML(keys.dialog(words), elem_id="keys-list", padding=False, apply_default_css=False)
        _stay(blocks)
    # Events wait for the server's own queue; Gradio's would be a second one.
    blocks.queue(default_concurrency_limit=None, api_open=False)
    return blocks


def _stay(blocks: gr.Blocks) -> None:
    """Let the stream on which a page hears of its events stay open for as long as the page is.

    Gradio's server ends it when none is pending, and its client learns so later: an event that was asked for
    in between waits for a stream that is gone, and with it every later one of the same kind, until some other
    event opens a new one. On a busy machine changes of settings and of the live canvas were lost so. What is
    named here never ends, so something is always pending. `tests/browser/test_restart.py` fails when Gradio
    keeps its events otherwise.
    """

    def come(request: gr.Request) -> None:
        blocks._queue.pending_event_ids_session.setdefault(str(request.session_hash), set()).add("page")

    def gone(request: gr.Request) -> None:
        blocks._queue.pending_event_ids_session.get(str(request.session_hash), set()).discard("page")

    blocks.load(come, None, None, show_progress="hidden", api_visibility="private")
    blocks.unload(gone)


def _header(words: Words) -> str:
    other = next(language for language in LANGUAGES if language != words.language)
    text = html.escape(words("page.language"))
    return (
        f'<header class="fewstep-top"><strong>fewstep</strong> <small>{html.escape(__version__)}</small>'
        f'<span class="fewstep-gap"></span>{keys.buttons(words)}'
        f'<a href="../{other}/" lang="{other}" hreflang="{other}" '
        f"onclick=\"document.cookie='{COOKIE}={other};path=/;max-age=31536000;samesite=strict'\">{text}</a></header>"
    )


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
