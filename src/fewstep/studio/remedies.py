"""What helps when the server refuses, or a job comes to nothing: one button that does it and tries again.

`find` looks first at the field of the request that is to blame, then at the short name of the reason; both
are of the body of the server's error. What it finds is a `Remedy`: values that are set in the form, or a
place that has to be filled by hand. Where neither helps there is no button, and the sentence stands alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.errors import FewstepError
from fewstep.prompt.infotext import SAMPLERS
from fewstep.studio import adapters, dial
from fewstep.studio.client import Api, ApiError
from fewstep.studio.markup import text
from fewstep.studio.orders import OF_MODEL
from fewstep.studio.words import Words

Values = Mapping[str, Any]
Find = Callable[[Values, Values | None, str], "Remedy | None"]
"""From the form's values, the facts of its model and the name of the server's to what helps."""
AGAIN: Final = frozenset(
    {
        "", "queue_full", "not_ready", "deadline", "out_of_memory", "internal", "engine_failed", "not_saved",
        "timeout", "failed", "expired", "cut_off",
    }
)  # fmt: skip
"""Reasons that may be gone the next time; the last three are states of jobs, the first is no connection."""
_GO: Final = """() => {
  const found = [...document.getElementById('%s-remedy').classList].find(one => one.startsWith('go-'));
  const place = found && document.getElementById(found.slice(3));
  if (!place) return;
  const panel = place.closest('[role=tabpanel]');
  if (panel && !panel.offsetParent) document.getElementById(`${panel.id}-button`)?.click();
  const fold = place.querySelector(':scope > button.label-wrap:not(.open)');
  if (fold) fold.click();
  setTimeout(() => {
    place.scrollIntoView({block: 'center'});
    (place.querySelector('button:not(.label-wrap)') || place).focus();
  }, 300);
}"""
"""Script of a tab's button: opens, shows and focuses the place that has to be filled in."""
SEEN: Final = (
    """() => document.querySelector('#%s-state [data-state=refused]')?.scrollIntoView({block: 'nearest'})"""
)
"""Script that brings the sentence of a tab into view."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One button.

    Args:
        name: of its text, in words/remedies.yaml.
        fields: of that text.
        changes: values of the form, by name of `fewstep.studio.orders.FIELDS`; None is the model's own.
        go: id of the element that has to be filled in before it can be tried again.
    """

    name: str
    fields: Values = field(default_factory=dict)
    changes: Values = field(default_factory=dict)
    go: str = ""

    def label(self, words: Words) -> str:
        """What stands on the button."""
        return words(f"remedies.{self.name}", **self.fields)


def find(
    error: ApiError | FewstepError | str, values: Values, model: Values | None = None, usual: str = "",
    *, of: Mapping[str, Find] | None = None,
) -> Remedy | None:  # fmt: skip
    """What helps against a refusal; None where only a person can tell.

    Args:
        error: of the server or of the form; or the state of a job that came to nothing.
        values: of the form, by name.
        model: the chosen one, as ``/api/v1/models/NAME`` describes it; None where that is not known.
        usual: name of the server's model.
        of: what helps by field; None is `CREATE`.
    """
    code = error if isinstance(error, str) else getattr(error, "code", "invalid_value")
    blamed = None if isinstance(error, str) else error.field
    if blamed and (helps := (CREATE if of is None else of).get(blamed.partition(".")[0])) is not None:
        remedy = helps(values, model, usual)
        # A button that changes nothing would be refused again.
        if remedy is not None and (remedy.go or any(values.get(k) != v for k, v in remedy.changes.items())):
            return remedy
    if code == "out_of_memory" and (values.get("n") or 1) > 1:
        return _ONE
    return _TRY if code in AGAIN else None


def sentence(said: object) -> str:
    """HTML of a refusal, for the place where the state of a job stands."""
    return f'<div class="create-state" data-state="refused" role="alert"><span>{text(said)}</span></div>'


async def known(api: Api, name: str | None) -> tuple[dict[str, Any] | None, str]:
    """The facts of a model, None where it cannot be asked for, and the name of the server's own."""
    usual = ""
    with contextlib.suppress(ApiError):
        models = (await api.get("/api/v1/models"))["models"]
        usual = next((one["name"] for one in models if one["default"]), models[0]["name"] if models else "")
        model: dict[str, Any] = await api.get(f"/api/v1/models/{quote(name or usual, safe='')}")
        return model, usual
    return None, usual


