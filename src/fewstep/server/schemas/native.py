"""The native API: our own names, nothing ignored. The field names are those of the engine's requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.prompt.attention import EmphasisMode

JobState = Literal["queued", "running", "done", "failed", "cancelled", "expired", "cut_off"]

Base64 = Annotated[
    str, Field(max_length=1 << 27, description="Base64 of a PNG, JPEG or WebP; a data URI too")
]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AdapterBody(Strict):
    """An adapter (LoRA) by name."""

    name: str = Field(min_length=1, max_length=255)
    weight: Finite | None = Field(None, ge=-10, le=10, description="In the denoiser; null is its authors'")
    text_weight: Finite | None = Field(None, ge=-10, le=10, description="In the text encoders")


class UpscaleBody(Strict):
    """Enlarge every picture before it is given out."""

    name: str = Field("auto", max_length=64, description="An upscaler, auto, or none")
    width: int | None = Field(None, ge=16, le=16384, description="Pixels; with height, or neither")
    height: int | None = Field(None, ge=16, le=16384)


class HiresBody(Strict):
    """A second pass at a larger size."""

    scale: Finite | None = Field(None, gt=1, le=8)
    width: int | None = Field(None, ge=64, le=16384)
    height: int | None = Field(None, ge=64, le=16384)
    steps: int | None = Field(None, ge=1, le=1000)
    strength: Finite | None = Field(None, gt=0, le=1)
    upscaler: str = Field("auto", max_length=64)


class OutpaintBody(Strict):
    """Pixels by which the picture is extended."""

    left: int = Field(0, ge=0, le=4096)
    right: int = Field(0, ge=0, le=4096)
    top: int = Field(0, ge=0, le=4096)
    bottom: int = Field(0, ge=0, le=4096)


class GenerateBody(Strict):
    """Draw pictures. What is left out is the model's own."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "kind": "generate",
                    "prompt": "a red apple, noto style, on a sky blue background",
                    "seed": 0,
                },
                {
                    "kind": "generate",
                    "prompt": "a fox",
                    "num_inference_steps": 4,
                    "n": 4,
                    "upscale": {"name": "none"},
                },
            ]
        },
    )

    kind: Literal["generate"] = "generate"
    prompt: str
    negative_prompt: str = ""
    model: str | None = Field(None, max_length=255, description="A name of /api/v1/models")
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    guidance_rescale: Finite | None = Field(None, ge=0, le=1)
    solver: str | None = Field(None, max_length=64)
    eta: Finite | None = Field(None, ge=0, le=10)
    seed: int | None = Field(
        None, ge=0, lt=1 << 63, description="null is a random one; picture i has seed + i"
    )
    n: int = Field(1, ge=1)
    width: int | None = Field(None, ge=16, description="Pixels that are drawn, before any upscaling")
    height: int | None = Field(None, ge=16)
    student: str | None = Field(None, max_length=64, description="Who draws; none is the model itself")
    clip_skip: int | None = Field(None, ge=0, le=12)
    emphasis: EmphasisMode = "original"
    image: Base64 | None = None
    strength: Finite | None = Field(None, gt=0, le=1)
    image_guidance_scale: Finite | None = Field(None, ge=1, le=100)
    mask: Base64 | None = Field(None, description="White is redrawn; of the picture's size")
    masked_content: str | None = Field(None, max_length=32)
    mask_blur: int | None = Field(None, ge=0, le=256)
    only_masked: bool = False
    padding: int | None = Field(None, ge=0, le=1024)
    invert_mask: bool = False
    outpaint: OutpaintBody | None = None
    hires: HiresBody | None = None
    variation_seed: int | None = Field(None, ge=0, lt=1 << 63)
    variation_strength: Finite | None = Field(None, ge=0, le=1)
    adapters: tuple[AdapterBody, ...] = ()
    upscale: UpscaleBody = UpscaleBody(name="none")
    deterministic: bool = Field(False, description="One by one: bit for bit as single pictures")
    insist: bool = Field(False, description="Use settings that do not fit the model all the same")
    save: bool = Field(True, description="Keep the pictures in the history")
    parent: str | None = Field(None, pattern=r"^[0-9a-f]{32}$", description="Picture this one was made from")
    deadline: Finite | None = Field(None, gt=0, le=86_400, description="Seconds from now")


class ProgressView(BaseModel):
    """How far a job is."""

    step: int
    total: int
    image: int = 0
    images: int = 1
    seconds: float = 0.0
    message: str | None = None


class ErrorView(BaseModel):
    """Why something failed."""

    code: str
    message: str
    request_id: str | None = None
    field: str | None = Field(None, description="Of the request, that is to blame; left out where none is")


class ErrorBody(BaseModel):
    """Every error of the native API."""

    error: ErrorView


class PictureView(BaseModel):
    """One picture of a job."""

    seed: int
    width: int
    height: int
    id: str | None = Field(None, description="In the history; null when it was not kept")
    url: str | None = None
    infotext: str
    record: dict[str, Any]


class JobView(BaseModel):
    """A job and what became of it."""

    id: str
    kind: str
    client: str
    state: JobState
    title: str = Field("", description="What it makes: a name, or the beginning of a prompt")
    created: float = Field(description="Seconds since 1970")
    started: float | None = None
    finished: float | None = None
    position: int | None = Field(None, description="1 is next, while it waits")
    progress: ProgressView | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


class JobList(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobView]


class ModelView(BaseModel):
    """A model that can be asked for."""

    name: str
    kind: str
    origin: str
    bytes: int
    loaded: bool
    default: bool
    kinds: list[str] = Field([], description="All that have this name; the first draws")
    draft: bool = Field(False, description="A merge that is neither kept nor discarded yet")
    removable: Literal["files", "downloaded", "name"] | None = Field(
        None,
        description="What may be taken away by a request: its files; its name, and the files that were "
        "downloaded; its name alone; nothing",
    )


class ContractView(BaseModel):
    """How a model or one of its students is to be sampled."""

    method: str = Field(description="base, or what made it draw in few steps")
    num_inference_steps: int
    allowed_steps: list[int] | None = Field(description="null is any number")
    solver: str
    spacing: str
    eta: float | None
    guidance: str = Field(description="off, classifier_free or embedded")
    guidance_scale: float
    guidance_range: list[float] | None = Field(description="Lowest and highest; null is any from 1")
    guidance_rescale: float
    negative_prompt_effective: bool


class ModelDetail(ModelView):
    """All that is known of a model without drawing."""

    hash: str
    family: str
    licence: str
    native_width: int
    native_height: int
    size_multiple: int
    max_size: int
    num_inference_steps: int
    guidance_scale: float
    solver: str
    prediction_type: str
    contract: ContractView
    max_clip_skip: int
    students: list[dict[str, Any]] = Field(description="Each with its own contract")
    classes: list[str]


class ModelList(BaseModel):
    """Models, in the order of search."""

    models: list[ModelView]
    managed: bool = Field(False, description="Whether models may be downloaded and removed by requests")
    paths: bool = Field(False, description="Whether a file or folder of the server's machine may be named")
    process_bytes: int = Field(0, description="Memory that the server's process holds")
    free_bytes: int = Field(0, description="Memory of the machine that is free")
