"""The adapters in Create: pictures that are drawn when somebody asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from fewstep.studio import adapters
from fewstep.studio.client import ApiError, api_of
from fewstep.studio.frame import Frame


def wire(frame: Frame, gallery: gr.HTML, missing: gr.Button) -> None:
    """Connect the cards with the button that draws what they show."""
    words, facts = frame.words, frame.shared["create.facts"]

    async def draw(
        model: dict[str, Any] | None, now: Any, request: gr.Request
    ) -> AsyncIterator[tuple[Any, Any]]:
        if model is None:
            return
        api = api_of(request)
        try:
            listed = await adapters.listed(api, model["name"])
            undrawn = adapters.undrawn(listed)
            for place, one in enumerate(undrawn):
                progress = words("adapters.drawing", n=place + 1, of=len(undrawn))
                yield gr.skip(), gr.update(value=progress, interactive=False)
                picture = await adapters.draw(api, model, one)
                for other in listed:
                    if other["name"] == one["name"]:
                        other["picture"] = picture
                yield adapters.value(words, listed, adapters.chosen(now)), gr.skip()
        except ApiError as error:
            yield gr.skip(), gr.update(value=words("adapters.draw"), interactive=True)
            raise gr.Error(str(error), print_exception=False) from None
        yield gr.skip(), gr.update(value=words("adapters.draw"), interactive=True)

    missing.click(
        draw, [facts, gallery], [gallery, missing], show_progress="hidden", api_visibility="private"
    )
