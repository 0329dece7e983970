"""The form of Create: its components, and what fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

import gradio as gr

from fewstep.prompt.infotext import SAMPLERS
from fewstep.studio import adapters, dial, styles
from fewstep.studio.client import Api, ApiError
from fewstep.studio.markup import text
from fewstep.studio.orders import FIELDS
from fewstep.studio.tabs import create_styles
from fewstep.studio.words import Words

EMPHASES: Final = ("original", "no_norm", "ignore", "none")
_USUAL: Final[Mapping[str, Any]] = {
    "prompt": "", "negative_prompt": "", "n": 4, "seed": -1, "guidance_rescale": 0.0, "eta": -1,
    "clip_skip": 0, "emphasis": "original", "insist": False, "deterministic": False, "variation_seed": -1,
    "variation_strength": 0.0, "adapters": (), "styles": (), "upscale": "none",
}  # fmt: skip
"""What stands in a form that nobody has filled. The rest is the model's."""


def top(words: Words) -> gr.Textbox:
    """The prompt."""
    return gr.Textbox(
        label=words("create.prompt"), placeholder=words("create.prompt_hint"), lines=2, max_lines=6,
        autofocus=True, elem_id="prompt",
    )  # fmt: skip


def common(words: Words) -> dict[str, Any]:
    """What is wanted often."""
    made: dict[str, Any] = {}
    made["quality"] = gr.Radio(
        [], label=words("create.quality"), info=words("create.quality_info"), elem_id="create-quality"
    )
    with gr.Row():
        made["n"] = gr.Slider(
            1, 16, value=4, step=1, precision=0, label=words("create.count"), elem_id="create-count",
            min_width=140, buttons=[],
        )  # fmt: skip
        made["seed"] = gr.Number(
            -1, precision=0, minimum=-1, label=words("create.seed"), info=words("create.seed_random"),
            elem_id="create-seed", min_width=120,
        )  # fmt: skip
    return made


def further(words: Words) -> dict[str, Any]:
    """What is chosen less often."""
    made: dict[str, Any] = {}
    with gr.Row():
        made["model"] = gr.Dropdown([], label=words("create.model"), elem_id="create-model", min_width=150)
        for name in ("width", "height"):
            made[name] = gr.Number(
                0, precision=0, minimum=0, step=8, label=words(f"create.{name}"), min_width=90,
                elem_id=f"create-{name}",
            )  # fmt: skip
    made["styles"] = gr.Dropdown(
        [], multiselect=True, label=words("create.styles"), info=words("create.styles_info"),
        elem_id="create-styles",
    )  # fmt: skip
    made["style"] = create_styles.build(words)
    made["negative_prompt"] = gr.Textbox(
        label=words("create.negative"), lines=1, max_lines=4, elem_id="create-negative"
    )
    return made


def gallery(words: Words) -> gr.HTML:
    """The adapters' cards."""
    return gr.HTML(
        {"html": "", "chosen": []}, html_template=adapters.TEMPLATE, css_template=_asset("adapters.css"),
        js_on_load=_asset("adapters.js"), elem_id="create-adapters", padding=False, apply_default_css=False,
    )  # fmt: skip


def advanced(words: Words) -> dict[str, Any]:
    """The raw settings."""
    made: dict[str, Any] = {}

    def number(name: str, value: float, **how: Any) -> gr.Number:
        place = f"create-{name.replace('_', '-')}"
        return gr.Number(value, label=words(f"create.{name}"), elem_id=place, min_width=110, **how)

    with gr.Row():
        made["student"] = gr.Dropdown(
            [], label=words("create.student"), elem_id="create-student", min_width=140
        )
        made["num_inference_steps"] = number("steps_setting", 0, precision=0, minimum=0, step=1)
        made["solver"] = gr.Dropdown(
            [(shown, name) for name, shown in SAMPLERS.items()], value=None, label=words("create.solver"),
            elem_id="create-solver", min_width=140,
        )  # fmt: skip
    with gr.Row():
        made["guidance_scale"] = number("guidance", 1.0, minimum=0, maximum=100, step=0.5)
        made["guidance_rescale"] = number("rescale", 0.0, minimum=0, maximum=1, step=0.05)
        made["eta"] = number("eta", -1, minimum=-1, maximum=10, step=0.1, info=words("create.own_number"))
        made["clip_skip"] = number("clip_skip", 0, precision=0, minimum=0, maximum=12, step=1)
    with gr.Row():
        made["variation_seed"] = number(
            "variation_seed", -1, precision=0, minimum=-1, info=words("create.variation_seed_info")
        )
        made["variation_strength"] = gr.Slider(
            0, 1, value=0, step=0.01, label=words("create.variation_strength"),
            elem_id="create-variation-strength", min_width=160, buttons=[],
        )  # fmt: skip
    with gr.Row():
        made["emphasis"] = gr.Dropdown(
            [(words(f"create.emphasis_{name}"), name) for name in EMPHASES], value="original",
            label=words("create.emphasis"), elem_id="create-emphasis", min_width=140,
        )  # fmt: skip
        made["upscale"] = gr.Dropdown(
            [(words("create.upscale_none"), "none"), (words("create.upscale_auto"), "auto")], value="none",
            label=words("create.upscale"), elem_id="create-upscale", min_width=140,
        )  # fmt: skip
    made["insist"] = gr.Checkbox(
        label=words("create.insist"), info=words("create.insist_info"), elem_id="create-insist"
    )
    made["deterministic"] = gr.Checkbox(
        label=words("create.deterministic"), info=words("create.deterministic_info"),
        elem_id="create-deterministic",
    )  # fmt: skip
    return made