class Button:
    """The button of a tab, and what it will do.

    Args:
        words: texts.
        tab: name of the tab; the button is the element ``TAB-remedy``.
    """

    def __init__(self, words: Words, tab: str) -> None:
        self._words = words
        self.button = gr.Button("", visible=False, variant="primary", size="sm", elem_id=f"{tab}-remedy")
        self.kept = gr.State(None)
        """``changes``, ``go`` and whatever `shown` was given; None where there is no button."""
        self.outputs = [self.button, self.kept]
        self.button.click(None, None, None, js=_GO % tab, api_visibility="private")

    def shown(self, remedy: Remedy | None, **more: Any) -> dict[Any, Any]:
        """Updates that offer a remedy; ``more`` is kept with it."""
        if remedy is None:
            return self.hidden()
        label, classes = remedy.label(self._words), [f"go-{remedy.go}"] if remedy.go else []
        kept = {"changes": dict(remedy.changes), "go": remedy.go, **more}
        return {self.button: gr.update(value=label, visible=True, elem_classes=classes), self.kept: kept}

    def hidden(self) -> dict[Any, Any]:
        """Updates that take it away."""
        return {self.button: gr.update(visible=False), self.kept: None}


def _size(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if model is None:
        return None
    step, own = model["size_multiple"], (model["native_width"], model["native_height"])
    least, most = 4 * step, model["max_size"] // step * step
    asked = (values.get("width") or own[0], values.get("height") or own[1])
    near = tuple(min(max(int(side / step + 0.5) * step, least), most) for side in asked)
    width, height = own if near == asked else near  # then it is too large in some other way
    return Remedy("size", {"width": width, "height": height}, {"width": width, "height": height})


def _steps(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if model is None:
        return None
    contract = dial.contract_of(model, values.get("student"))
    asked, count = values.get("num_inference_steps") or 0, contract["num_inference_steps"]
    if allowed := contract["allowed_steps"]:
        # Of two that are as near the larger one: it looks better.
        count = min(allowed, key=lambda one: (abs(one - asked), -one))
    return Remedy("step" if count == 1 else "steps", {"n": count}, {"num_inference_steps": count})


def _guidance(values: Values, model: Values | None, usual: str) -> Remedy | None:
    scale = 1.0
    if model is not None:
        contract = dial.contract_of(model, values.get("student"))
        span, asked = contract["guidance_range"], values.get("guidance_scale")
        if contract["guidance"] != "off" and span is not None and asked is not None:
            scale = min(max(asked, span[0]), span[1])
    return Remedy("guidance", {"scale": f"{scale:g}"}, {"guidance_scale": scale})


def _solver(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if model is None:
        return None
    solver = dial.contract_of(model, values.get("student"))["solver"]
    return Remedy("solver", {"name": SAMPLERS.get(solver, solver)}, {"solver": solver})


def _student(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if model is None:
        return None
    stop = dial.usual(model)
    return Remedy("step" if stop.steps == 1 else "steps", {"n": stop.steps}, stop.values())


def _model(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if not usual or usual == values.get("model"):
        return None
    return Remedy("model", {"name": usual}, {"model": usual, **dict.fromkeys(OF_MODEL)})


def _adapters(values: Values, model: Values | None, usual: str) -> Remedy | None:
    # Those of tags stand in the prompt, and only a person can take them out.
    return Remedy("adapters", changes={"adapters": []}) if adapters.chosen(values.get("adapters")) else None


def _clip_skip(values: Values, model: Values | None, usual: str) -> Remedy | None:
    if model is None:
        return None
    most = min(int(values.get("clip_skip") or 0), max(model["max_clip_skip"], 0))
    return Remedy("clip_skip", {"n": most}, {"clip_skip": most})


def _always(remedy: Remedy) -> Find:
    return lambda values, model, usual: remedy


_TRY: Final = Remedy("again")
_ONE: Final = Remedy("one", changes={"n": 1})
_PICTURE: Final = _always(Remedy("picture", go="edit"))
CREATE: Final[Mapping[str, Find]] = {
    "width": _size, "height": _size, "num_inference_steps": _steps, "guidance_scale": _guidance,
    "guidance_rescale": _always(Remedy("rescale", changes={"guidance_rescale": 0.0})), "solver": _solver,
    "eta": _always(Remedy("eta", changes={"eta": -1})), "clip_skip": _clip_skip, "n": _always(_ONE),
    "student": _student, "model": _model, "adapters": _adapters,
    "styles": _always(Remedy("styles", changes={"styles": []})),
    "upscale": _always(Remedy("upscale", changes={"upscale": "none"})),
    "image": _PICTURE, "mask": _PICTURE, "outpaint": _PICTURE, "strength": _PICTURE,
}  # fmt: skip
"""What helps in Create, by the field of ``GenerateBody`` that is to blame."""
_CHOOSE: Final = _always(Remedy("choose", go="extras-picture"))
EXTRAS: Final[Mapping[str, Find]] = {
    "upscaler": _always(Remedy("upscaler", changes={"upscaler": "auto"})),
    "upscaler_2": _always(Remedy("upscaler_2", changes={"upscaler_2": "none"})),
    "image": _CHOOSE, "images": _CHOOSE, "files": _CHOOSE,
}  # fmt: skip
"""The same of ``EnlargeBody`` in Extras."""
