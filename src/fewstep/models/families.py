"""Families of models: which classes a pipeline folder may name, and how such a model is drawn with.

The table is a closed list. A folder is recognised by the class name in its ``model_index.json`` and by facts
in the configurations of its parts; a ``fewstep.json`` in it goes before everything that is derived here.
No torch: the classes are names, which `fewstep.models.load` looks up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.scheduler_config import CLASS_NAMES
from fewstep.diffusion.scheduler_reading import FLOW_CLASSES, TABLE_CLASSES, from_scheduler_config
from fewstep.errors import CheckpointError

MAX_CLASSES = 100_000
_MAX_LABEL = 1000
_RENAMED = {"Transformer2DModel": "DiTTransformer2DModel"}

Pair = tuple[str, str]
"""(library, class)."""

TextStyle = Literal["last", "sdxl", "sd3", "t5", "classes"]
"""How text encoders become conditions; see `fewstep.models.prompting`. ``classes``: there are none."""

_BERT = frozenset({("transformers", "BertModel")})
_CLIP = frozenset({("transformers", "CLIPTextModel")})
_CLIP_POOLED = frozenset({("transformers", "CLIPTextModelWithProjection")})
_T5 = frozenset({("transformers", "T5EncoderModel")})
_BERT_TOKENS = frozenset({("transformers", "BertTokenizer"), ("transformers", "BertTokenizerFast")})
_CLIP_TOKENS = frozenset({("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast")})
_T5_TOKENS = frozenset({("transformers", "T5Tokenizer"), ("transformers", "T5TokenizerFast")})
_VAE = frozenset({("diffusers", "AutoencoderKL")})
_UNET = frozenset({("diffusers", "UNet2DConditionModel")})
_TABLES = frozenset(("diffusers", name) for name in TABLE_CLASSES | (CLASS_NAMES - set(FLOW_CLASSES)))
_FLOWS = frozenset(("diffusers", name) for name in FLOW_CLASSES)

_UNUSED: Mapping[str, frozenset[Pair]] = {
    "safety_checker": frozenset({("stable_diffusion", "StableDiffusionSafetyChecker")}),
    "feature_extractor": frozenset(
        {
            ("transformers", "CLIPImageProcessor"),
            ("transformers", "CLIPFeatureExtractor"),
            ("transformers", "SiglipImageProcessor"),
        }
    ),
    "image_encoder": frozenset(
        {("transformers", "CLIPVisionModelWithProjection"), ("transformers", "SiglipVisionModel")}
    ),
}
"""Parts that a folder may name and that are never loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One kind of model."""

    name: str
    title: str
    """For messages."""
    pipelines: frozenset[str]
    """Accepted ``_class_name`` of ``model_index.json``."""
    parts: Mapping[str, frozenset[Pair]]
    """Accepted (library, class) of each part that is loaded."""
    optional: frozenset[str] = frozenset()
    """Parts that may be missing."""
    denoiser: Literal["unet", "transformer"] = "unet"
    text: TextStyle = "last"
    max_tokens: int | None = None
    """Length of a T5 sequence, which its tokenizer does not say."""
    sample_size: int
    """Latent cells along one side, where the denoiser's configuration does not say."""
    num_inference_steps: int = 25
    guidance_scale: float = 7.5
    aliases: frozenset[str] = frozenset()
    """Other names of the same weights' family in sampling contracts."""
    steps_offset: int | None = None
    """What diffusers' pipeline sets in its scheduler, whatever the file says."""
    zero_empty_negative: bool = False
    """Default of ``force_zeros_for_empty_prompt``."""

    @property
    def text_parts(self) -> tuple[tuple[str, str], ...]:
        """(text encoder, tokenizer) in the order in which they are used."""
        names = [name for name in self.parts if name.startswith("text_encoder")]
        return tuple((name, name.replace("text_encoder", "tokenizer")) for name in names)


