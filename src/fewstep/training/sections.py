"""The sections of a training recipe: frozen pydantic models with every bound, default and unit.

All lengths of time are counted in images seen, so that a recipe means the same at any batch size.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Images = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversions of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """Where samples come from; ``options`` are those of the source and are checked by it."""

    source: Literal["drawings", "labelled", "cache", "folder", "table", "webdataset", "huggingface", "points"]
    path: str = ""
    """Where they are; needed by every source but points."""
    batch_size: Images = 32
    """Images per optimiser step, over all processes and accumulated parts."""
    options: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _some_path(self) -> Self:
        if not self.path and self.source != "points":
            raise ValueError(f"path is missing: say where the source {self.source} finds its samples")
        return self


class Optimiser(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2) or Muon, and a limit of gradients."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: `fewstep.training.muon` for matrices, AdamW for the rest, at one learning rate."""
    learning_rate: Positive = 1e-4
    momentum: Fraction = 0.95
    """Of muon's matrices."""
    orthogonalise_in: Literal["float32", "bfloat16"] = "float32"
    """Muon's arithmetic; bfloat16 is faster where the processor has it and very slow elsewhere."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip: Positive | None = 1.0
    """Largest gradient norm; null for no limit."""


class Schedule(Section):
    """Learning rate over images seen: a linear warm-up, then ``kind`` down to ``final`` times the rate."""

    kind: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    warmup_images: Annotated[int, Field(ge=0)] = 0
    decay_images: Images | None = None
    """wsd only: length of the last, linear part; a fifth of the run when not given."""
    total_images: Images | None = None
    """End of the schedule; ``stop.images`` when not given."""
    final: Fraction = 0.0


class Ema(Section):
    """Moving average of the weights, with a half-life in images and a ramp at the start of the run."""

    half_life_images: Positive = 20_000.0
    ramp: Positive | None = 0.05
    """The half-life is at most this fraction of the images seen so far; null for no ramp."""


class Stop(Section):
    """When the run is over: at ``images``, or earlier after ``hours`` of this process."""

    images: Images
    hours: Positive | None = None


class Samples(Section):
    """Sample grids: fixed prompts and seeds, drawn with the averaged weights by an injected function."""

    every_images: Images | None = None
    prompts: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    num_inference_steps: Images = 25
    guidance_scale: NonNegative = 4.0
    guidance_rescale: Fraction = 0.0


class Runtime(Section):
    """How the run is carried out; changes speed and safety, not what is learnt (but see ``accumulation``)."""

    device: Literal["auto", "cpu"] = "auto"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    channels_last: bool = True
    gradient_checkpointing: bool = False
    accumulation: Images = 1
    """Parts a batch is split into; the result is equal up to rounding, not bit by bit."""
    threads: Images | None = None
    """CPU threads; bit-equal resuming is promised for the same number only."""
    prefetch: Annotated[int, Field(ge=0)] = 4
    """Batches that a background thread prepares ahead; 0 prepares them in the loop."""
    prefetch_timeout: Positive = 300.0
    """Seconds without a batch after which the run ends with the name of the sample that hangs."""
    checkpoint_minutes: Positive = 10.0
    checkpoint_images: Images | None = None
    keep: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept; at least 2, because one alone may turn out to be broken."""
    log_images: Images = 1_000
    max_nonfinite: Images = 20
    """Optimiser steps in a row that may be skipped for a loss or gradient that is not finite."""


class Adversarial(Section):
    """Hinge PatchGAN that joins after ``start_images``."""

    start_images: Annotated[int, Field(ge=0)]
    weight: Positive = 0.1
    channels: Images = 32
    layers: Images = 3
    optimiser: Optimiser = Optimiser(betas=(0.5, 0.9))


class Equivariance(Section):
    """Decode shrunken latents to the shrunken image in a share of the batches."""

    probability: Fraction = 0.5
    scales: tuple[Fraction, ...] = (0.5, 0.75)
    """One is drawn per batch; latents are shrunk to the nearest whole number of cells."""

    @model_validator(mode="after")
    def _some_scale(self) -> Self:
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {list(self.scales)}: give at least one, all above 0")
        return self


class AutoencoderObjective(Section):
    """Weights of the reconstruction terms; each term is a mean over pixels in [-1, 1] or latent elements."""

    l1: NonNegative = 1.0
    multiscale_l1: NonNegative = 0.5
    mse: NonNegative = 0.0
    ssim: NonNegative = 0.0
    kl: NonNegative = 1e-4
    equivariance: Equivariance | None = None
    adversarial: Adversarial | None = None

    @model_validator(mode="after")
    def _some_reconstruction(self) -> Self:
        if not self.l1 + self.multiscale_l1 + self.mse + self.ssim > 0:
            raise ValueError("l1, multiscale_l1, mse and ssim are all 0: give one of them a weight")
        return self


