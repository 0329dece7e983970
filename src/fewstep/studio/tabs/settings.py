"""Settings: of the studio, kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import gradio as gr
from gradio.components import Component
from gradio.context import Context

from fewstep.studio import preferred
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.telling import told
from fewstep.studio.words import COOKIE, Words, texts

NAMES: Final = (
    "model", "width", "height", "n", "stop", "live", "save", "format", "quality", "language", "theme", "page",
)  # fmt: skip
"""Of ``/api/v1/settings``, in the order of the page."""
_SIZE: Final = ("width", "height")
_STOPS: Final = ("1", "2", "4", "8", "teacher")
_ALSO: Final[Mapping[str, str]] = {
    "model": "checkpoint", "width": "size 尺寸", "height": "size 尺寸", "n": "count batch number 数量",
    "stop": "steps speed fast 步数", "live": "preview 实时", "save": "store keep 保存",
    "format": "png jpg jpeg webp file 文件", "quality": "jpg jpeg webp compression 压缩",
    "language": "english chinese 中文", "theme": "dark light mode 深色 浅色", "page": "history 历史",
}  # fmt: skip
"""Further words by which a setting is found."""
_HOW: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}
_THEME: Final = """(theme) => {
  if (theme === "auto") localStorage.removeItem("fewstep-theme");
  else localStorage.setItem("fewstep-theme", theme);
  const dark = theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
  document.body.classList.toggle("dark", dark);
}"""
_LANGUAGE: Final = """(language) => {
  const keep = language === "auto" ? "COOKIE=;max-age=0" : `COOKIE=${language};max-age=31536000`;
  document.cookie = `${keep};path=/;samesite=strict`;
  const wanted = language === "auto" ? (navigator.language.startsWith("zh") ? "zh" : "en") : language;
  if (wanted !== "HERE") location.href = `../${wanted}/`;
}"""
_LIVE: Final = """(on) => {
  const toggle = document.querySelector("#live [data-part=toggle]");
  if (toggle && (toggle.getAttribute("aria-checked") === "true") !== on) toggle.click();
}"""
_OPENED: Final = """(language, theme, live) => {
  // Of the server, until this browser has a choice of its own.
  if (theme !== "auto" && !localStorage.getItem("fewstep-theme"))
    document.body.classList.toggle("dark", theme === "dark");
  if (!live && !localStorage.getItem("fewstep-live")) { (LIVE)(live); }
  if (language !== "auto" && !document.cookie.includes("COOKIE=")) { (LANGUAGE)(language); }
}"""


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    search = gr.Textbox(
        value="", label=words("settings.search"), placeholder=words("settings.search_hint"), max_lines=1,
        elem_id="settings-search",
    )  # fmt: skip
    gr.Markdown(words("settings.intro"))
    state = gr.HTML("", elem_id="settings-state")
    with gr.Column(elem_id="settings-list"):
        parts = _components(words)
    nothing = gr.Markdown(words("settings.none"), visible=False, elem_id="settings-none")
    reset = gr.Button(words("settings.reset"), size="sm", elem_id="settings-reset")
    own = list(parts.values())

    def found(typed: str) -> list[Any]:
        visible = [matches(name, typed) for name in NAMES]
        return [*(gr.update(visible=one) for one in visible), gr.update(visible=not any(visible))]

    search.change(found, [search], [*own, nothing], trigger_mode="always_last", **_HOW)
    _changing(frame, parts, state, reset)


def matches(name: str, typed: str) -> bool:
    """Whether a setting is found by all words that were typed, in any language."""
    known = [both for key in (name, f"{name}_info") if (both := texts("settings").get(key))]
    searched = " ".join([name, _ALSO[name], *(one for both in known for one in both.values())]).lower()
    return all(word in searched for word in typed.lower().split())


def _components(words: Words) -> dict[str, Any]:
    def label(name: str) -> dict[str, Any]:
        info = words(f"settings.{name}_info") if f"{name}_info" in texts("settings") else None
        return {"label": words(f"settings.{name}"), "info": info, "elem_id": f"settings-{name}"}

    steps = [(words("settings.usual"), ""), (words("settings.stop_one"), "1")]
    steps += [(words("settings.stop_steps", n=n), n) for n in _STOPS[1:-1]]
    steps.append((words("settings.teacher"), "teacher"))
    side: dict[str, Any] = {"precision": 0, "minimum": 0, "maximum": 16384, "step": 8}
    native = {"info": words("settings.native")}
    kinds = [("PNG", "png"), ("JPEG", "jpg"), ("WebP", "webp")]
    languages = [(words("settings.browser"), "auto"), ("English", "en"), ("中文", "zh")]
    named = {"auto": "system", "light": "light", "dark": "dark"}
    themes = [(words(f"settings.{name}"), value) for value, name in named.items()]
    return {
        "model": gr.Dropdown([(words("settings.own"), "")], value="", **label("model")),
        "width": gr.Number(0, **side, **label("width") | native),
        "height": gr.Number(0, **side, **label("height") | native),
        "n": gr.Slider(1, 16, 4, step=1, **label("n")),
        "stop": gr.Radio(steps, value="", **label("stop")),
        "live": gr.Checkbox(True, **label("live")),
        "save": gr.Checkbox(True, **label("save")),
        "format": gr.Radio(kinds, value="png", **label("format")),
        "quality": gr.Slider(1, 100, 95, step=1, **label("quality")),
        "language": gr.Radio(languages, value="auto", **label("language")),
        "theme": gr.Radio(themes, value="auto", **label("theme")),
        "page": gr.Slider(12, 200, 48, step=4, **label("page")),
    }


def _changing(frame: Frame, parts: Mapping[str, Any], state: gr.HTML, reset: gr.Button) -> None:
    """Every change goes to the server at once; what it refuses is put back as it was."""
    words, own = frame.words, list(parts.values())
    form, filled = frame.shared.get("create"), frame.shared.get("create.filled", [])
    shown = [state, *own, *filled]

    async def begun(api: Api, request: gr.Request, changed: Sequence[str], now: Sequence[Any]) -> list[Any]:
        """The form of Create with what was changed."""
        names = tuple(name for name in preferred.FORM if name in changed)
        if not names or form is None:
            return [gr.skip()] * len(filled)
        wanted = form.values(*now) | await preferred.form(api, names)
        result: list[Any] = await frame.shared["create.fill"](wanted, request)
        return result

    async def kept(request: gr.Request, body: Mapping[str, Any], said: str, now: Sequence[Any]) -> list[Any]:
        api = api_of(request)
        try:
            answer = await api.send("PATCH", "/api/v1/settings", json=body)
        except ApiError as error:
            before = (await api.get("/api/v1/settings"))["values"]
            gr.Warning(str(error))
            line = f"<p role='alert'>{text(error)}</p>"
            return [line, *await _values(api, before, words), *[gr.skip()] * len(filled)]
        line = f"<p role='status'>{text(said)}</p>"
        values = await _values(api, answer["values"], words)
        return [line, *values, *await begun(api, request, list(body), now)]

    async def held(request: gr.Request) -> dict[str, Any]:
        """The size as it is: a field that is only left was not changed, and may not put anything back."""
        before = (await api_of(request).get("/api/v1/settings"))["values"]
        return {one: before[one] for one in _SIZE}

    def changed(name: str) -> Any:
        @told
        async def change(request: gr.Request, *given: Any) -> list[Any]:
            mine, now = given[: len(NAMES)], given[len(NAMES) :]
            values = dict(zip(NAMES, mine, strict=True))
            body = body_of(name, values)
            if body is None or (name in _SIZE and body == await held(request)):
                return [gr.skip()] * len(shown)
            return await kept(request, body, words("settings.saved", name=words(f"settings.{name}")), now)

        return change

    @told
    async def defaults(request: gr.Request, *now: Any) -> list[Any]:
        return await kept(request, dict.fromkeys(NAMES), words("settings.was_reset"), now)

    @told
    async def opened(request: gr.Request) -> list[Any]:
        api = api_of(request)
        return await _values(api, (await api.get("/api/v1/settings"))["values"], words)

    effects = {
        "theme": _THEME, "live": _LIVE,
        "language": _LANGUAGE.replace("COOKIE", COOKIE).replace("HERE", words.language),
    }  # fmt: skip
    inputs: list[Component] = [*own, *(form.components.values() if form is not None else ())]
    for name, part in parts.items():
        triggers = [part.input]
        if name in _SIZE:
            triggers = [part.submit, part.blur]
        elif isinstance(part, gr.Slider):
            triggers = [part.release]
        event = gr.on(triggers, changed(name), inputs, shown, **_HOW)
        if name in effects:
            event.success(None, [part], None, js=effects[name], api_visibility="private")
    again = reset.click(defaults, inputs[len(own) :], shown, **_HOW)
    for name, script in effects.items():
        again.success(None, [parts[name]], None, js=script, api_visibility="private")
    assert frame.tab is not None and Context.root_block is not None
    frame.tab.select(opened, None, own, **_HOW)
    first = Context.root_block.load(opened, None, own, **_HOW)
    script = _OPENED.replace("LIVE", _LIVE).replace("LANGUAGE", effects["language"]).replace("COOKIE", COOKIE)
    first.success(
        None, [parts[name] for name in ("language", "theme", "live")], None, js=script,
        api_visibility="private",
    )  # fmt: skip


def body_of(name: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is sent for a change, of the values of all components; None while a size is half given."""
    if name in _SIZE:
        width, height = (int(values[one] or 0) for one in _SIZE)
        if (width == 0) != (height == 0):
            return None
        return {"width": width or None, "height": height or None}
    value = values[name]
    return {name: None if value == "" else value}


async def _values(api: Api, values: Mapping[str, Any], words: Words) -> list[Any]:
    """Of the components, by the order of `NAMES`."""
    there = [one["name"] for one in (await api.get("/api/v1/models"))["models"] if not one["draft"]]
    chosen = values["model"] or ""
    names = [*there, *([chosen] if chosen and chosen not in there else [])]
    found = [
        gr.Dropdown([(words("settings.own"), ""), *((one, one) for one in names)], value=chosen),
        values["width"] or 0, values["height"] or 0, values["n"], values["stop"] or "",
    ]  # fmt: skip
    return [*found, *(values[name] for name in NAMES[len(found) :])]
