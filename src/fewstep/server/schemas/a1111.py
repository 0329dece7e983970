"""Requests of the Stable Diffusion WebUI's API (version 1.10), field by field.

A field that is not known is ignored, as clients of that API expect, and logged once. A field that is absent
is left to the model, whatever the WebUI's own default is: nobody chose those numbers for few steps.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_log = logging.getLogger("fewstep.server")
_ignored: set[str] = set()
_MOST_LOGGED = 256

MAX_SIDE = 16_384
MAX_SEED = 2**63 - 1


def _nothing(value: Any) -> Any:
    # What the WebUI's forms and its clients send for "not given".
    return None if value in ("", "None") else value


Value = TypeVar("Value")
Maybe = Annotated[Value | None, BeforeValidator(_nothing)]
Text = Maybe[str]
Seed = Annotated[Maybe[Annotated[int, Field(ge=-1, le=MAX_SEED)]], Field(description="-1 is by lot.")]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Lenient(BaseModel):
    """Takes fields that it does not know, and says so once in the log."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    def model_post_init(self, context: Any, /) -> None:
        """Log what is ignored."""
        for name in self.model_extra or {}:
            if name not in _ignored and len(_ignored) < _MOST_LOGGED:
                _ignored.add(name)
                _log.info("field %.60r of the WebUI's API is not known here and ignored", name)


class Generation(Lenient):
    """What txt2img and img2img have in common."""

    prompt: str = ""
    negative_prompt: str = ""
    styles: Maybe[list[str]] = Field(None, description="Names of `prompt-styles`.")
    seed: Seed = -1
    subseed: Seed = -1
    subseed_strength: Share = 0.0
    seed_resize_from_h: int | None = Field(-1, le=MAX_SIDE)
    seed_resize_from_w: int | None = Field(-1, le=MAX_SIDE)
    sampler_name: Text = Field(None, description="Of `samplers`; absent is the model's own.")
    scheduler: Text = Field(None, description="Of `schedulers`; absent is the model's own.")
    batch_size: int = Field(1, ge=1, description="With `n_iter`, how many pictures.")
    n_iter: int = Field(1, ge=1)
    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Absent is the model's own.")
    cfg_scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = Field(
        None,
        description="Absent is the model's own; so is 7, which clients send when nobody chose, for a model "
        "whose own is below 5.",
    )
    width: Side = Field(512, description="What is not drawn at this size is brought to it by an upscaler.")
    height: Side = 512
    restore_faces: bool | None = Field(None, description="Has no effect.")
    tiling: bool | None = Field(None, description="Has no effect.")
    do_not_save_samples: bool = Field(False, description="Keep no picture in the server's history.")
    do_not_save_grid: bool = False
    eta: float | None = Field(None, description="Of the sampler DDIM.")
    denoising_strength: Share | None = 0.75
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] | None = Field(
        None, description="Options for this order alone, such as `sd_model_checkpoint`; see `options`."
    )
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: Text = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: Text = Field(None, description="A picture in place of the first pass of `enable_hr`.")
    comments: dict[str, Any] | None = None
    force_task_id: Maybe[Annotated[str, Field(max_length=200)]] = Field(
        None, description="Name of the task for `/internal/progress`."
    )
    sampler_index: Text = Field(None, description="Old name of `sampler_name`.")
    script_name: Text = None
    script_args: list[Any] = []
    send_images: bool = True
    save_images: bool = Field(False, description="Has no effect: see `do_not_save_samples`.")
    alwayson_scripts: dict[str, Any] = {}
    infotext: Text = Field(None, description="Fills in what the other fields do not say.")


class Txt2Img(Generation):
    """Pictures from a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple", "steps": 4, "seed": 1},
                {
                    "prompt": "a slice of pizza", "steps": 20, "cfg_scale": 7, "sampler_name": "Euler a",
                    "width": 512, "height": 512,
                },
            ]
        }
    )  # fmt: skip

    enable_hr: bool = False
    firstphase_width: int = Field(0, ge=0, le=MAX_SIDE)
    firstphase_height: int = Field(0, ge=0, le=MAX_SIDE)
    hr_scale: float = Field(2.0, ge=1.0, le=16.0)
    hr_upscaler: str | None = Field(None, description="Of `upscalers`, or `Latent`, as when it is absent.")
    hr_second_pass_steps: int = Field(0, ge=0, description="Steps that are run; 0 is as many as `steps`.")
    hr_resize_x: int = Field(0, ge=0, le=MAX_SIDE)
    hr_resize_y: int = Field(0, ge=0, le=MAX_SIDE)
    hr_checkpoint_name: Text = None
    hr_sampler_name: Text = None
    hr_scheduler: Text = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""


class Img2Img(Generation):
    """Pictures from pictures, whole or where a mask is white."""

    init_images: list[str] | None = Field(None, description="In base64; at least one.")
    resize_mode: int = Field(0, ge=0, le=3, description="0 stretches, 1 crops, 2 fills, 3 stretches.")
    image_cfg_scale: float | None = Field(None, description="Of models that take instructions.")
    mask: Text = Field(None, description="In base64: white, or opaque, is drawn anew.")
    mask_blur_x: int = Field(4, ge=0, le=256)
    mask_blur_y: int = Field(4, ge=0, le=256)
    mask_blur: int | None = Field(None, ge=0, le=256, description="In place of the two others.")
    mask_round: bool = True
    inpainting_fill: int = Field(
        0, ge=0, le=3, description="Under the mask: 0 fill, 1 the picture, 2 latent noise, 3 latent nothing."
    )
    inpaint_full_res: bool = Field(True, description="Draw the part around the mask alone.")
    inpaint_full_res_padding: int = Field(0, ge=0, le=4096)
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    initial_noise_multiplier: float | None = None
    latent_mask: Text = None
    include_init_images: bool = Field(False, description="Give `init_images` and `mask` back.")


class Extras(Lenient):
    """What is done to pictures by the Extras."""

    resize_mode: Literal[0, 1] = Field(0, description="0 to a factor, 1 to a size.")
    show_extras_results: bool = True
    gfpgan_visibility: Share = 0.0
    codeformer_visibility: Share = 0.0
    codeformer_weight: Share = 0.0
    upscaling_resize: float = Field(2.0, gt=0.0, le=16.0)
    upscaling_resize_w: Side = 512
    upscaling_resize_h: Side = 512
    upscaling_crop: bool = True
    upscaler_1: str = Field("None", description="Of `upscalers`.")
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Share = 0.0
    upscale_first: bool = False


class ExtrasSingle(Extras):
    """One picture."""

    image: str = Field("", description="In base64.")


class FileData(Lenient):
    """A picture and its name."""

    data: str = Field(description="In base64.")
    name: str = ""


class ExtrasBatch(Extras):
    """Several pictures."""

    imageList: list[FileData]


class PngInfo(Lenient):
    """A picture to read."""

    image: str = Field(description="In base64.")


class Interrogate(Lenient):
    """A picture to describe."""

    image: str = ""
    model: str = "clip"


class ProgressOf(Lenient):
    """A task by its name."""

    id_task: str | None = None
    id_live_preview: int = -1
    live_preview: bool = True