def _parts(tokens: frozenset[Pair], text: frozenset[Pair], schedulers: frozenset[Pair]) -> dict[str, Any]:
    return {"vae": _VAE, "unet": _UNET, "text_encoder": text, "tokenizer": tokens, "scheduler": schedulers}


_SD = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    }
)

EMOJI = Family(
    name="fewstep-emoji",
    title="a model of fewstep's own (BERT text encoder)",
    pipelines=frozenset({"StableDiffusionPipeline"}),
    parts=_parts(_BERT_TOKENS, _BERT, _TABLES | _FLOWS),
    sample_size=16,
)
SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1",
    pipelines=_SD,
    parts=_parts(_CLIP_TOKENS, _CLIP, _TABLES | _FLOWS),
    sample_size=64,
    aliases=frozenset({"sd14", "sd15"}),
    steps_offset=1,
)
SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2",
    pipelines=_SD,
    parts=SD1.parts,
    sample_size=96,
    aliases=frozenset({"sd20", "sd21"}),
    steps_offset=1,
)
SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    pipelines=frozenset(
        {
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLInstructPix2PixPipeline",
        }
    ),
    parts={
        "vae": _VAE,
        "unet": _UNET,
        "text_encoder": _CLIP,
        "text_encoder_2": _CLIP_POOLED,
        "tokenizer": _CLIP_TOKENS,
        "tokenizer_2": _CLIP_TOKENS,
        "scheduler": _TABLES,
    },
    text="sdxl",
    sample_size=128,
    guidance_scale=5.0,
    aliases=frozenset({"ssd-1b"}),
    zero_empty_negative=True,
)
SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3",
    pipelines=frozenset(
        {
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
        }
    ),
    parts={
        "vae": _VAE,
        "transformer": frozenset({("diffusers", "SD3Transformer2DModel")}),
        "text_encoder": _CLIP_POOLED,
        "text_encoder_2": _CLIP_POOLED,
        "text_encoder_3": _T5,
        "tokenizer": _CLIP_TOKENS,
        "tokenizer_2": _CLIP_TOKENS,
        "tokenizer_3": _T5_TOKENS,
        "scheduler": _FLOWS,
    },
    optional=frozenset({"text_encoder_3", "tokenizer_3"}),
    denoiser="transformer",
    text="sd3",
    max_tokens=256,
    sample_size=128,
    num_inference_steps=28,
    guidance_scale=7.0,
    aliases=frozenset({"sd35"}),
)


def _pixart(name: str, title: str, pipeline: str, max_tokens: int) -> Family:
    return Family(
        name=name,
        title=title,
        pipelines=frozenset({pipeline}),
        parts={
            "vae": _VAE,
            "transformer": frozenset({("diffusers", "PixArtTransformer2DModel")}),
            "text_encoder": _T5,
            "tokenizer": _T5_TOKENS,
            "scheduler": _TABLES,
        },
        denoiser="transformer",
        text="t5",
        max_tokens=max_tokens,
        sample_size=128,
        num_inference_steps=20,
        guidance_scale=4.5,
    )


PIXART_ALPHA = _pixart("pixart-alpha", "PixArt-alpha", "PixArtAlphaPipeline", 120)
PIXART_SIGMA = _pixart("pixart-sigma", "PixArt-Sigma", "PixArtSigmaPipeline", 300)

DIT = Family(
    name="dit",
    title="DiT (classes in place of a text)",
    pipelines=frozenset({"DiTPipeline"}),
    parts={
        "vae": _VAE,
        # The published folders name the class that diffusers had before; it is read as the other.
        "transformer": frozenset(("diffusers", name) for name in ("DiTTransformer2DModel", *_RENAMED)),
        "scheduler": _TABLES,
    },
    denoiser="transformer",
    text="classes",
    sample_size=32,
    guidance_scale=4.0,
)

