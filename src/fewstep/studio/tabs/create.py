"""Create: pictures from text and from pictures."""

from __future__ import annotations

import gradio as gr

from fewstep.studio.frame import Frame


def build(frame: Frame) -> None:
    """The tab."""
    gr.Textbox(label="prompt", elem_id="prompt")
