"""Merger: models merged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.studio import working
from fewstep.studio.client import Api, ApiError, api_of
from fewstep.studio.frame import Frame
from fewstep.studio.markup import text
from fewstep.studio.telling import told
from fewstep.studio.words import Words

NEEDS: Final[Mapping[str, int]] = {
    "weighted-sum": 2, "add-difference": 3, "slerp": 2, "make-few-step": 3, "no-interpolation": 1,
}  # fmt: skip
"""Modes of ``MergeBody``, and how many models each takes."""
_FEW: Final = "make-few-step"
_LETTERS: Final = ("a", "b", "c")
_DRAFTS: Final = "draft-"
_HOW: Final[dict[str, Any]] = {"show_progress": "hidden", "api_visibility": "private"}


def build(frame: Frame) -> None:
    """The tab."""
    words = frame.words
    gr.Markdown(words("merger.intro"))
    empty = gr.Markdown(words("merger.no_models"), visible=False, elem_id="merger-empty")
    mode = gr.Radio(
        [(words(f"merger.mode_{name}"), name) for name in NEEDS], value="weighted-sum",
        label=words("merger.mode"), elem_id="merger-mode",
    )  # fmt: skip
    formula = gr.Markdown(words("merger.formula_weighted-sum"), elem_id="merger-formula")
    with gr.Row():
        models = [
            gr.Dropdown(
                [], label=words(f"merger.{letter}"), elem_id=f"merger-{letter}", visible=letter != "c",
                min_width=160, allow_custom_value=False,
            )
            for letter in _LETTERS
        ]  # fmt: skip
    ratio = gr.Slider(0, 1, 0.5, step=0.05, label=words("merger.ratio"), elem_id="merger-ratio")
    with gr.Accordion(words("merger.more"), open=False, elem_id="merger-more"), gr.Row():
        blocks = gr.Textbox(
            value="", label=words("merger.blocks"), info=words("merger.blocks_info"), scale=2,
            max_length=2000, placeholder="IN00-IN03=0.2, M00=1, OUT00=0, BASE=0.3, VAE=0",
            elem_id="merger-blocks",
        )  # fmt: skip
        dtype = gr.Dropdown(
            [(words("merger.dtype_a"), ""), "fp32", "fp16", "bf16"], value="", label=words("merger.dtype"),
            elem_id="merger-dtype", min_width=120,
        )  # fmt: skip
        vae = gr.Dropdown(
            [(words("merger.vae_none"), "")], value="", label=words("merger.vae"), elem_id="merger-vae",
            min_width=160,
        )  # fmt: skip
    with gr.Row():
        prompt = gr.Textbox(
            words("merger.prompt_value"), label=words("merger.prompt"), scale=3, elem_id="merger-prompt"
        )
        seed = gr.Number(1, label=words("merger.seed"), precision=0, minimum=0, min_width=90,
                         elem_id="merger-seed")  # fmt: skip
        steps = gr.Number(
            0, label=words("merger.steps"), info=words("merger.steps_info"), precision=0, minimum=0,
            min_width=90, elem_id="merger-steps",
        )  # fmt: skip
    with gr.Row():
        attempt = gr.Button(words("merger.try"), variant="primary", elem_id="merger-try")
        cancel = gr.Button(words("merger.cancel"), variant="stop", visible=False, elem_id="merger-cancel")
    state = gr.HTML("", elem_id="merger-state", css_template=_asset("library.css"))
    pictures = gr.HTML("", elem_id="merger-pictures", css_template=_asset("merger.css"))
    with gr.Row():
        name = gr.Textbox(
            value="", label=words("merger.name"), info=words("merger.name_info"), max_lines=1, max_length=64,
            elem_id="merger-name", scale=2,
        )  # fmt: skip
        keep = gr.Button(words("merger.keep"), variant="primary", visible=False, elem_id="merger-keep")
        discard = gr.Button(words("merger.discard"), visible=False, elem_id="merger-discard")
        run = gr.Button(words("merger.run"), elem_id="merger-run")
    job = gr.State(None)
    choices = [empty, *models, vae]
    given = [mode, *models, ratio, blocks, dtype, vae]
    shown = [job, state, pictures, attempt, cancel, run, keep, discard]

    def switched(mode: str) -> list[Any]:
        count = NEEDS[mode]
        labels = [words(f"merger.{letter}{'_few' if mode == _FEW else ''}") for letter in _LETTERS]
        return [
            words(f"merger.formula_{mode}"),
            *(gr.Dropdown(label=labels[place], visible=place < count) for place in range(3)),
            gr.Slider(value=1.0 if mode == _FEW else 0.5, visible=count > 1),
        ]

    @told
    async def entered(request: gr.Request, *chosen: Any) -> list[Any]:
        return await _choices(api_of(request), words, chosen)

    async def follow(api: Api, job_id: str, trial: Sequence[Any]) -> AsyncIterator[list[Any]]:
        """Until the merge has ended, and then the pictures of a trial, one after the other."""
        draft = bool((await api.get(f"/api/v1/jobs/{job_id}/order"))["order"]["draft"])
        async for now in api.watch(job_id):
            going = now["state"] in ("queued", "running")
            yield [job_id, working.line(now, words), "", *_buttons(going, draft and now["state"] == "done")]
            if now["state"] != "done":
                continue
            made = now["result"]["model"]
            if not draft:
                said = words("merger.kept", name=made)
                yield [None, f"<p role='status'>{text(said)}</p>", *[gr.skip()] * 6]
                continue
            order = (await api.get(f"/api/v1/jobs/{job_id}/order"))["order"]
            named = [*zip("ABC", order["models"], strict=False), (words("merger.result"), made)]
            async for line, drawn in _trial(api, words, named, trial):
                yield [job_id, line, drawn, *[gr.skip()] * 5]

    async def begin(
        request: gr.Request, body: dict[str, Any], trial: Sequence[Any]
    ) -> AsyncIterator[list[Any]]:
        api = api_of(request)
        async for changes in follow(api, (await api.post("/api/v1/jobs", body))["id"], trial):
            yield changes

    @told
    async def tried(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        *form, prompt, seed, steps, before = values
        body = body_of(form, "draft", words) | {"draft": True}
        await _dropped(api_of(request), before)
        async for changes in begin(request, body, (prompt, seed, steps)):
            yield changes

    @told
    async def merged(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        *form, name = values
        if not name.strip():
            raise gr.Error(words("merger.named"), print_exception=False)
        async for changes in begin(request, body_of(form, name.strip(), words), ()):
            yield changes

    @told
    async def kept(request: gr.Request, job_id: str | None, name: str) -> list[Any]:
        if not name.strip():
            raise gr.Error(words("merger.named"), print_exception=False)
        answer = await api_of(request).post(f"/api/v1/jobs/{job_id}/keep", {"name": name.strip()})
        line = f"<p role='status'>{text(words('merger.kept', name=answer['model']))}</p>"
        return [None, line, gr.skip(), *_buttons(False, False)]

    @told
    async def discarded(request: gr.Request, job_id: str | None) -> list[Any]:
        await api_of(request).post(f"/api/v1/jobs/{job_id}/discard")
        line = f"<p role='status'>{text(words('merger.discarded'))}</p>"
        return [None, line, "", *_buttons(False, False)]

    @told
    async def stopped(request: gr.Request, job_id: str | None) -> None:
        if job_id:
            await api_of(request).post(f"/api/v1/jobs/{job_id}/cancel")

    @told
    async def attach(request: gr.Request, job_id: str | None, *trial: Any) -> AsyncIterator[list[Any]]:
        """After a reload: the merge that goes on, or the trial that is neither kept nor discarded."""
        api = api_of(request)
        jobs = (await api.get("/api/v1/jobs", kind="merge", limit=1))["jobs"]
        there = {one["name"] for one in (await api.get("/api/v1/models"))["models"] if one["draft"]}
        last = jobs[0] if jobs else None
        waiting = last is not None and last["state"] == "done" and last["result"].get("model") in there
        if last is None or job_id is not None or not (waiting or last["state"] in ("queued", "running")):
            yield [gr.skip()] * len(shown)  # without any values Gradio would empty the components
            return
        async for changes in follow(api, last["id"], trial):
            yield changes

    mode.change(switched, [mode], [formula, *models, ratio], **_HOW)
    assert frame.tab is not None
    frame.tab.select(entered, [*models, vae], choices, **_HOW)
    attached = frame.tab.select(attach, [job, prompt, seed, steps], shown, trigger_mode="once", **_HOW)
    trying = attempt.click(
        tried, [*given, prompt, seed, steps, job], shown, trigger_mode="once", cancels=[attached], **_HOW
    )
    # What still draws for a trial must not write over what comes after it.
    going: dict[str, Any] = {"cancels": [attached, trying], **_HOW}
    run.click(merged, [*given, name], shown, trigger_mode="once", **going)
    keep.click(kept, [job, name], shown, **going).success(entered, [*models, vae], choices, **_HOW)
    discard.click(discarded, [job], shown, **going)
    cancel.click(stopped, [job], None, **_HOW)


def body_of(form: Sequence[Any], name: str, words: Words) -> dict[str, Any]:
    """The order of a merge.

    Args:
        form: mode, A, B, C, M, blocks, type, autoencoder.
        name: of the result.
        words: texts.

    Raises:
        gr.Error: a model is not chosen.
    """
    mode, *rest = form
    chosen, (ratio, blocks, dtype, vae) = rest[: NEEDS[mode]], rest[3:]
    for letter, model in zip("ABC", chosen, strict=False):
        if not model:
            raise gr.Error(words("merger.choose", which=letter), print_exception=False)
    body = {"kind": "merge", "name": name, "models": list(chosen), "mode": mode,
            "blocks": blocks.strip() or None, "dtype": dtype or None, "vae": vae or None}  # fmt: skip
    return body | ({"ratio": ratio} if len(chosen) > 1 else {})


async def _trial(
    api: Api, words: Words, models: Sequence[tuple[str, str]], trial: Sequence[Any]
) -> AsyncIterator[tuple[str, str]]:
    """A line of text and the pictures so far: each model once, with the same prompt and seed.

    By the WebUI's route, which keeps no picture where it is told so: the merge has no name yet, and a record
    that names it could not be drawn again.
    """
    prompt, seed, steps = trial
    labels: dict[str, list[str]] = {}
    for letter, name in models:
        labels.setdefault(name, []).append(letter)
    figures: list[str] = []
    for name, letters in labels.items():
        label = ", ".join(letters)
        yield f"<p role='status'>{text(words('merger.drawing', name=name))}</p>", "".join(figures)
        caption = label if name.startswith(_DRAFTS) else f"{label}: {name}"
        try:
            facts = await api.get(f"/api/v1/models/{quote(name, safe='')}")
            answer = await api.post("/sdapi/v1/txt2img", {
                "prompt": prompt, "seed": int(seed or 0), "width": facts["native_width"],
                "height": facts["native_height"], "do_not_save_samples": True,
                "override_settings": {"sd_model_checkpoint": name, "samples_format": "png"},
                **({"steps": int(steps)} if steps else {}),
            })  # fmt: skip
            inside = f"<img src='data:image/png;base64,{text(answer['images'][0])}' alt='{text(caption)}'>"
        except ApiError as error:
            inside = f"<p class='failed'>{text(words('merger.not_drawn', name=label, why=error))}</p>"
        figures.append(f"<figure>{inside}<figcaption>{text(caption)}</figcaption></figure>")
    yield f"<p role='status'>{text(words('merger.tried'))}</p>", "".join(figures)


async def _choices(api: Api, words: Words, chosen: Sequence[Any]) -> list[Any]:
    """Whether there is nothing, the models that can be merged for A, B and C, and the autoencoder's."""
    listed = (await api.get("/api/v1/models"))["models"]
    names = [
        one["name"] for one in listed if not one["draft"] and {"pipeline", "checkpoint"} & set(one["kinds"])
    ]
    values = [one if one in names else (names[0] if names else None) for one in chosen[:3]]
    vae = chosen[3] if chosen[3] in names else ""
    return [
        gr.Markdown(visible=not names),
        *(gr.Dropdown(names, value=value) for value in values),
        gr.Dropdown([(words("merger.vae_none"), ""), *((one, one) for one in names)], value=vae),
    ]


async def _dropped(api: Api, job_id: str | None) -> None:
    """Discard the trial before this one."""
    if job_id is None:
        return
    try:
        await api.post(f"/api/v1/jobs/{job_id}/discard")
    except ApiError as error:
        if error.status not in (404, 409):  # there is none any more
            raise


def _buttons(going: bool, waiting: bool) -> list[Any]:
    """Try, cancel, merge, keep, discard."""
    return [
        gr.Button(interactive=not going), gr.Button(visible=going), gr.Button(interactive=not going),
        gr.Button(visible=waiting), gr.Button(visible=waiting),
    ]  # fmt: skip


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")