FAMILIES: tuple[Family, ...] = (EMOJI, SD1, SD2, SDXL, SD3, PIXART_ALPHA, PIXART_SIGMA, DIT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a folder's ``model_index.json`` says, checked."""

    family: Family
    classes: Mapping[str, str]
    """Part -> class; optional parts that are missing are not here."""
    zero_empty_negative: bool = False
    classes_by_name: Mapping[str, int] = field(default_factory=dict)
    """Names of a class-conditional model's classes, in small letters; each may have several."""


def named(name: str) -> Family | None:
    """The family of a name in a sampling contract; None where it is not one of `FAMILIES`."""
    return next((family for family in FAMILIES if name == family.name or name in family.aliases), None)


def read_index(root: Path) -> Index:
    """Read ``model_index.json`` and refuse what is not in `FAMILIES`.

    Raises:
        CheckpointError: missing, not JSON, a pipeline or a part of a class that is not accepted, a part
            missing or unknown.
    """
    path = root / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{root}: no readable model_index.json; is it a diffusers folder?") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch or export the folder again")
    family = _family(path, root, index)
    classes = {}
    for part, accepted in family.parts.items():
        pair = _pair(index.get(part))
        if pair is None and part in family.optional and index.get(part) in (None, [None, None]):
            continue
        if pair not in accepted:
            raise _foreign(path, part, index.get(part), accepted)
        classes[part] = _RENAMED.get(pair[1], pair[1])
    for part, value in index.items():
        unused = isinstance(value, list) and part not in family.parts and value != [None, None]
        if unused and _pair(value) not in _UNUSED.get(part, frozenset()):
            raise _foreign(path, part, value, _UNUSED.get(part, frozenset()))
    zeros = index.get("force_zeros_for_empty_prompt", family.zero_empty_negative)
    names = _class_names(path, index.get("id2label")) if family.text == "classes" else {}
    return Index(family=family, classes=classes, zero_empty_negative=zeros is True, classes_by_name=names)


def _class_names(path: Path, labels: Any) -> dict[str, int]:
    """Names of classes from ``id2label``, as diffusers' pipeline reads them: a comma divides several of one.

    Raises:
        CheckpointError: not a table of names by number.
    """
    if labels is None:
        return {}
    found: dict[str, int] = {}
    plain = isinstance(labels, dict) and len(labels) <= MAX_CLASSES
    for number, label in labels.items() if plain else ():
        plain = bool(re.fullmatch("[0-9]{1,5}", number)) and isinstance(label, str)
        if not plain:
            break
        for name in label[:_MAX_LABEL].split(","):
            if name.strip():
                found.setdefault(name.strip().lower(), int(number))
    if not plain:
        raise CheckpointError(f"{path}: id2label is no table of names by number; fetch the folder again")
    return found


def _pair(value: Any) -> Pair | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value):
        return value[0], value[1]
    return None


def _foreign(path: Path, part: str, value: Any, accepted: frozenset[Pair]) -> CheckpointError:
    names = ", ".join(sorted(".".join(pair) for pair in accepted)) or "nothing"
    return CheckpointError(f"{path}: {part} is {value!r:.120}; only {names} is accepted")


def _family(path: Path, root: Path, index: Mapping[str, Any]) -> Family:
    name = index.get("_class_name")
    found = [family for family in FAMILIES if isinstance(name, str) and name in family.pipelines]
    if not found:
        known = ", ".join(sorted({pipeline for family in FAMILIES for pipeline in family.pipelines}))
        raise CheckpointError(f"{path}: _class_name is {name!r:.80}; only these pipelines are read: {known}")
    if len(found) == 1:
        return found[0]
    if _pair(index.get("text_encoder")) in _BERT:
        return EMOJI
    # Stable Diffusion 2 has OpenCLIP's text encoder; its U-Net projects linearly, which 1 does not.
    linear = config(root / "unet").get("use_linear_projection") is True
    return SD2 if linear else SD1


