"""Start from a picture: redraw it, a part of it, or go on beyond its edges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gradio as gr
from gradio import processing_utils

from fewstep.engine import checks, masks
from fewstep.engine.outpaint import Outpaint
from fewstep.errors import FewstepError, UsageError
from fewstep.studio import markup, painted
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame, Target

if TYPE_CHECKING:
    from gradio.components import Component

    from fewstep.studio.sending import Sent
    from fewstep.studio.words import Words

STRENGTH: Final = 0.75
_AUTO: Final = "auto"
_WAITING: Final = 16
"""Painted pictures that were sent and not taken yet."""
_SIDES: Final = ("left", "right", "top", "bottom")


@dataclass(frozen=True, slots=True)
class Edit:
    """The part of a form that says what to start from.

    Args:
        inputs: components whose values `fields` takes.
        fields: their values to fields of an order: none without a picture. With one, ``width`` and ``height``
            are None, for the picture decides them: ``{**form, **edit.fields(*values)}``.
        follow: called with the component of the step count, and that of the model's name or None, once they
            are there, it says how many steps are run, and at which size.
    """

    inputs: list[Component]
    fields: Callable[..., dict[str, Any]]
    follow: Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Wish:
    """The values of the form."""

    picture: painted.Painted | painted.Unread | None
    strength: float
    content: str
    blur: float
    only_masked: bool
    padding: float
    inverted: bool
    left: float | None
    right: float | None
    top: float | None
    bottom: float | None
    parent: tuple[str, str] | None
    """Id in the history of the picture that was sent here, and the digest of its file."""

    @property
    def extended(self) -> Outpaint | None:
        sides = {name: int(getattr(self, name) or 0) for name in _SIDES}
        return Outpaint(**sides) if any(sides.values()) else None


def fields(*values: Any) -> dict[str, Any]:
    """See `Edit`. What has no meaning beside the rest is left out: the server would refuse it.

    Raises:
        UsageError: a picture that cannot be read.
    """
    wish = _Wish(*values)
    if wish.picture is None:
        return {}
    if isinstance(wish.picture, painted.Unread):
        raise UsageError(wish.picture.why, field="image")
    found: dict[str, Any] = {**wish.picture.fields(), "width": None, "height": None}
    found["strength"] = round(float(wish.strength), 4)
    painted_on, extended = wish.picture.mask is not None, wish.extended
    if wish.parent:
        found["parent"] = wish.parent[0]
    if not (painted_on or extended):
        return found
    if wish.content != _AUTO:
        found["masked_content"] = wish.content
    if wish.only_masked:
        found |= {"only_masked": True, "padding": int(wish.padding)}
    if painted_on and wish.inverted:
        found["invert_mask"] = True
    if extended is not None:
        found["outpaint"] = extended.record()
    elif wish.blur:
        found["mask_blur"] = int(wish.blur)
    return found


def build(frame: Frame) -> Edit:
    """The accordion, where it is called; registers the targets ``image`` and ``inpaint``."""
    words = frame.words
    with gr.Accordion(words("edit.start"), open=False, elem_id="edit") as fold:
        parent, model = gr.State(None), gr.State(None)
        editor = _editor(words)
        hint = gr.Markdown(elem_id="edit-hint")
        preview = gr.Image(
            label=words("edit.preview"), interactive=False, visible=False, height=180, buttons=[],
            type="pil", format="png", elem_id="edit-preview",
        )  # fmt: skip
        strength = gr.Slider(
            0.05, 1.0, STRENGTH, step=0.05, label=words("edit.strength"), info=words("edit.strength_info"),
            elem_id="edit-strength",
        )  # fmt: skip
        share = gr.Markdown(elem_id="edit-share")
        painting = _painting(words)
        gr.Markdown(words("edit.outpaint"))
        with gr.Row():
            sides = [_side(words, side) for side in _SIDES]
    inputs: list[Component] = [editor, strength, *painting.values(), *sides, parent]

    async def look(request: gr.Request, *values: Any) -> tuple[Any, Any]:
        *given, name = values
        return await _look(words, _Wish(*given), name, api_of(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    changes = [
        editor.change, model.change, painting["blur"].release, painting["only_masked"].input,
        painting["padding"].release, painting["inverted"].input, *(side.change for side in sides),
    ]  # fmt: skip
    gr.on(changes, look, [*inputs, model], [hint, preview], trigger_mode="always_last", **quiet)

    async def arrived(request: gr.Request, *values: Any) -> tuple[Any, Any, Any]:
        # Also told of pictures that are sent here, and these are the parent until another takes their place.
        *given, name = values
        wish = _Wish(*given)
        picture = wish.picture if isinstance(wish.picture, painted.Painted) else None
        same = picture is not None and wish.parent and picture.digest() == wish.parent[1]
        return *(await _look(words, wish, name, api_of(request))), wish.parent if same else None

    gr.on([editor.upload, editor.clear], arrived, [*inputs, model], [hint, preview, parent], **quiet)
    for name in ("image", "inpaint"):
        frame.targets[name] = _target(editor, parent, fold)

    def follow(steps: Component, names: Component | None = None) -> None:
        def said(count: float | None, value: float) -> str:
            return _share(words, count, value)

        gr.on([steps.change, strength.change], said, [steps, strength], [share], **quiet)  # type: ignore[attr-defined]
        if names is not None:
            names.change(lambda name: name, [names], [model], **quiet)  # type: ignore[attr-defined]

    return Edit(inputs, fields, follow)


class _Newest(dict[str, Any]):
    """What browsers have sent of painted pictures, until their events take it; the newest few."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > _WAITING:
            del self[next(iter(self))]


