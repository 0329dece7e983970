"""Create, when an order is refused or comes to nothing: the sentence in place, and the button that helps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import gradio as gr

from fewstep.errors import FewstepError
from fewstep.studio import remedies
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.orders import Form
from fewstep.studio.telling import told

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


async def refused(
    button: remedies.Button, api: Api, error: ApiError | FewstepError, values: Mapping[str, Any], again: str
) -> dict[Any, Any]:
    """Updates that offer what helps against a refusal.

    Args:
        button: of the tab.
        api: of the visitor.
        error: what was refused.
        values: of the form, by name.
        again: name of what is done once more, see `wire`.
    """
    if again != "order":  # made of a picture: the form has no part in it
        return button.shown(remedies.find(error, values, of={}), again=again)
    model, usual = await remedies.known(api, values.get("model")) if error.field else (None, "")
    return button.shown(remedies.find(error, values, model, usual), again=again)


def ended(button: remedies.Button, job: Mapping[str, Any]) -> dict[Any, Any]:
    """Updates that offer to do a job again that came to nothing; nothing for one that goes on, or is done."""
    remedy = remedies.find(str(job["state"]), {})
    return button.hidden() if remedy is None else button.shown(remedy, again="requeue", job=job["id"])


def wire(frame: Frame) -> None:
    """Connect the button.

    What it does again is one of ``order``, ``vary``, ``enlarge`` and ``requeue``; nothing after the live
    canvas, which draws by itself whenever the form changes.
    """
    shared = frame.shared
    form: Form = shared["create"]
    button: remedies.Button = shared["create.remedy"]
    filled, shown = shared["create.filled"], shared["create.shown"]
    own = list(form.components.values())
    job, state, *_ = shown

    @told
    async def change(request: gr.Request, kept: dict[str, Any] | None, *values: Any) -> list[Any]:
        if not kept or not kept["changes"]:
            return [gr.skip()] * len(filled)
        found: list[Any] = await shared["create.fill"](form.values(*values) | kept["changes"], request)
        return found

    async def again(
        request: gr.Request, kept: dict[str, Any] | None, image_id: str | None, ids: list[str], *values: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        way = "" if not kept or kept["go"] else kept["again"]
        if kept and not kept["go"]:
            yield button.hidden()
        else:
            yield {job: gr.skip()}  # of a generator that gives nothing Gradio empties every output
        if way == "order":
            doing = shared["create.order"](request, *values)
        elif way in ("vary", "enlarge"):
            doing = shared[f"create.{way}"](image_id, ids, request)
        elif way == "requeue" and kept:
            doing = requeued(api_of(request), kept["job"])
        else:
            return
        async for changes in doing:
            yield changes

    async def requeued(api: Api, job_id: str) -> AsyncIterator[dict[Any, Any]]:
        try:
            await api.post(f"/api/v1/jobs/{job_id}/requeue")
            async for changes in shared["create.watched"](api, job_id):
                yield changes
        except ApiError as error:
            yield {state: remedies.sentence(error), **button.shown(
                remedies.find(error, {}), again="requeue", job=job_id
            )}  # fmt: skip

    inputs = [button.kept, shared["create.chosen"], shared["create.drawn"], *form.inputs]
    changed = button.button.click(change, [button.kept, *own], filled, **_QUIET)
    done = changed.success(again, inputs, shown, **_QUIET)
    done.then(None, None, None, js=remedies.SEEN % "create", api_visibility="private")

    async def live(request: gr.Request, event: gr.EventData, *values: Any) -> dict[Any, Any]:
        """What the live canvas was refused; it says the sentence itself."""
        # Of the browser; a field that there is none of has no remedy.
        error = ApiError("", field=str(getattr(event, "field", None) or "") or None)
        now = form.values(*values)
        model, usual = await remedies.known(api_of(request), now.get("model"))
        remedy = remedies.find(error, now, model, usual) if error.field else None
        return button.shown(remedy if remedy and (remedy.changes or remedy.go) else None, again="")

    shared["live"].refused(live, own, button.outputs, **_QUIET)
