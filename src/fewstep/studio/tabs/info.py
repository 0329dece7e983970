"""PNG Info: what a picture says of its making, and whether it is so."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gradio as gr
from PIL import Image

from fewstep.data import images
from fewstep.studio import foreign, markup, sending
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame, Target
from fewstep.studio.sending import Sent
from fewstep.studio.tabs import create_draw, extras
from fewstep.studio.telling import told

if TYPE_CHECKING:
    from fewstep.studio.words import Words

_QUIET: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_ID: Final = re.compile("[0-9a-f]{32}")
_SENT: Final = {"settings": "to_create", "image": "to_image", "extras": "to_extras"}
"""Targets, and the names of the texts of their buttons."""


def build(frame: Frame) -> None:
    """The tab; registers the target ``info``."""
    words = frame.words
    facts, origin = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            picture = gr.Image(
                label=words("info.picture"), type="filepath", sources=["upload", "clipboard"], height=360,
                format="png", buttons=[], elem_id="info-picture",
            )  # fmt: skip
            # The file as it came, with its texts: Gradio's own would decode it, of any size.
            picture.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
            gr.Markdown(words("info.hint"))
            with gr.Row():
                buttons = {
                    name: gr.Button(
                        words(f"info.{text}"), size="sm", min_width=90, elem_id=f"info-send-{name}"
                    )
                    for name, text in _SENT.items()
                }
            replay = gr.Button(words("info.replay"), elem_id="info-replay")
            verdict = gr.HTML(elem_id="info-verdict", padding=False)
            beside = gr.ImageSlider(
                label=words("info.beside"), interactive=False, visible=False, max_height=480, format="png",
                elem_id="info-beside",
            )  # fmt: skip
        with gr.Column(scale=6, min_width=300):
            made = gr.HTML(elem_id="info-made", padding=False)
            prompt = gr.Textbox(
                label=words("info.prompt"), lines=2, max_lines=8, interactive=False, buttons=["copy"],
                elem_id="info-prompt",
            )  # fmt: skip
            negative = gr.Textbox(
                label=words("info.negative"), lines=1, max_lines=6, interactive=False, elem_id="info-negative"
            )
            table = gr.HTML(elem_id="info-settings", padding=False)
            raw = gr.Textbox(
                label=words("info.raw"), lines=3, max_lines=14, interactive=False, buttons=["copy"],
                elem_id="info-raw",
            )  # fmt: skip
            with gr.Accordion(words("info.record"), open=False):
                record = gr.JSON(show_label=False, elem_id="info-record")
            with gr.Accordion(words("info.texts"), open=False):
                texts = gr.JSON(show_label=False, elem_id="info-texts")
    shown = [facts, made, prompt, negative, table, raw, record, texts, verdict, beside]

    @told
    async def read(request: gr.Request, path: str | None) -> list[Any]:
        if path is None:
            return [None, *_view(words, None)]
        return await _read(words, api_of(request), await asyncio.to_thread(_file, words, path))

    # `change` comes for pictures that are sent here as well; these are read already.
    picture.input(read, [picture], shown, **_QUIET)
    gr.on([picture.input, picture.clear], lambda: None, None, [origin], **_QUIET)

    async def take(sent: Sent, request: gr.Request) -> list[Any]:
        paths = await create_draw.pictures(api_of(request), [sent.image_id])
        found = await _read(words, api_of(request), sent.data)
        return [next(iter(paths), None), sent.image_id, *found]

    frame.targets["info"] = Target("info", [picture, origin, *shown], take)
    for name, button in buttons.items():
        _send(frame, name, button, picture, facts, origin)

    @told
    async def again(request: gr.Request, path: str | None, known: dict[str, Any] | None) -> Any:
        if path is None:
            raise gr.Error(words("info.nothing"), print_exception=False)
        if known is None or known["record"] is None:
            raise gr.Error(words("info.replay_needs"), print_exception=False)
        data = await asyncio.to_thread(_file, words, path)
        yield f'<p role="status">{markup.text(words("info.replaying"))}</p>', gr.ImageSlider(visible=False)
        found = await _asked(api_of(request), "/api/v1/replay", data)
        yield _verdict(words, found), await asyncio.to_thread(_beside, data, found["image"])

    replay.click(again, [picture, facts], [verdict, beside], **_QUIET)


def _send(
    frame: Frame, name: str, button: gr.Button, picture: gr.Image, facts: gr.State, origin: gr.State
) -> None:
    words, target = frame.words, frame.targets.get(name)
    if target is None or frame.tabs is None:
        button.visible = False
        return

    def show(path: str | None, known: dict[str, Any] | None) -> Any:
        if path is None or known is None:
            raise gr.Error(words("info.nothing"), print_exception=False)
        if name == "settings" and not foreign.record(known):
            raise gr.Error(words("info.no_settings"), print_exception=False)
        return sending.opened(target)

    @told
    async def send(request: gr.Request, path: str, known: dict[str, Any], of: str | None) -> list[Any]:
        data = await asyncio.to_thread(_file, words, path)
        of = of or await _kept(api_of(request), known, data)
        sent = Sent(of or "", {"record": foreign.record(known)}, data)
        return list(await target.take(sent, request))

    first = button.click(show, [picture, facts], [frame.tabs, *target.folds], **_QUIET)
    first.success(send, [picture, facts, origin], target.outputs, **_QUIET)


async def _kept(api: Api, known: dict[str, Any], data: bytes) -> str | None:
    """The id in the history that our own file names, if the very same file is there."""
    kept = (known["record"] or {}).get("history")
    name = kept.get("id") if isinstance(kept, dict) else None
    if not isinstance(name, str) or not _ID.fullmatch(name):
        return None
    try:
        return name if await api.data(f"/api/v1/images/{name}/file") == data else None
    except ApiError:
        return None


def _file(words: Words, path: str) -> bytes:
    """The bytes of an upload; gr.Error when they are more than a request holds."""
    size = Path(path).stat().st_size
    if size > extras.MAX_BYTES:
        text = words("extras.too_large", size=-(-size >> 20), most=extras.MAX_BYTES >> 20)
        raise gr.Error(text, print_exception=False)
    return Path(path).read_bytes()


async def _asked(api: Api, way: str, data: bytes) -> dict[str, Any]:
    text = await asyncio.to_thread(lambda: base64.b64encode(data).decode())
    found: dict[str, Any] = await api.post(way, {"image": text})
    return found


async def _read(words: Words, api: Api, data: bytes) -> list[Any]:
    """Values of the facts and of everything that shows them."""
    found = await _asked(api, "/api/v1/info", data)
    return [found, *_view(words, found)]


def _view(words: Words, found: dict[str, Any] | None) -> list[Any]:
    """What the tab shows of a picture; nothing of none. Every text of the file stays a text."""
    clean = ["", gr.ImageSlider(visible=False)]
    if found is None:
        return ["", "", "", "", "", None, None, *clean]
    tool = found["tool"] or words("info.unknown")
    sizes = {"format": found["format"], "wide": found["width"], "tall": found["height"]}
    made = f"<strong>{markup.text(words('info.made_by', tool=tool, **sizes))}</strong>"
    kind = markup.text(found["tool"] or "")
    note = f"<p>{markup.text(found['note'])}</p>" if found["note"] else ""
    pairs: list[tuple[str, object]] = list(found["settings"].items())
    if found["models"]:
        pairs.append((words("info.models"), ", ".join(found["models"])))
    return [
        f'<p class="info-made" data-tool="{kind}">{made}</p>{note}',
        found["prompt"], found["negative_prompt"], markup.rows(pairs), found["parameters"] or "",
        found["record"], found["texts"], *clean,
    ]  # fmt: skip


def _verdict(words: Words, found: dict[str, Any]) -> str:
    name = found["verdict"] if found["largest"] is not None else "different_size"
    share = 100 * (found["share"] or 0)
    percent = f"{share:.2g}" if share < 10 else f"{share:.0f}"
    text = words(f"info.{name}", largest=found["largest"], share=percent)
    reasons = "".join(f"<li>{markup.text(one)}</li>" for one in found["reasons"])
    why = f"<p>{markup.text(words('info.why'))}</p><ul>{reasons}</ul>" if reasons else ""
    kind = markup.text(found["verdict"])
    return f'<div data-verdict="{kind}" role="status"><strong>{markup.text(text)}</strong>{why}</div>'


def _beside(data: bytes, drawn: str) -> Any:
    """The slider with both pictures, where they have one size."""
    before = Image.fromarray(images.open_image(data, name="picture"))
    after = Image.open(io.BytesIO(base64.b64decode(drawn)))  # the server's own
    if before.size != after.size:
        return gr.ImageSlider(visible=False)
    return gr.ImageSlider((before, after.convert("RGB")), visible=True)
