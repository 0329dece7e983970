"""The adapters in Create: pictures that are drawn when somebody asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from fewstep.studio import adapters
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.telling import told


def wire(frame: Frame, gallery: gr.HTML, missing: gr.Button) -> None:
    """Connect the cards with the button that draws what they show."""
    words, facts, drawn = frame.words, frame.shared["create.facts"], gr.State(0)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    async def draw(
        count: int, model: dict[str, Any] | None, request: gr.Request
    ) -> AsyncIterator[tuple[Any, Any]]:
        if model is None:
            yield gr.skip(), gr.skip()
            return
        api = api_of(request)
        usual = gr.update(value=words("adapters.draw"), interactive=True)
        try:
            undrawn = adapters.undrawn(await adapters.listed(api, model["name"]))
            for place, one in enumerate(undrawn):
                progress = words("adapters.drawing", n=place + 1, of=len(undrawn))
                yield gr.skip(), gr.update(value=progress, interactive=False)
                await adapters.draw(api, model, one)
                yield count + place + 1, gr.skip()
        except ApiError as error:
            yield gr.skip(), usual
            raise gr.Error(str(error), print_exception=False) from None
        yield gr.skip(), usual

    @told
    async def show(model: dict[str, Any] | None, now: Any, request: gr.Request) -> Any:
        """The cards with what is chosen by now: somebody may choose while pictures are drawn."""
        if model is None:
            return gr.skip()
        return adapters.value(
            words, await adapters.listed(api_of(request), model["name"]), adapters.chosen(now)
        )

    missing.click(draw, [drawn, facts], [drawn, missing], **quiet)
    drawn.change(show, [facts, gallery], [gallery], **quiet)
