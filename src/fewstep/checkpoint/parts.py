"""The networks of a model: which tensors of a file belong to each, and under which names.

A part is found by a name that only it has. What lies under a part's prefix and has no place in the part is
an error, not left out: such a file is a changed network or a damaged one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fewstep.checkpoint import part_configs
from fewstep.checkpoint.keymaps import pixart, sd3, text, unet, vae
from fewstep.checkpoint.keymaps.moves import IDENTITY, KeyMap, Place, places
from fewstep.checkpoint.naming import first
from fewstep.checkpoint.part_configs import Config, Family
from fewstep.checkpoint.tensorfile import Shape
from fewstep.errors import CheckpointError

Layout = Literal["original", "diffusers"]
Shapes = Mapping[str, Shape]
Network = Mapping[str, tuple[Place, Shape]]

PROJECTION = "text_projection.weight"
"""Stable Diffusion 3's files have none for CLIP-L, whose pooled output they take as it is."""

KINDS = "give Stable Diffusion 1, 2, XL, 3 or PixArt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One network of a file or folder.

    Attributes:
        name: of its folder in a pipeline: ``unet``, ``transformer``, ``vae``, ``text_encoder`` …
        class_name: of the network in diffusers or transformers.
        layout: whose names the file uses.
        prefix: what its names begin with in the file.
        places: diffusers' name -> (place in the file, without the prefix; shape).
        config: as in ``config.json``; empty where the family is not known.
    """

    name: str
    class_name: str
    layout: Layout
    prefix: str
    places: Network = field(repr=False)
    config: Config = field(repr=False)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes by diffusers' names."""
        return {name: shape for name, (_, shape) in self.places.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoder:
    """A text encoder of a family: its kind, and where single files have it."""

    kind: Literal["clip", "openclip", "t5"]
    prefixes: tuple[str, ...]
    projection: bool = False
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"

    @property
    def class_name(self) -> str:
        """Its class in transformers."""
        if self.kind == "t5":
            return "T5EncoderModel"
        return "CLIPTextModelWithProjection" if self.projection else "CLIPTextModel"


TEXT_ENCODERS: dict[Family, dict[str, TextEncoder]] = {
    "sd1": {
        "text_encoder": TextEncoder(
            kind="clip", prefixes=("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
        )
    },
    "sd2": {
        "text_encoder": TextEncoder(
            kind="openclip",
            prefixes=("cond_stage_model.model.", "conditioner.embedders.0.model."),
            act="gelu",
        )
    },
    "sdxl": {
        "text_encoder": TextEncoder(kind="clip", prefixes=("conditioner.embedders.0.transformer.",)),
        "text_encoder_2": TextEncoder(
            kind="openclip", prefixes=("conditioner.embedders.1.model.",), projection=True, act="gelu"
        ),
    },
    "sd3": {
        "text_encoder": TextEncoder(
            kind="clip", prefixes=("text_encoders.clip_l.transformer.",), projection=True
        ),
        "text_encoder_2": TextEncoder(
            kind="clip", prefixes=("text_encoders.clip_g.transformer.",), projection=True, act="gelu"
        ),
        "text_encoder_3": TextEncoder(kind="t5", prefixes=("text_encoders.t5xxl.transformer.",)),
    },
    "pixart-alpha": {"text_encoder": TextEncoder(kind="t5", prefixes=())},
    "pixart-sigma": {"text_encoder": TextEncoder(kind="t5", prefixes=())},
}
"""By folder name; the first prefix is the one that is written. PixArt has no single file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoiser:
    """The denoiser of a file, before it has a config."""

    name: Literal["unet", "transformer"]
    family: Family
    layout: Layout
    prefix: str
    places: Network
    positions: int | None = None
    """Length of PixArt's position table, if the file has it."""


def find_denoiser(shapes: Shapes) -> Denoiser | None:
    """The denoiser of a file, None when it has none.

    Raises:
        CheckpointError: of a kind that is not supported, or with tensors that have no place.
    """
    for prefix in (unet.PREFIX, "", "unet.", "transformer."):
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        found = _denoiser(own)
        if found is None:
            continue
        name, layout, keymap, family = found
        table = own.get(pixart.POSITIONS, ())
        return Denoiser(
            name=name,
            family=family,
            layout=layout,
            prefix=prefix,
            places=placed(shapes, prefix, keymap, f"the {name} of {family}"),
            positions=table[1] if len(table) == 3 else None,
        )
    return None


def find_vae(shapes: Shapes, family: Family | None, prediction_type: str | None = None) -> Part | None:
    """The autoencoder of a file; its config is empty when ``family`` is None. Raises as `find_denoiser`."""
    for prefix in (vae.PREFIX, "vae.", ""):
        names = {key.removeprefix(prefix) for key in shapes if key.startswith(prefix)}
        layout: Layout
        if {"decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"} <= names:
            layout, keymap = "original", vae.keymap(*vae.from_original(names))
        elif {"decoder.conv_in.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"} <= names:
            layout, keymap = "diffusers", vae.diffusers_map(*vae.from_diffusers(names))
        else:
            continue
        network = placed(shapes, prefix, keymap, "the autoencoder")
        own = {key: shape for key, (_, shape) in network.items()}
        return Part(
            name="vae",
            class_name="AutoencoderKL",
            layout=layout,
            prefix=prefix,
            places=network,
            config=part_configs.vae_config(own, family, prediction_type=prediction_type) if family else {},
        )
    return None


def find_text_encoders(shapes: Shapes, family: Family) -> dict[str, Part]:
    """The text encoders in a family's single file, by folder name. Raises as `find_denoiser`."""
    found = {}
    for name, encoder in TEXT_ENCODERS[family].items():
        for prefix in encoder.prefixes:
            part = text_encoder(shapes, name, encoder, prefix, "original")
            if part is not None:
                found[name] = part
                break
    return found


def text_encoder(shapes: Shapes, name: str, encoder: TextEncoder, prefix: str, layout: Layout) -> Part | None:
    """One text encoder under a prefix, None when it is not there. Raises as `find_denoiser`."""
    names = {key.removeprefix(prefix) for key in shapes if key.startswith(prefix)}
    if encoder.kind == "t5":
        if "shared.weight" not in names:
            return None
        keymap = text.t5()
    elif encoder.kind == "openclip" and layout == "original":
        if "token_embedding.weight" not in names:
            return None
        keymap = text.openclip(text.openclip_layers(names), projection=encoder.projection)
    else:
        words = "embeddings.token_embedding.weight"
        if not {words, f"text_model.{words}"} & names:
            return None
        keymap = text.clip(projection=encoder.projection)
    network = placed(shapes, prefix, keymap, f"the {name}")
    own = {key: shape for key, (_, shape) in network.items()}
    table = own.get("text_model.embeddings.token_embedding.weight", ())
    left_out = layout == "original" and encoder.kind == "clip" and encoder.projection
    if left_out and PROJECTION not in own and len(table) == 2:
        own[PROJECTION] = table[1], table[1]
        network = {**network, PROJECTION: (IDENTITY, own[PROJECTION])}
    return Part(
        name=name,
        class_name=encoder.class_name,
        layout=layout,
        prefix=prefix,
        places=network,
        config=part_configs.t5_config(own)
        if encoder.kind == "t5"
        else part_configs.clip_config(own, act=encoder.act, class_name=encoder.class_name),
    )


def original_naming(part: Part, family: Family) -> tuple[str, KeyMap]:
    """The prefix and the key map of a part in its family's single file.

    Raises:
        CheckpointError: the family's authors have no single file with this part.
    """
    names = part.places.keys()
    if part.name == "unet":
        return unet.PREFIX, unet.keymap(unet.from_diffusers(names))
    if part.name == "transformer":
        if family == "sd3":
            return sd3.PREFIX, sd3.keymap(sd3.layers_of(names))
        return "", pixart.keymap(pixart.layers_of(names))
    encoder = TEXT_ENCODERS[family].get(part.name)
    if family.startswith("pixart") or (part.name != "vae" and (encoder is None or not encoder.prefixes)):
        raise CheckpointError(
            f"{family} has no single file with a {part.name}; convert its transformer alone"
        )
    if encoder is None:
        return vae.PREFIX, vae.keymap(*vae.from_diffusers(names))
    prefix = encoder.prefixes[0]
    if encoder.kind == "openclip":
        return prefix, text.openclip(text.clip_layers(names), projection=encoder.projection)
    return prefix, text.t5() if encoder.kind == "t5" else text.clip(projection=encoder.projection)


def placed(shapes: Shapes, prefix: str, keymap: KeyMap, what: str) -> Network:
    """The tensors under a prefix, by diffusers' names.

    Raises:
        CheckpointError: some of them have no place in the key map, and are not dropped by its rule.
    """
    own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    if not prefix:  # a bare network may lie beside averages and counters of its training
        own = {key: shape for key, shape in own.items() if not _beside(key)}
    found, strange = places(keymap, own)
    strange += [name for name, shape in own.items() if 0 in shape]
    if strange:
        raise CheckpointError(
            f"{len(strange)} tensors have no place in {what}, the first: {first(strange)}; "
            "it is a changed network or a damaged file"
        )
    return found


def _denoiser(own: Shapes) -> tuple[Literal["unet", "transformer"], Layout, KeyMap, Family] | None:
    names = own.keys()
    if "input_blocks.0.0.weight" in names:
        structure = unet.from_original(names)
        return (
            "unet",
            "original",
            unet.keymap(structure),
            _unet_family(own, structure, "label_emb.0.0.weight"),
        )
    if {"conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"} <= names:
        structure = unet.from_diffusers(names)
        family = _unet_family(own, structure, "add_embedding.linear_1.weight")
        return "unet", "diffusers", unet.diffusers_map(structure), family
    if "joint_blocks.0.context_block.attn.qkv.weight" in names:
        return "transformer", "original", sd3.keymap(sd3.layers_of(names)), "sd3"
    if {"pos_embed.proj.weight", "transformer_blocks.0.attn.add_q_proj.weight"} <= names:
        return "transformer", "diffusers", sd3.keymap(sd3.layers_of(names)).of_diffusers(), "sd3"
    if {"blocks.0.cross_attn.kv_linear.weight", "t_block.1.weight", "blocks.0.mlp.fc1.weight"} <= names:
        return "transformer", "original", pixart.keymap(pixart.layers_of(names)), _pixart_family(own)
    if {"adaln_single.linear.weight", "caption_projection.linear_1.weight", "pos_embed.proj.weight"} <= names:
        keymap = pixart.keymap(pixart.layers_of(names)).of_diffusers()
        return "transformer", "diffusers", keymap, _pixart_family(own)
    return None


def _unet_family(own: Shapes, structure: unet.Structure, sizes: str) -> Family:
    """Stable Diffusion 1 projects by convolutions, 2 by matrices, XL embeds sizes besides."""
    if any(name.startswith("class_embedding.") for name in own):
        raise CheckpointError(f"has a U-Net with class embeddings; {KINDS}")
    if sizes not in own:
        ranks = {len(shape) for name, shape in own.items() if name.endswith(".proj_in.weight")}
        if len(ranks) != 1:
            raise CheckpointError(f"has a U-Net without attention to text; first keys: {first(own)}")
        return "sd1" if ranks == {4} else "sd2"
    if structure.blocks == 4:  # the base of XL has three resolutions
        widths = {shape[-1] for name, shape in own.items() if name.endswith(".attn2.to_k.weight")}
        if 1024 in widths:
            raise CheckpointError(f"is Stable Diffusion 2 unCLIP, which is conditioned on pictures; {KINDS}")
        raise CheckpointError(
            "is the refiner of Stable Diffusion XL, which only finishes what the base began; give the base"
        )
    return "sdxl"


def _pixart_family(own: Shapes) -> Family:
    """Alpha was trained on captions of 120 tokens, its 1024 pixel model also on sizes; Sigma on 300 tokens.

    Where neither is in the file it is taken for Sigma.
    """
    caption = own.get(pixart.EMPTY_CAPTION)
    if caption:
        return "pixart-alpha" if caption[0] <= 120 else "pixart-sigma"
    sizes = {"csize_embedder.mlp.0.weight", "adaln_single.emb.resolution_embedder.linear_1.weight"}
    return "pixart-alpha" if sizes & own.keys() else "pixart-sigma"


_COUNTERS = frozenset({"v_pred", "ztsnr", "global_step", "epoch", "iteration"})


def _beside(name: str) -> bool:
    others = ("model_ema.", vae.PREFIX, "cond_stage_model.", "conditioner.", "text_encoders.")
    return name in _COUNTERS or name.startswith(others)