async def facts(api: Api, name: str | None) -> tuple[dict[str, Any], list[str]]:
    """A model as the server describes it, and the names of all; the default one where there is none such."""
    found = (await api.get("/api/v1/models"))["models"]
    names = [one["name"] for one in found]
    model: dict[str, Any]
    # A model may be asked for in one of its forms: ``emoji-128:pipeline``.
    if name and (name in names or name.rpartition(":")[0] in names):
        try:
            model = await api.get(f"/api/v1/models/{quote(name, safe='')}")
            return model, names
        except ApiError as error:
            if error.status != 404 or name in names:
                raise
    usual = next((one["name"] for one in found if one["default"]), names[0] if names else "")
    model = await api.get(f"/api/v1/models/{quote(usual, safe='')}")
    return model, names


def replaced(words: Words, wanted: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """HTML that says which model or student settings name that is not here; nothing where all are."""
    name, student = wanted.get("model"), wanted.get("student")
    if name and name != model["name"]:
        said = words("create.replaced", wanted=str(name)[:100], name=model["name"])
    elif student and student not in (dial.TEACHER, *(one["name"] for one in model["students"])):
        used = dial.usual(model).student
        used = words("create.teacher") if used == dial.TEACHER else used
        said = words("create.replaced_student", wanted=str(student)[:100], name=model["name"], used=used)
    else:
        return ""
    return f'<p class="create-warning" role="status">{text(said)}</p>'


async def filled(words: Words, api: Api, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Updates of the form's components by name, so that it says what is wanted, and the facts of its model.

    Args:
        words: texts.
        api: of the visitor.
        wanted: values by name; what is missing is the model's own, or the usual.

    Raises:
        ApiError: the server does not answer.
    """
    model, names = await facts(api, wanted.get("model"))
    values = {**_USUAL, "width": model["native_width"], "height": model["native_height"]}
    values |= dial.usual(model).values()
    values |= {name: value for name, value in wanted.items() if name in FIELDS and value is not None}
    values["model"] = model["name"]
    students = [one["name"] for one in model["students"]]
    if values["student"] not in (*students, dial.TEACHER):
        values |= dial.usual(model).values()
    solvers = list(SAMPLERS)
    if values["solver"] not in solvers:
        values["solver"] = model["solver"]
    known = await styles.known(api)
    there = await adapters.listed(api, model["name"])
    updates: dict[str, Any] = {name: gr.update(value=values[name]) for name in values if name in FIELDS}
    updates["model"] = gr.update(choices=[*dict.fromkeys([*names, model["name"]])], value=model["name"])
    updates["student"] = gr.update(
        choices=[(words("create.teacher"), dial.TEACHER), *students], value=values["student"]
    )
    stop = dial.matching(model, values)
    updates["quality"] = gr.update(choices=dial.choices(words, model), value=stop.name if stop else None)
    updates["styles"] = gr.update(choices=styles.choices(known), value=styles.among(known, values["styles"]))
    updates["adapters"] = adapters.value(words, there, adapters.chosen(values["adapters"]))
    updates["n"] = gr.update(value=min(max(int(values["n"]), 1), 16))
    updates["clip_skip"] = gr.update(
        value=min(int(values["clip_skip"]), model["max_clip_skip"]), maximum=max(model["max_clip_skip"], 0),
        interactive=model["max_clip_skip"] > 0,
    )  # fmt: skip
    updates["negative_prompt"] = negative(words, model, values) | {"value": values["negative_prompt"]}
    return updates, model


def relabelled(words: Words, model: Mapping[str, Any] | None) -> dict[str, Any]:
    """The dial's update when times were measured: labels alone, as another stop may be chosen meanwhile."""
    update: dict[str, Any] = gr.skip() if model is None else gr.update(choices=dial.choices(words, model))
    return update


def negative(words: Words, model: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The negative prompt's update: greyed, with the reason, where it has no effect."""
    contract = dial.contract_of(model, values.get("student"))
    reason = ""
    if contract["guidance"] == "off" or values.get("student") not in (None, "", dial.TEACHER):
        reason = words("create.negative_student")
    elif values.get("guidance_scale") == 1:
        reason = words("create.negative_unguided")
    elif not contract["negative_prompt_effective"]:
        reason = words("create.negative_model")
    update: dict[str, Any] = gr.update(interactive=not reason, info=reason or words("create.negative_info"))
    return update


def told(words: Words, model: Mapping[str, Any] | None, values: Mapping[str, Any]) -> str:
    """What the contract of whoever draws says, as plain sentences of Markdown without markup from outside."""
    if not model:
        return ""
    contract = dial.contract_of(model, values.get("student"))
    allowed = contract["allowed_steps"]
    span = contract["guidance_range"]
    lines = [
        words("create.contract_steps_any", n=contract["num_inference_steps"])
        if allowed is None
        else words("create.contract_steps", steps=", ".join(map(str, allowed))),
        words("create.contract_solver", solver=_shown(contract["solver"]), spacing=contract["spacing"]),
    ]
    if contract["guidance"] == "off":
        lines.append(words("create.contract_unguided"))
    elif span is None:
        lines.append(words("create.contract_guidance", scale=f"{contract['guidance_scale']:g}"))
    else:
        low, high = span
        lines.append(
            words(
                "create.contract_range",
                scale=f"{contract['guidance_scale']:g}",
                low=f"{low:g}",
                high=f"{high:g}",
            )
        )
    lines.append(words("create.contract_method", method=contract["method"]))
    return " ".join(lines)


def _asset(name: str) -> str:
    return resources.files("fewstep.studio").joinpath("assets", name).read_text("utf-8")


def _shown(solver: str) -> str:
    return SAMPLERS.get(solver, solver)


def in_order(updates: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Updates for components in their order; what has none stays."""
    return [updates.get(name, gr.skip()) for name in names]
