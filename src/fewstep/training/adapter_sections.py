"""Recipes that teach an existing model something from a folder of pictures: a LoRA, all weights, or a word.

What is None is chosen from the base when the run begins: size, times and targets.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fewstep.training.sections import (
    Ema,
    Fraction,
    Images,
    LoopRecipe,
    NoiseLevels,
    NonNegative,
    Optimiser,
    Positive,
    Schedule,
    Section,
    Weighting,
)

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""What an adapter may be called: it is the name of a file, and stands in prompts between colons."""


class Base(Section):
    """The model that is taught."""

    path: str
    """A pipeline folder, or a single file with a whole model."""
    unet: str | None = None
    """A file or folder with a denoiser in place of its own."""
    vae: str | None = None
    """A file or folder with an autoencoder in place of its own."""
    student: str | None = None
    """Name of a student of the folder, which is taught in place of the base, at the student's own times."""


class Pictures(Section):
    """How a folder's pictures and captions become samples; all is encoded once, when the run begins."""

    width: Images | None = None
    """Pixels; the base's native size when not given."""
    height: Images | None = None
    crop: Literal["centre", "random"] = "centre"
    """What is cut off a picture of another shape; ``random`` keeps ``crops`` different cuts of each."""
    crops: Images = 4
    mirror: bool = False
    """Mirror half of the samples, but not those whose caption names a side or something written."""
    repeats: Images = 1
    """How often each picture counts beside the class pictures of ``prior``."""
    trigger: str | None = None
    """Word that calls what is learnt; put before captions that do not have it."""
    caption: str | None = None
    """Caption of pictures that have none; ``{trigger}`` in it is filled in."""
    limit: Fraction = 0.2
    """Highest share of pictures that cannot be read; they are reported and left out."""

    @model_validator(mode="after")
    def _plain_trigger(self) -> Self:
        trigger = self.trigger
        if trigger is not None and (trigger.strip() != trigger or not trigger or set(trigger) & set("<>:\n")):
            raise ValueError(f"trigger is {trigger!r}: give a word without <, > and :, no spaces around it")
        return self


class LoraSection(Section):
    """Size and place of the LoRA: `fewstep.models.adapters.LoraSpec`."""

    rank: Images = 16
    alpha: Positive | None = None
    """None: the rank, so that the scale is 1."""
    targets: tuple[str, ...] | None = None
    """None: ``unet`` on a U-Net, ``attention`` on a transformer."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the layers' inputs that the LoRA does not see in a step."""
    text_encoder: bool = False
    """Teach the CLIP text encoders too. Text is then encoded in every step."""
    text_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")


class Prior(Section):
    """Class pictures that keep the rest as it was: DreamBooth (Ruiz 2022, arXiv 2208.12242, equation 2)."""

    prompt: str
    """Their caption: the class, without the trigger."""
    path: str | None = None
    """Folder with pictures of the class; drawn with the base when not given."""
    images: Images = 32
    """How many are drawn, or taken of the folder."""
    weight: Positive = 1.0
    """Of their loss: lambda of the equation."""


class AdapterObjective(Section):
    """Denoising as the base was trained; prediction type and schedule are the base's."""

    noise_levels: NoiseLevels | None = None
    """None: uniform on a table, logit-normal on a flow, a few-step model's own times."""
    weighting: Weighting = Weighting()
    caption_dropout: Fraction = 0.05


class AdapterRecipe(LoopRecipe):
    """What the three kinds have in common."""

    name: str
    """Of the file that the run leaves."""
    licence: str | None = None
    """Of what is learnt, as the header shall say it: that of the pictures, often."""
    base: Base
    pictures: Pictures = Pictures()
    objective: AdapterObjective = AdapterObjective()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    ema: Ema | None = None
    strengths: tuple[NonNegative, ...] = (0.0, 0.5, 1.0)
    """Columns of the sample grids."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if NAME.fullmatch(self.name) is None:
            raise ValueError(
                f"name is {self.name!r:.100}: give letters, digits, '.', '_' and '-', at most 100"
            )
        if self.data.source != "folder" or self.data.options:
            raise ValueError("data.source: adapters learn from a folder; the rest stands under pictures")
        return self


class LoraRecipe(AdapterRecipe):
    """Trains a low-rank adapter and leaves ``NAME.safetensors``."""

    kind: Literal["lora"]
    lora: LoraSection = LoraSection()
    prior: Prior | None = None


class DreamboothRecipe(AdapterRecipe):
    """Fine-tunes all weights of the denoiser and leaves a pipeline folder ``NAME``."""

    kind: Literal["dreambooth"]
    optimiser: Optimiser = Optimiser(learning_rate=5e-6)
    strengths: tuple[NonNegative, ...] = (1.0,)
    prior: Prior | None = None


class TextualInversionRecipe(AdapterRecipe):
    """Trains the vectors of a new word and leaves ``NAME.safetensors``."""

    kind: Literal["textual_inversion"]
    optimiser: Optimiser = Optimiser(learning_rate=5e-3)
    vectors: Annotated[int, Field(ge=1, le=32)] = 4
    start: str = "*"
    """Words whose vectors it starts from, repeated as often as it takes."""
    strengths: tuple[NonNegative, ...] = (0.0, 1.0)

    @model_validator(mode="after")
    def _some_word(self) -> Self:
        if self.pictures.trigger is None:
            raise ValueError("pictures.trigger is missing: say which word is learnt")
        if any(strength not in (0.0, 1.0) for strength in self.strengths):
            raise ValueError("strengths: a word is there or not; give 0 and 1 only")
        return self
