"""Answers of the Stable Diffusion WebUI's API (version 1.10)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """With names that begin with ``model_``, as there."""

    model_config = ConfigDict(protected_namespaces=())


class Pictures(Answer):
    """What was drawn."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"images": ["iVBORw0KGgo…"], "parameters": {}, "info": "{}"}]}
    )

    images: list[str] = Field(description="In base64, without a prefix.")
    parameters: dict[str, Any] = Field(
        description="The request with its defaults; `fewstep` says what was drawn in place of it."
    )
    info: str = Field(description="JSON: seeds, settings, infotexts, and `comments` on what was replaced.")


class ExtrasOne(Answer):
    """One picture."""

    html_info: str
    image: str = Field(description="In base64, without a prefix.")


class ExtrasMany(Answer):
    """Several pictures."""

    html_info: str
    images: list[str]


class PngInfoAnswer(Answer):
    """What a picture says of its making."""

    info: str
    items: dict[str, Any]
    parameters: dict[str, Any]


class State(Answer):
    """Of the task that runs."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressAnswer(Answer):
    """How far the caller's task is."""

    progress: float = Field(ge=0.0, le=1.0)
    eta_relative: float = Field(description="Seconds.")
    state: State
    current_image: str | None = None
    textinfo: str | None = None


class TaskProgress(Answer):
    """How far a named task is."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = Field(None, description="A data URI.")
    id_live_preview: int | None = None
    textinfo: str | None = None


class PendingTasks(Answer):
    """Tasks of the caller that have not ended."""

    size: int
    tasks: list[str]


class Sampler(Answer):
    """A sampler."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class Scheduler(Answer):
    """A spacing of the steps."""

    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float | None = None
    need_inner_model: bool = False


class Upscaler(Answer):
    """An upscaler."""

    name: str
    model_name: str | None = None
    model_path: str | None = Field(None, description="Always null.")
    model_url: str | None = None
    scale: float | None = None


class Named(Answer):
    """A name."""

    name: str


class Model(Answer):
    """A model."""

    title: str
    model_name: str
    hash: str | None = Field(None, description="Ten digits, where it is known without reading the weights.")
    sha256: str | None = None
    filename: str = Field(description="The model's name.")
    config: str | None = None


class Vae(Answer):
    """An autoencoder."""

    model_name: str
    filename: str


class Lora(Answer):
    """An adapter."""

    name: str
    alias: str
    path: str = Field(description="The adapter's name.")
    metadata: dict[str, str]


class Embedding(Answer):
    """A textual-inversion embedding."""

    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int
    vectors: int


class Embeddings(Answer):
    """By their names."""

    loaded: dict[str, Embedding]
    skipped: dict[str, Embedding]


class Hypernetwork(Answer):
    """There are none."""

    name: str
    path: str | None = None


class FaceRestorer(Answer):
    """There are none."""

    name: str
    cmd_dir: str | None = None


class RealesrganModel(Answer):
    """A network that enlarges."""

    name: str
    path: str | None = None
    scale: int | None = None


class Style(Answer):
    """A style."""

    name: str
    prompt: str | None = None
    negative_prompt: str | None = None


class Scripts(Answer):
    """Names of scripts; there are none."""

    txt2img: list[str]
    img2img: list[str]


class Memory(Answer):
    """Bytes."""

    ram: dict[str, Any]
    cuda: dict[str, Any]


class WebuiProblem(Answer):
    """What went wrong."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "NotFoundError", "detail": "sampler 'LMS': not one of fewstep's",
                    "body": "", "errors": "sampler 'LMS': not one of fewstep's",
                }
            ]
        }
    )  # fmt: skip

    error: str
    detail: str | list[Any]
    body: str = ""
    errors: str = ""
