"""Long work of the native API: what runs in a process of its own. Bodies hold names, never paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from fewstep.server.schemas.native import Base64, Finite, GenerateBody, Strict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""Of what a caller makes: datasets, their pictures, models, adapters."""
NewName = Annotated[str, Field(pattern=NAME, description="Letters, digits, _ and -; a letter or digit first")]
ModelName = Annotated[str, Field(min_length=1, max_length=255, description="A name of /api/v1/models")]
PictureId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="A picture of the history")]
Student = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="Of the model")]
Threads = Annotated[int, Field(ge=1, le=1024, description="CPU threads; null is the server's setting")]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Images = Annotated[int, Field(ge=1, le=100_000_000)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Grids = Annotated[int, Field(ge=0, le=100, description="Sample grids over the whole length; 0 draws none")]
Precision = Literal["no", "fp16", "bf16"]

PROMPT_SETS = Literal["seen", "combination", "object", "synonyms", "contact"]


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [values]})


class TrainBody(Strict):
    """Teach a model what is on the pictures of a dataset. What is left out is chosen from both."""

    model_config = _example(kind="train", name="my-dog", dataset="dog", trigger="sks dog", images=2000)

    kind: Literal["train"]
    what: Literal["lora", "embedding", "dreambooth"] = "lora"
    name: NewName = Field(description="What is made is called so")
    dataset: NewName
    model: ModelName | None = None
    student: Student | None = Field(None, description="Teach this student of the model in its place")
    trigger: str | None = Field(None, min_length=1, max_length=100, description="Word that calls it")
    images: Images | None = Field(None, description="Train on so many; with minutes, at most")
    minutes: Finite | None = Field(None, gt=0, le=20_160)
    rank: int | None = Field(None, ge=1, le=1024, description="Of a LoRA")
    learning_rate: Finite | None = Field(None, gt=0, le=1)
    batch_size: Batch | None = None
    grids: Grids | None = None
    seed: Seed | None = None
    precision: Precision | None = None
    threads: Threads | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.grids and self.images is None:
            raise ValueError("grids needs images: without them it is not known how long it takes")
        if self.rank is not None and self.what != "lora":
            raise ValueError("rank is of a lora: leave it out")
        # the rules of a recipe, said at once and not by a process that has to start for it
        if (word := self.trigger) is not None and (word.strip() != word or set(word) & set("<>:\n")):
            raise ValueError("trigger: give a word without <, > and :, no spaces around it, on one line")
        return self


class DistillBody(Strict):
    """Make a student of few steps: by a recipe of fewstep, or by a method from a model and a dataset."""

    model_config = _example(kind="distill", name="dog-fast", method="lcm", dataset="dog", images=20000)

    kind: Literal["distill"]
    name: NewName = Field(description="The student is a model of this name")
    recipe: str | None = Field(
        None, max_length=128, pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", description="As toys/lcm"
    )
    method: Literal["flash", "lightning", "lcm", "dmd2", "progressive"] | None = Field(
        None, description="With a dataset, in place of a recipe"
    )
    dataset: NewName | None = None
    model: ModelName | None = Field(None, description="The teacher; with a method")
    steps: Literal[1, 2, 4, 8] | None = Field(
        None, description="Of the student; with a method, but lcm, whose student has any from 1 to 8"
    )
    bundle: NewName | None = Field(
        None,
        description="Also make a runtime bundle of this name: the teacher and its students, with this one",
    )
    bundle_precision: Literal["int8", "fp16"] | None = Field(
        None, description="Of the bundle; int8, the default, draws faster and takes long to make"
    )
    images: Images | None = Field(
        None, description="Of a recipe: of every stage, at most; with a method: of all stages together"
    )
    minutes: Finite | None = Field(
        None, gt=0, le=20_160, description="The stages end after so many, all together; with a method"
    )
    batch_size: Batch | None = None
    grids: Grids | None = None
    seed: Seed | None = None
    precision: Precision | None = None
    threads: Threads | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.recipe is None) == (self.method is None):
            raise ValueError("give one of recipe and method")
        if (self.method is None) != (self.dataset is None):
            raise ValueError("a method needs a dataset, and a recipe has its own: give both or neither")
        if self.recipe is not None and self.model is not None:
            raise ValueError("a recipe names its teacher: leave model out")
        if self.recipe is not None and (self.steps, self.minutes, self.grids) != (None, None, None):
            raise ValueError(
                "a recipe says its own steps, time and grids: leave steps, minutes and grids out"
            )
        if self.steps is not None and self.method == "lcm":
            raise ValueError("steps: a student of lcm draws in any number from 1 to 8: leave steps out")
        if self.bundle is not None and self.bundle == self.name:
            raise ValueError("bundle: the student has this name already; give another")
        if self.bundle_precision is not None and self.bundle is None:
            raise ValueError("bundle_precision is of a bundle: name one, or leave it out")
        return self