class NoiseSchedule(Section):
    """The forward process: discrete betas, or a rectified flow with shift."""

    kind: Literal["scaled_linear", "linear", "cosine", "flow"] = "scaled_linear"
    num_train_timesteps: Images = 1000
    beta_start: Positive = 0.00085
    beta_end: Positive = 0.012
    rescale_zero_terminal_snr: bool = False
    shift: Positive = 1.0


class NoiseLevels(Section):
    """Distribution of the training time; ``options`` are the keyword arguments of the distribution."""

    kind: Literal["uniform", "logit_normal", "phased_mixture", "discrete"] = "uniform"
    options: dict[str, JsonValue] = {}


class Weighting(Section):
    """Weight of a noise level in the loss; ``options`` are the keyword arguments of the weighting."""

    kind: Literal["unit", "snr", "min_snr", "edm"] = "unit"
    options: dict[str, JsonValue] = {}


class DenoiserObjective(Section):
    """Conditional denoising with caption dropout (Ho and Salimans 2022, arXiv 2207.12598, algorithm 1)."""

    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "v_prediction"
    schedule: NoiseSchedule = NoiseSchedule()
    noise_levels: NoiseLevels = NoiseLevels()
    weighting: Weighting = Weighting()
    caption_dropout: Fraction = 0.1


class MatchingObjective(Section):
    """Naming concept and style: cross-entropy over all trained concepts and over all styles."""

    style: NonNegative = 0.2
    """Weight of the style; the concept has 1."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class LoopRecipe(Section):
    """What the loop needs to know whatever is trained; every kind of recipe has these sections."""

    kind: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data
    stop: Stop
    samples: Samples = Samples()
    runtime: Runtime = Runtime()


class _ModelRecipe(LoopRecipe):
    init_from: str | None = None
    """Safetensors file, diffusers folder or run folder whose weights the model starts from."""
    model: dict[str, JsonValue]
    """Configuration of the network's class, as in its config.json."""
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    ema: Ema | None = Ema()


class AutoencoderRecipe(_ModelRecipe):
    """Trains an ``AutoencoderKL`` on pixels."""

    kind: Literal["autoencoder"]
    encoder: Literal["train", "frozen"] = "train"
    """frozen: only the decoder learns, so that latents and denoisers of these weights stay good."""
    objective: AutoencoderObjective = AutoencoderObjective()


class Pipeline(Section):
    """The other parts of the pipeline folder that a denoiser run leaves; sample grids need them too."""

    autoencoder: str
    """The ``vae`` folder of the cached latents."""
    text: str
    """Folder with ``text_encoder`` and ``tokenizer``."""
    family: str
    """Base family in the sampling contract."""
    card: str | None = None
    """Name of a recipe folder whose ``card.md`` becomes the model card."""


class DenoiserRecipe(_ModelRecipe):
    """Trains a ``UNet2DConditionModel`` on cached latents and text embeddings."""

    kind: Literal["denoiser"]
    objective: DenoiserObjective = DenoiserObjective()
    pipeline: Pipeline | None = None


class EvaluatorRecipe(_ModelRecipe):
    """Trains an ``Evaluator`` on labelled drawings; its ``model`` is an ``EvaluatorConfig``."""

    kind: Literal["evaluator"]
    objective: MatchingObjective = MatchingObjective()
    card: str | None = None
    """Name of a recipe folder whose ``evaluator.md`` becomes the card of the finished folder."""


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Say in one line what is wrong where; an unknown key comes with the nearest right one."""
    messages = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        key = ".".join(location)
        if item["type"] == "extra_forbidden":
            allowed = sorted(_keys(model, location[:-1]))
            near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(allowed)}"
            messages.append(f"unknown key {key!r}; {fix}")
        elif item["type"] == "missing":
            messages.append(f"{key} is missing; add it")
        else:
            messages.append(f"{key} is {_short(item['input'])}: {item['msg'][0].lower()}{item['msg'][1:]}")
    return "; ".join(messages[:5])


def _keys(model: type[BaseModel], location: Iterable[str]) -> set[str]:
    current: type[BaseModel] | None = model
    for part in location:
        field = current.model_fields.get(part) if current else None
        current = _model_in(field.annotation) if field else None
    return set(current.model_fields) if current else set()


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for arg in get_args(annotation) if (found := _model_in(arg))), None)
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