def config(folder: Path) -> dict[str, Any]:
    """A part's ``config.json``.

    Raises:
        CheckpointError: missing, not a JSON object, or it asks for code from the folder.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder}: no readable config.json; fetch or export the folder again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not an object; fetch or export the folder again")
    # transformers would import modules that auto_map names; nothing of ours has one.
    if "auto_map" in found:
        raise CheckpointError(f"{path}: auto_map asks for code from the folder; remove that entry")
    return found


def scheduler_of(root: Path, index: Index) -> dict[str, Any]:
    """The configuration of a folder's scheduler.

    Raises:
        CheckpointError: not readable, or of another class than the index says.
    """
    path = root / "scheduler" / "scheduler_config.json"
    try:
        scheduler = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not readable, so it is not known how to sample {root.name}"
        ) from error
    if not isinstance(scheduler, dict) or scheduler.get("_class_name") != index.classes["scheduler"]:
        raise CheckpointError(
            f"{path}: not a {index.classes['scheduler']}, which model_index.json says; fetch the folder again"
        )
    return scheduler


def derived_contract(root: Path) -> SamplingContract:
    """How a folder without a ``fewstep.json`` is sampled: its scheduler's configuration and its family.

    The schedule, the prediction type and the spacing are the scheduler's. The solver is DPM-Solver++(2M)
    where the folder has a slow one for many steps, since it needs fewer; a folder for few steps (trailing
    spacing, LCM, TCD) and a flow keep their own. Any other solver can be asked for, the folder's own
    included, and then visits the times that it visits in diffusers.

    Raises:
        CheckpointError: the folder is not of a known family, or its scheduler cannot be followed.
    """
    index = read_index(root)
    family, path = index.family, root / "scheduler" / "scheduler_config.json"
    scheduler = scheduler_of(root, index)
    try:
        return contract_of(family, scheduler, config(root / family.denoiser), downscale(config(root / "vae")))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def contract_of(
    family: Family, scheduler: Mapping[str, Any], network: Mapping[str, Any], downscale: int
) -> SamplingContract:
    """`derived_contract` of what is known already.

    Args:
        family: of the model.
        scheduler: its scheduler's configuration.
        network: its denoiser's.
        downscale: pixels per latent cell along one side.

    Raises:
        CheckpointError: the scheduler cannot be followed, or the denoiser's size is none.
    """
    fields = from_scheduler_config(scheduler)
    if family.steps_offset is not None and "steps_offset" in fields:
        fields["steps_offset"] = family.steps_offset
    fields["solver"] = _solver(fields)
    guidance: dict[str, Any] = {"guidance_scale": family.guidance_scale}
    if network.get("time_cond_proj_dim") is not None:  # a latent consistency model, told the scale
        guidance = {"guidance": "embedded", "guidance_scale": 8.0, "negative_prompt_effective": False}
    side = native_side(network, downscale, family)
    return SamplingContract(
        base_family=family.name,
        num_inference_steps=4 if fields["solver"] in ("lcm", "tcd") else family.num_inference_steps,
        native_sizes=((side, side),),
        **guidance,
        **fields,
    )


def _solver(fields: Mapping[str, Any]) -> str:
    own = fields["solver"]
    if own is None or (own in _SLOW and fields["spacing"] != "trailing"):
        return "dpmpp_2m"
    return str(own)


_SLOW = frozenset({"ddim", "ddpm", "plms", "euler", "euler_a", "heun"})


def native_side(network: Mapping[str, Any], downscale: int, family: Family) -> int:
    """Pixels along one side that the denoiser was trained on, by its configuration.

    Raises:
        CheckpointError: a size that is no size.
    """
    size = network.get("sample_size", family.sample_size)
    if isinstance(size, list) and size:
        size = size[0]
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise CheckpointError(f"{family.denoiser}/config.json: sample_size is {size!r:.60}: give 1 to 4096")
    return size * downscale


def downscale(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell along one side.

    Raises:
        CheckpointError: the configuration does not say.
    """
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 16:
        raise CheckpointError(f"vae/config.json: block_out_channels is {blocks!r:.60}: give one per level")
    return int(2 ** (len(blocks) - 1))