class StudentOf(Strict):
    """A model that was distilled, as a student in a bundle."""

    name: Student
    model: ModelName = Field(description="A pipeline that a distillation made")


class ExportBody(Strict):
    """Turn a pipeline into a runtime bundle."""

    model_config = _example(kind="export", name="my-model", model="my-pipeline", precision="int8")

    kind: Literal["export"]
    name: NewName
    model: ModelName
    precision: Literal["int8", "fp16"] = "int8"
    students: tuple[StudentOf, ...] = Field((), max_length=8)


class EvaluateBody(Strict):
    """Measure models on prompts."""

    model_config = _example(kind="evaluate", models=["emoji-128"], prompts=["seen"], n=64)

    kind: Literal["evaluate"]
    models: tuple[ModelName, ...] = Field(min_length=1, max_length=8)
    compare: bool = Field(False, description="Lay them side by side: the same prompts and seeds")
    prompts: tuple[PROMPT_SETS, ...] = Field(("seen",), min_length=1, max_length=5)
    n: int = Field(256, ge=1, le=4096, description="Prompts of each set, at most")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    guidance_rescale: Finite | None = Field(None, ge=0, le=1)
    solver: str | None = Field(None, pattern=r"^[a-z0-9_]{1,64}$")
    student: Student | None = None
    seed: Seed = 0
    diversity: int = Field(16, ge=0, le=1024, description="Prompts that are drawn with four seeds")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.prompts)) < len(self.prompts) or len(set(self.models)) < len(self.models):
            raise ValueError("a set of prompts or a model is named twice: give each once")
        if self.compare and len(self.models) < 2:
            raise ValueError("compare needs two models or more")
        return self


class MergeBody(Strict):
    """Merge models of one family into one."""

    model_config = _example(kind="merge", name="mixed", models=["one", "other"], ratio=0.3)

    kind: Literal["merge"]
    name: NewName
    models: tuple[ModelName, ...] = Field(min_length=1, max_length=3, description="A, B and C")
    mode: Literal["weighted-sum", "add-difference", "no-interpolation", "slerp", "make-few-step"] = (
        "weighted-sum"
    )
    ratio: Finite | None = Field(None, ge=-10, le=10)
    blocks: str | None = Field(None, max_length=2000, pattern=r"^[A-Za-z0-9=.,\s-]+$")
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    vae: ModelName | None = Field(None, description="Bake in the autoencoder of this model")
    draft: bool = Field(
        False,
        description="Under a name for the time being, which the job's result has, until the job is kept or "
        "discarded; forgotten after a day",
    )


