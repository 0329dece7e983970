"""The sections of a distillation recipe: stages, students, and a section for every method.

Lengths are counted in optimiser steps where a paper counts them (phases, warm-ups), in images where the loop
does.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from fewstep.training.sections import (
    Ema,
    Fraction,
    Images,
    LoopRecipe,
    NoiseSchedule,
    NonNegative,
    Optimiser,
    Positive,
    Schedule,
    Section,
    Stop,
)

Steps = Annotated[int, Field(ge=1)]
GanLoss = Literal["non_saturating", "vanilla", "hinge", "lsgan", "wgan"]
Distance = Literal["l2", "l1", "huber"]
ADVERSARIAL_OPTIMISER = Optimiser(learning_rate=1e-4, betas=(0.0, 0.99))


class Mixture(Section):
    """An exact teacher: a Gaussian mixture in the plane, its labels as classes."""

    kind: Literal["gaussian", "two_modes", "ring", "grid", "moons", "checkerboard"]
    options: dict[str, JsonValue] = Field(default_factory=dict)
    classes: bool = True
    """Whether the student is told the label; false makes one class of all."""
    schedule: NoiseSchedule = NoiseSchedule()
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "v_prediction"
    """Of the student: the teacher has no network."""
    width: Images = 128
    depth: Annotated[int, Field(ge=2)] = 4


class Teacher(Section):
    """What is distilled: a pipeline folder, or a mixture."""

    pipeline: str | None = None
    """Folder in diffusers layout with its sampling contract."""
    adapter: str | None = None
    """Of a pipeline: a LoRA file that is folded into the teacher, and into students that start from it."""
    mixture: Mixture | None = None
    null_class: Annotated[int, Field(ge=0)] | None = None
    """Of a pipeline with classes: the one that means none, which guidance compares with. When not given,
    guidance leaves classes as they are: a noise level, say."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.pipeline is None) == (self.mixture is None):
            raise ValueError("give one of pipeline and mixture")
        if self.mixture is not None and self.null_class is not None:
            raise ValueError("null_class is for pipelines: a mixture has its own")
        if self.mixture is not None and self.adapter is not None:
            raise ValueError("adapter is for pipelines: a mixture has no weights")
        return self


class Lora(Section):
    """A low-rank student (Hu 2021, 2106.09685)."""

    rank: Images = 64
    alpha: Positive | None = None
    """The rank when not given."""
    targets: tuple[str, ...] = ("unet",)
    """``unet``: what SDXL-Lightning adapts; ``attention``: queries, keys, values and outputs; or names of
    parts."""


class Student(Section):
    """The network that learns."""

    mode: Literal["full", "lora", "merge"] = "full"
    """lora: an adapter on the frozen start; merge: fold the previous stage's adapter in, then train
    everything."""
    start: str = "previous"
    """Weights at the beginning: ``previous``, ``teacher``, the name of an earlier stage, ``landed/NAME`` for
    the student of that name in the teacher's pipeline folder, or ``random`` for toys. The first stage has no
    previous one and starts from the teacher."""
    lora: Lora = Lora()
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] | None = None
    """What the student's output means; the teacher's own when not given."""


def landed_name(start: str) -> str | None:
    """The name in a ``start`` of ``landed/NAME``; None where a student starts from something else."""
    kind, slash, name = start.partition("/")
    return name if slash and kind == "landed" and name else None


class Renoise(Section):
    """Noise added before the discriminator looks."""

    timesteps: tuple[float, ...] = (10.0, 250.0, 500.0, 750.0)
    weights: tuple[NonNegative, ...] = (1.0, 1.0, 1.0, 1.0)
    later_weights: tuple[NonNegative, ...] | None = None
    """In place of ``weights`` from ``later_from_step`` on."""
    later_from_step: Steps | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for weights in (self.weights, self.later_weights):
            if weights is not None and (len(weights) != len(self.timesteps) or not sum(weights) > 0):
                raise ValueError("weights must be as many as timesteps, and not all 0")
        if (self.later_weights is None) != (self.later_from_step is None):
            raise ValueError("give both later_weights and later_from_step, or neither")
        return self

    def at(self, step: int) -> tuple[float, ...]:
        """Weights at an optimiser step."""
        if (
            self.later_weights is not None
            and self.later_from_step is not None
            and step >= self.later_from_step
        ):
            return self.later_weights
        return self.weights


