"""From one tab to another: a picture, with all that is known of how it was made."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Any, Final

import gradio as gr
from PIL import Image

from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame, Source, Target

TARGETS: Final = ("image", "inpaint", "settings", "extras", "info")
"""Names of what a picture may be sent to: start of a picture; to be painted over; its settings into the form;
to be enlarged; to be read."""
_UNFOLDED: Final = 0.4
"""Seconds after which an accordion that was opened can take a picture."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A picture that is sent.

    Args:
        image_id: in the history.
        view: what the history knows of it, ``/api/v1/images/ID``; its ``record`` has all settings.
        data: the bytes of its file.
    """

    image_id: str
    view: dict[str, Any]
    data: bytes

    def picture(self) -> Image.Image:
        """Its pixels. The file is the server's own, made by it."""
        picture = Image.open(io.BytesIO(self.data))
        picture.load()
        return picture


def buttons(frame: Frame, tab: str, chosen: gr.State, *names: str) -> Source:
    """A row of buttons that send the chosen picture elsewhere; call it where they are to stand."""
    made = {
        name: gr.Button(frame.words(f"sending.{name}"), size="sm", min_width=90, elem_id=f"{tab}-send-{name}")
        for name in names
    }
    source = Source(tab, chosen, made)
    frame.sources.append(source)
    return source


def wire(frame: Frame) -> None:
    """Connect every button with its target; those without one are hidden."""
    for source in frame.sources:
        for name, button in source.buttons.items():
            target = frame.targets.get(name)
            if target is None:
                button.visible = False
            else:
                _connect(frame, source, button, target)


def _connect(frame: Frame, source: Source, button: gr.Button, target: Target) -> None:
    words = frame.words
    assert frame.tabs is not None

    def show(image_id: str | None) -> Any:
        if not image_id:
            raise gr.Error(words("sending.nothing"), print_exception=False)
        return opened(target)

    async def send(image_id: str, request: gr.Request) -> list[Any]:
        api = api_of(request)
        if target.folds:
            await asyncio.sleep(_UNFOLDED)
        try:
            view = await api.get(f"/api/v1/images/{image_id}")
            sent = Sent(image_id, view, await api.data(f"/api/v1/images/{image_id}/file"))
            return list(await target.take(sent, request))
        except ApiError as error:
            raise gr.Error(str(error), print_exception=False) from None

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    first = button.click(show, [source.chosen], [frame.tabs, *target.folds], **quiet)
    first.success(send, [source.chosen], target.outputs, **quiet)


def opened(target: Target) -> Any:
    """Updates of the tabs and of a target's accordions that show it."""
    shown = [gr.Tabs(selected=target.tab), *(gr.Accordion(open=True) for _ in target.folds)]
    return shown if target.folds else shown[0]  # of one output Gradio takes the value, and no list of it