class DownloadBody(Strict):
    """Fetch a model or an adapter from the Hugging Face hub; only where models may be managed."""

    model_config = _example(kind="download", repository="owner/name")

    kind: Literal["download"]
    repository: str = Field(
        max_length=193,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$",
        description="Owner and name",
    )
    revision: str | None = Field(None, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$")
    file: str | None = Field(
        None, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./ -]*\.safetensors$",
        description="Only this file of the repository; it has the name of what is made",
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if any(".." in (text or "") for text in (self.repository, self.revision, self.file)):
            raise ValueError("a name with '..' is none of the hub: leave it out")
        return self


class RestoreBody(Strict):
    """Draw a picture anew at a low strength, to clean it."""

    strength: Finite = Field(0.2, gt=0, le=1)
    prompt: str = Field("", max_length=20_000, description="What the picture shows")
    negative_prompt: str = Field("", max_length=20_000)
    model: ModelName | None = None
    student: Student | None = None
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    seed: Seed = 0
    at: Literal["auto", "whole", "tiles"] = Field(
        "auto", description="Whole before enlarging, or in tiles after"
    )


class EnlargeBody(Strict):
    """Enlarge pictures; the results are in the history, with the pictures as their parents."""

    model_config = _example(kind="upscale", images=["0123456789abcdef0123456789abcdef"], scale=4)

    kind: Literal["upscale"]
    images: tuple[PictureId, ...] = Field((), max_length=64)
    image: Base64 | None = Field(None, description="In place of pictures of the history")
    files: tuple[Base64, ...] = Field((), max_length=64, description="Several, as image")
    upscaler: str = Field("auto", min_length=1, max_length=64)
    upscaler_2: str = Field("none", min_length=1, max_length=64, description="Blended over the first")
    visibility: Finite = Field(0.5, ge=0, le=1, description="Of the second")
    noise: int | None = Field(None, ge=-1, le=3, description="What waifu2x removes; -1 is nothing")
    restore: RestoreBody | None = None
    scale: Finite | None = Field(None, gt=0, le=16)
    width: int | None = Field(None, ge=16, le=16384, description="With height, in place of a scale")
    height: int | None = Field(None, ge=16, le=16384)
    crop: bool = True
    threads: Threads | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if [bool(self.images), self.image is not None, bool(self.files)].count(True) != 1:
            raise ValueError("give one of images, image and files")
        if len(set(self.images)) < len(self.images):
            raise ValueError("a picture is named twice: give each once")
        if (self.width is None) != (self.height is None):
            raise ValueError("give both width and height, or neither")
        if self.scale is not None and self.width is not None:
            raise ValueError("give a scale or a size, not both")
        return self


WorkBody = TrainBody | DistillBody | ExportBody | EvaluateBody | MergeBody | EnlargeBody | DownloadBody
BODIES: Mapping[str, type[WorkBody]] = {
    "train": TrainBody, "distill": DistillBody, "export": ExportBody, "evaluate": EvaluateBody,
    "merge": MergeBody, "upscale": EnlargeBody, "download": DownloadBody,
}  # fmt: skip
"""Kind of a job to what orders it."""


def _kind(value: Any) -> Any:
    """A body without a kind orders pictures."""
    if isinstance(value, Mapping):
        return value.get("kind", "generate")
    return getattr(value, "kind", None)


JobBody = Annotated[
    Annotated[GenerateBody, Tag("generate")]
    | Annotated[TrainBody, Tag("train")]
    | Annotated[DistillBody, Tag("distill")]
    | Annotated[ExportBody, Tag("export")]
    | Annotated[EvaluateBody, Tag("evaluate")]
    | Annotated[MergeBody, Tag("merge")]
    | Annotated[EnlargeBody, Tag("upscale")]
    | Annotated[DownloadBody, Tag("download")],
    Discriminator(_kind),
]
"""Of ``POST /api/v1/jobs``."""


class SampleList(BaseModel):
    """Pictures that a job has drawn so far, the oldest first."""

    samples: list[str] = Field(description="Names, for /api/v1/jobs/{id}/samples/{name}")


class LogView(BaseModel):
    """What a job has said."""

    lines: list[str] = Field(description="The newest last")


class OrderView(BaseModel):
    """What long work was asked to do."""

    order: dict[str, Any] = Field(description="As it was sent to /api/v1/jobs, with what was left out")


class Curve(BaseModel):
    """Values of a training or of one stage of a distillation, over the images that it has seen."""

    stage: str = Field(description="Empty for a training")
    values: dict[str, list[tuple[int, float]]] = Field(description="(images, value) by name: loss and others")


class CurveList(BaseModel):
    """Values that long work has measured so far, by stage."""

    stages: list[Curve]


class DatasetPicture(BaseModel):
    """One picture of a dataset."""

    name: str
    caption: str
    width: int
    height: int
    url: str
    thumbnail: str


class DatasetView(BaseModel):
    """A dataset with its pictures, by name."""

    name: str
    pictures: list[DatasetPicture]
    bytes: int


class DatasetSummary(BaseModel):
    """A dataset in a list."""

    name: str
    pictures: int
    bytes: int
    changed: float = Field(description="Seconds since 1970")


class DatasetList(BaseModel):
    """Datasets of the key that asks, by name."""

    datasets: list[DatasetSummary]


class CaptionsBody(Strict):
    """New captions of pictures that are there."""

    captions: dict[str, Annotated[str, Field(max_length=2000)]] = Field(min_length=1, max_length=1000)