class Discriminator(Section):
    """A network that tells the student's samples from real ones, and how much the student minds."""

    weight: Positive = 1.0
    loss: GanLoss = "non_saturating"
    tap: str | None = None
    """Part of the backbone whose output is looked at; the middle block (of toys: the encoder) when not
    given."""
    channels: Images = 256
    """Of the head's convolutions, or width of a toy's head."""
    r1: NonNegative = 0.0
    """Weight of the approximate R1 penalty."""
    r1_std: Positive = 0.1
    optimiser: Optimiser = ADVERSARIAL_OPTIMISER


class _MethodSection(Section):
    weight: Positive = 1.0
    """Of this method in the student's loss."""


class ProgressiveMethod(_MethodSection):
    """Progressive distillation (Salimans and Ho 2022, 2202.00512): two steps of the teacher in one."""

    method: Literal["progressive"]
    teacher_steps: Steps
    student_steps: Steps
    guidance_scale: NonNegative = 1.0
    weighting: Literal["truncated_snr", "snr_plus_one", "unit"] = "truncated_snr"


class LightningDiscriminator(Discriminator):
    """SDXL-Lightning's: a trained copy of the U-Net's encoder, with or without the start of the jump."""

    conditional: bool = True
    renoise: Renoise | None = None


class LightningMethod(_MethodSection):
    """SDXL-Lightning (Lin 2024, 2402.13929): n steps of the teacher in one."""

    method: Literal["lightning"]
    teacher_steps: Steps
    student_steps: Steps
    guidance_scale: NonNegative = 1.0
    guidance_rescale: Fraction = 0.0
    distance: Literal["l2", "l1", "huber", "perceptual"] | None = None
    """perceptual: in the features of the teacher's encoder."""
    discriminator: LightningDiscriminator | None = None
    train_points: Steps | None = None
    """Places where the student is trained, equally spaced from the terminal time; as many as its steps when
    not
    given. The last stages use 4."""

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.distance is None and self.discriminator is None:
            raise ValueError("give a distance, a discriminator, or both")
        return self


class ConversionMethod(_MethodSection):
    """The student's x0 against the teacher's at the same time: no fewer steps, but another output.

    For another prediction type (as SDXL-Lightning before its one-step stage), to take guidance in, or to get
    a network in place of an exact teacher.
    """

    method: Literal["conversion"]
    guidance_scale: NonNegative = 1.0
    guidance_rescale: Fraction = 0.0
    weighting: Literal["truncated_snr", "snr_plus_one", "unit"] = "truncated_snr"
    unconditional: Fraction = 0.0
    """Share of images whose text or class is left out, so that the student can still be guided."""


class LcmMethod(_MethodSection):
    """Latent consistency distillation (Luo 2023, 2310.04378), and LCM-LoRA (2311.05556)."""

    method: Literal["lcm"]
    num_steps: Steps = 50
    guidance: tuple[NonNegative, NonNegative] = (5.0, 15.0)
    """Range of the teacher's guidance scale, drawn per image; 1 is no guidance."""
    embed_guidance: bool = False
    """Give the drawn scale to the student (it needs ``time_cond_proj_dim``)."""
    distance: Distance = "huber"
    huber_c: Positive = 1e-3
    boundary_scaling: NonNegative = 10.0
    weighting: Literal["unit", "truncated_snr", "snr_plus_one"] = "unit"
    """Of the points. ``unit`` is the paper's. At little noise the network's output hardly moves x0, so that
    these points, where data come in, hardly learn; ``snr_plus_one`` counts the error of v instead."""


class FlashPhase(Section):
    """A part of Flash Diffusion's curriculum; the last phase stays."""

    steps: Steps
    mode_weights: tuple[NonNegative, ...]
    """Of the modes of the start index, pure noise first."""
    distill: NonNegative = 1.0
    adversarial: NonNegative = 0.0
    distribution: NonNegative = 0.0
    guidance: tuple[NonNegative, NonNegative] = (3.0, 13.0)


class FlashDiscriminator(Section):
    """A head on features of the frozen teacher; its weight stands in the phases."""

    loss: GanLoss = "lsgan"
    tap: str | None = None
    channels: Images = 64
    real: Literal["data", "teacher"] = "data"
    timesteps: tuple[float, ...] = (10.0, 250.0, 500.0, 750.0)
    optimiser: Optimiser = Optimiser(learning_rate=1e-4, betas=(0.9, 0.999))