def _editor(words: Words) -> gr.ImageEditor:
    editor = gr.ImageEditor(
        label=words("edit.picture"), placeholder=words("edit.placeholder"), sources=("upload", "clipboard"),
        brush=gr.Brush(colors=[painted.PAINT], default_color=painted.PAINT, color_mode="fixed"),
        layers=False, format="png", image_mode="RGBA", height=420, buttons=[], elem_id="edit-picture",
    )  # fmt: skip

    editor.blob_storage = _Newest()

    def read(payload: Any) -> painted.Painted | painted.Unread | None:
        if payload is not None and payload.id is not None:
            # Gradio's editor sends its parts beforehand, and here only under which name.
            payload = editor.blob_storage.pop(payload.id, None)
        try:
            return painted.read(payload)
        except FewstepError as error:
            return painted.Unread(str(error))  # said where it is used

    # Gradio's own would decode whatever is sent, of any size; of a subclass it would write an interface file
    # beside this module.
    editor.preprocess = read  # type: ignore[method-assign, assignment]
    return editor


def _painting(words: Words) -> dict[str, Any]:
    """What concerns the paint, in the order of `_Wish`."""
    made: dict[str, Any] = {}
    with gr.Row():
        made["content"] = gr.Dropdown(
            [(words(f"edit.content_{name}"), name) for name in (_AUTO, *masks.CONTENTS)], value=_AUTO,
            label=words("edit.content"), min_width=200, elem_id="edit-content",
        )  # fmt: skip
        made["blur"] = gr.Slider(
            0, 64, 0, step=1, label=words("edit.blur"), min_width=200, elem_id="edit-blur"
        )
    with gr.Row():
        made["only_masked"] = gr.Checkbox(
            label=words("edit.only_masked"), info=words("edit.only_masked_info"), min_width=200,
            elem_id="edit-only-masked",
        )  # fmt: skip
        made["padding"] = gr.Slider(
            0, 256, masks.PADDING, step=1, label=words("edit.padding"), min_width=200, elem_id="edit-padding"
        )
    made["inverted"] = gr.Checkbox(label=words("edit.invert"), elem_id="edit-invert")
    return made


def _side(words: Words, side: str) -> gr.Number:
    return gr.Number(
        0, label=words(f"edit.{side}"), precision=0, minimum=0, maximum=4096, step=8, min_width=70,
        elem_id=f"edit-{side}",
    )  # fmt: skip


def _target(editor: gr.ImageEditor, parent: gr.State, fold: gr.Accordion) -> Target:
    async def take(sent: Sent, request: gr.Request) -> list[Any]:
        name = (sent.image_id or "picture") + painted.suffix(sent.data)
        path = await asyncio.to_thread(
            processing_utils.save_bytes_to_cache, sent.data, name, editor.GRADIO_CACHE
        )
        return [
            {"background": path, "layers": [], "composite": path},
            sent.image_id or None,
        ]

    outputs: list[Any] = [editor, parent]
    return Target("create", outputs, take, (fold,))


async def _look(words: Words, wish: _Wish, model: str | None, api: Api) -> tuple[Any, Any]:
    """What would be redrawn, said and shown."""
    if wish.picture is None:
        return "", gr.Image(visible=False)
    if isinstance(wish.picture, painted.Unread):
        return markup.text(wish.picture.why), gr.Image(visible=False)
    try:
        facts = await _model(api, model)
        shown = await asyncio.to_thread(
            painted.shown, wish.picture, blur=int(wish.blur), inverted=wish.inverted,
            extended=wish.extended, step=facts["size_multiple"],
        )  # fmt: skip
    except (FewstepError, ApiError) as error:
        return markup.text(error), gr.Image(visible=False)
    picture = gr.Image(visible=False) if shown.mask is None else gr.Image(shown.picture, visible=True)
    return _said(words, wish, shown, facts), picture


async def _model(api: Api, name: str | None) -> dict[str, Any]:
    """The facts of a model; without a name, of the one that draws then."""
    if not name:
        found = (await api.get("/api/v1/models"))["models"]
        name = next((one["name"] for one in found if one["default"]), found[0]["name"])
    model: dict[str, Any] = await api.get(f"/api/v1/models/{name}")
    return model


def _said(words: Words, wish: _Wish, shown: painted.Shown, facts: dict[str, Any]) -> str:
    wide, tall = shown.size
    if shown.mask is not None and not shown.mask.any():
        return words("edit.nothing_left")
    native = (facts["native_width"], facts["native_height"])
    region = wish.only_masked and shown.mask is not None
    percent = max(1, round(100 * shown.share))
    w, h = native if region else checks.like(native, facts["size_multiple"], facts["max_size"], wide, tall)
    if wish.extended is not None and not region:
        w, h = wide, tall
    sizes: dict[str, Any] = {"wide": wide, "tall": tall, "percent": percent, "w": w, "h": h}
    if wish.extended is not None:
        before = {"before_wide": shown.before[0], "before_tall": shown.before[1]}
        text = words("edit.extended", **sizes, **before)
        if not region and max(wide, tall) > facts["max_size"]:
            return f"{text} {words('edit.too_large', most=facts['max_size'])}"
        return text
    if region:
        return words("edit.region", **sizes)
    text = words("edit.whole" if shown.mask is None else "edit.part", **sizes)
    if w < wide or h < tall:
        return f"{text} {words('edit.shrinks_whole' if shown.mask is None else 'edit.shrinks')}"
    return f"{text} {words('edit.grows')}" if w > wide or h > tall else text


def _share(words: Words, steps: float | None, strength: float) -> str:
    if not steps:
        return ""
    steps, runs = int(steps), max(1, int(int(steps) * strength))
    if steps * strength < 1:
        return words("edit.share_short", steps=steps, strength=f"{strength:.0%}")
    return words("edit.share", steps=steps, runs=runs)
