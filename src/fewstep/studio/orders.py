"""From the form of Create to what is asked of the server: the one place that makes an order.

`FIELDS` are the names of the form's components, which are those of ``GenerateBody`` of
`fewstep.server.schemas.native` where it has them. ``frame.shared["create"]`` is a `Form`: an event takes
``form.inputs`` and gives what it gets to ``form.body(*values)``::

    form: Form = frame.shared["create"]

    async def draw(request: gr.Request, *values: Any) -> ...:  # Gradio finds the request only in front
        body = form.body(*values)          # fields of GenerateBody, what is not set is left out
        await api_of(request).post("/api/v1/jobs", body)

    button.click(draw, form.inputs, ...)

``form.components`` has the components by name; ``form.values(*values)`` what stands in them, by name. How
values come into the form: ``frame.shared["create.fill"]``, see `fewstep.studio.tabs.create`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from fewstep.studio import adapters, styles

if TYPE_CHECKING:
    from gradio.components import Component

FIELDS: Final = (
    "prompt", "negative_prompt", "model", "quality", "student", "num_inference_steps", "solver",
    "guidance_scale", "guidance_rescale", "eta", "clip_skip", "emphasis", "insist", "deterministic", "seed",
    "n", "width", "height", "variation_seed", "variation_strength", "adapters", "styles", "upscale",
)  # fmt: skip
"""Of the form. ``quality`` is the dial's stop, which sets student, steps, solver and guidance and is no part
of the order itself; ``styles`` are names; ``adapters`` a list of {name, weight}; ``upscale`` a name."""
OF_MODEL: Final = (
    "student", "num_inference_steps", "solver", "guidance_scale", "guidance_rescale", "eta", "clip_skip",
    "width", "height",
)  # fmt: skip
"""Those that are set anew when another model is chosen."""
_WHOLE: Final = frozenset(
    {
        "num_inference_steps", "clip_skip", "seed", "n", "width", "height", "variation_seed",
    }
)  # fmt: skip
_AS_IT_IS: Final = (
    "negative_prompt", "model", "student", "num_inference_steps", "solver", "guidance_scale",
    "guidance_rescale", "eta", "clip_skip", "emphasis", "insist", "deterministic", "seed", "n", "width",
    "height", "variation_seed", "variation_strength",
)  # fmt: skip
_USUAL: Final[Mapping[str, Any]] = {
    "emphasis": "original", "insist": False, "deterministic": False, "variation_strength": 0,
}  # fmt: skip
"""Values that say nothing."""
_OWN: Final[Mapping[str, int]] = {
    "seed": 0, "variation_seed": 0, "eta": 0, "width": 1, "height": 1, "num_inference_steps": 1,
}  # fmt: skip
"""A number below this is the model's own, or a random one: a field of numbers cannot be empty at first."""


class Edit(Protocol):
    """What the image input gives: its components, and the fields of an order that they stand for."""

    @property
    def inputs(self) -> list[Component]:
        """Its components."""

    @property
    def fields(self) -> Callable[..., dict[str, Any]]:
        """Their values to fields of ``GenerateBody``; none without a picture."""


@dataclass(slots=True)
class Form:
    """The form of Create."""

    components: dict[str, Component] = field(default_factory=dict)
    """By name of `FIELDS`, in its order."""
    edit: Edit | None = None

    @property
    def inputs(self) -> list[Component]:
        """Of an event that needs all of the form."""
        return [*self.components.values(), *([] if self.edit is None else self.edit.inputs)]

    def values(self, *values: Any) -> dict[str, Any]:
        """What stands in the form, by name, without the picture."""
        return dict(zip(self.components, values, strict=False))

    def body(self, *values: Any) -> dict[str, Any]:
        """The order that the values of `inputs` stand for."""
        own = self.values(*values)
        picture = {} if self.edit is None else self.edit.fields(*values[len(self.components) :])
        whole = body(own) | picture
        return {name: value for name, value in whole.items() if value is not None}


def body(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``GenerateBody`` for values by name of `FIELDS`; what says nothing is left out.

    Args:
        values: what is missing or None is the model's own.

    Raises:
        UsageError: the styles make a prompt too long.
    """
    prompt, negative = str(values.get("prompt") or ""), str(values.get("negative_prompt") or "")
    prompt, negative = styles.applied(prompt, negative, values.get("styles"))
    if values.get("guidance_scale") == 1:
        negative = ""  # it has no effect, and its field is greyed
    found: dict[str, Any] = {"kind": "generate", "prompt": prompt}
    for name, value in {**values, "negative_prompt": negative}.items():
        if name not in _AS_IT_IS or value is None or value == "" or value == _USUAL.get(name):
            continue
        if name in _OWN and value < _OWN[name]:
            continue
        found[name] = int(value) if name in _WHOLE else value
    if not values.get("variation_strength"):
        found.pop("variation_seed", None)
    if chosen := adapters.chosen(values.get("adapters")):
        found["adapters"] = chosen
    if (upscaler := values.get("upscale")) and upscaler != "none":
        found["upscale"] = {"name": upscaler}
    return found