class FlashMethod(_MethodSection):
    """Flash Diffusion (Chadebec 2024, 2406.02347)."""

    method: Literal["flash"]
    teacher_steps: Steps = 32
    solver: Literal["ddim", "dpmpp_2m", "flow_euler"] = "dpmpp_2m"
    phases: tuple[FlashPhase, ...]
    variance: Positive = 0.5
    distance: Literal["l2", "l1", "perceptual"] = "l2"
    boundary_scaling: NonNegative = 10.0
    discriminator: FlashDiscriminator | None = None
    critic: Optimiser | None = None
    """Of a trained fake score; without one the student itself is the score of its samples, as in the
    paper."""
    student_steps: Steps = 4

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if not self.phases:
            raise ValueError("phases is empty: give at least one")
        if self.discriminator is None and any(phase.adversarial for phase in self.phases):
            raise ValueError("a phase has an adversarial weight: give a discriminator, or make it 0")
        return self


class DmdDiscriminator(Discriminator):
    """A head on the fake score's features; both are trained together."""

    weight: Positive = 5e-3
    critic_weight: Positive = 1e-2
    """Of its loss beside the fake score's."""


class DmdMethod(_MethodSection):
    """Improved distribution matching distillation (Yin 2024, 2405.14867)."""

    method: Literal["dmd2"]
    timesteps: tuple[float, ...] = (999.0, 749.0, 499.0, 249.0)
    """Of the student, the noisiest first."""
    guidance_scale: NonNegative = 1.0
    """Of the real score."""
    least: Fraction = 0.02
    most: Fraction = 0.98
    """Times of the matching, as parts of the schedule."""
    simulate: bool = True
    """Train on what the student makes of its own earlier steps, instead of on noised data."""
    distribution: NonNegative = 1.0
    discriminator: DmdDiscriminator | None = None
    critic: Optimiser = Optimiser(learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=0.01)


Method = Annotated[
    ProgressiveMethod | LightningMethod | ConversionMethod | LcmMethod | FlashMethod | DmdMethod,
    Field(discriminator="method"),
]


class StageSection(Section):
    """A part of a distillation: one student, trained by one sum of methods."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    teacher: str = "base"
    """``base``, ``previous``, or the name of an earlier stage (skip-level)."""
    student: Student = Student()
    methods: tuple[Method, ...]
    student_every: Steps = 1
    """Batches per step of the student; its critics take one in every batch."""
    critic_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Batches at the beginning that train the critics alone."""
    gan_only: bool = False
    """Allow a stage whose only anchor is a discriminator: such students collapse after a while."""
    stop: Stop
    optimiser: Optimiser = Optimiser(learning_rate=1e-4)
    schedule: Schedule = Schedule()
    ema: Ema | None = Ema()


class DistillationRecipe(LoopRecipe):
    """Turns a teacher into students of fewer steps, stage by stage."""

    kind: Literal["distillation"]
    teacher: Teacher
    conditions: str | None = None
    """Folder with what a pipeline is told beside texts, a row per sample of the data: ``concat.npy`` (mask
    and masked latents, or low-resolution latents), ``classes.npy``, ``adapter_residuals.0.npy`` and so on;
    see `fewstep.distillation.conditioned`."""
    stages: tuple[StageSection, ...]
    stop: Stop = Stop(images=1)
    """Not used: every stage has its own."""
    card: str | None = None
    """Name of a recipe folder whose ``student.md`` becomes the card of the students."""

    @model_validator(mode="after")
    def _stages(self) -> Self:
        if self.conditions is not None and self.teacher.mixture is not None:
            raise ValueError("conditions are for pipelines: a mixture has its classes and nothing else")
        if not self.stages:
            raise ValueError("stages is empty: give at least one")
        names = [stage.name for stage in self.stages]
        for place, stage in enumerate(self.stages):
            if names.count(stage.name) > 1:
                raise ValueError(f"two stages are called {stage.name!r}: give each a name of its own")
            if not stage.methods:
                raise ValueError(f"stage {stage.name}: methods is empty: give at least one")
            if stage.teacher not in ("base", "previous", *names[:place]):
                raise ValueError(f"stage {stage.name}: teacher {stage.teacher!r} is no earlier stage")
            known = ("teacher", "previous", "random", *names[:place])
            if stage.student.start not in known and landed_name(stage.student.start) is None:
                raise ValueError(
                    f"stage {stage.name}: start {stage.student.start!r} is no earlier stage; a student of "
                    "the pipeline folder is landed/NAME"
                )
        return self
