"""Names of layers in adapter files: kohya's underscores, CompVis's blocks, diffusers' module paths.

kohya writes ``_`` for ``.``, so ``a_b`` may be ``a.b`` or ``a_b``. Where the names of the base are known
they decide; otherwise a list of the words with underscores in U-Nets, transformers and CLIP of the Stable
Diffusion families does. Block numbers of CompVis's U-Net assume two layers a block, as that family has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PREFIXES = {
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lycoris": "unet",
}
"""kohya's prefix of a tensor name -> the part of the pipeline (``lycoris`` is LyCORIS used by itself)."""

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

_WORDS = frozenset(
    # U-Nets
    "down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out conv_in "
    "conv_out conv_norm_out conv_shortcut time_emb_proj time_embedding add_embedding class_embedding "
    "linear_1 linear_2 cond_proj group_norm encoder_hid_proj "
    # transformers
    "single_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out norm_q norm_k norm_added_q "
    "norm_added_k norm1_context ff_context pos_embed context_embedder time_text_embed timestep_embedder "
    "text_embedder norm_out "
    # CLIP
    "text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm "
    "token_embedding position_embedding text_projection".split()
)
_LONGEST = max(word.count("_") for word in _WORDS) + 1

_RESNET = {
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {  # layers outside the blocks
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_CLIP = re.compile(r"(encoder\.layers\.|final_layer_norm$|embeddings\.(token|position)_embedding$)")


def shown(name: str) -> str:
    """A name from a file as a message may have it: quoted, escaped, not endless."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")


def flat_names(names: Iterable[str]) -> dict[str, str | None]:
    """Underscored name -> module path, of a base's modules; None where two paths give one name.

    CLIP's layers stand there with and without ``text_model.``, which files have and newer versions of
    transformers do not; the path always has it.
    """
    found: dict[str, str | None] = {}
    for name in names:
        path = with_text_model(name)
        for spelling in {name, path}:
            flat = spelling.replace(".", "_")
            found[flat] = path if found.get(flat, path) == path else None
    return found


def from_kohya(stem: str, known: Mapping[str, str | None] | None = None) -> str:
    """Module path of a kohya stem such as ``input_blocks_4_1_proj_in`` or ``mid_block_resnets_0_conv1``.

    Args:
        stem: without the prefix and without the ending.
        known: of `flat_names`, when the base is known.

    Raises:
        ValueError: two layers of the base have that name, or it cannot be the name of a layer.
    """
    flat = _from_compvis(stem) or stem
    if known is not None and flat in known:
        name = known[flat]
        if name is None:
            raise ValueError(f"two layers of the base are called {flat!r} in kohya's spelling")
        return name
    tokens, words, at = flat.split("_"), [], 0
    if not all(tokens):
        raise ValueError(f"{flat!r} cannot be a layer")
    while at < len(tokens):
        for length in range(_LONGEST, 0, -1):
            word = "_".join(tokens[at : at + length])
            if length == 1 or word in _WORDS:
                break
        words.append(word)
        at += word.count("_") + 1
    return ".".join(words)


def is_compvis(stem: str) -> bool:
    """Whether a stem is spelt as in the authors' code of Stable Diffusion."""
    return _from_compvis(stem) is not None


def to_kohya(layer: str, *, compvis_slot: int | None = None) -> str:
    """Stem of a module path.

    Args:
        layer: as in diffusers.
        compvis_slot: when given, a U-Net's layer is spelt as CompVis's, which is what trainers write for
            SDXL; it is the place of the upsampler in the first up block: 2 in SDXL, 1 in Stable Diffusion 1
            and 2, whose first up block has no attention.

    Raises:
        ValueError: it could not be read back, because the path has underscores of its own.
    """
    flat = layer.replace(".", "_")
    stem = flat if compvis_slot is None else _to_compvis(flat, compvis_slot)
    if stem is None or from_kohya(stem) != layer:
        raise ValueError(f"{layer!r} could not be read back")
    return stem


def with_text_model(layer: str) -> str:
    """A layer of CLIP's text encoder as files have it, under ``text_model.``; other names stay."""
    return f"text_model.{layer}" if _CLIP.match(layer) else layer


def without_text_model(layer: str) -> str:
    """The inverse of `with_text_model`."""
    return layer.removeprefix("text_model.")


def guess_part(layer: str) -> str:
    """The part of a pipeline that a path without a prefix belongs to, by how it begins."""
    if layer.startswith("text_model.") or with_text_model(layer) != layer:
        return "text_encoder"
    transformer = layer.startswith(("transformer_blocks.", "single_transformer_blocks."))
    return "transformer" if transformer else "unet"


def _from_compvis(stem: str) -> str | None:
    if stem in _OUTSIDE:
        return _OUTSIDE[stem]
    if match := re.fullmatch(r"middle_block_([012])_(.+)", stem):
        place, rest = int(match[1]), match[2]
        inner = f"attentions_0_{rest}" if place == 1 else _resnet(place // 2, rest)
        return inner and f"mid_block_{inner}"
    if not (match := re.fullmatch(r"(input|output)_blocks_(\d{1,2})_([012])_(.+)", stem)):
        return None
    side, number, slot, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, place = divmod(number - 1 if side == "input" else number, 3)
    way = "down" if side == "input" else "up"
    if block < 0:
        return None
    if side == "input" and place == 2 and rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if side == "output" and place == 2 and rest == "conv" and slot > 0:
        return f"up_blocks_{block}_upsamplers_0_conv"
    if slot == 2 or (side == "input" and place == 2):
        return None
    inner = f"attentions_{place}_{rest}" if slot == 1 else _resnet(place, rest)
    return inner and f"{way}_blocks_{block}_{inner}"


def _resnet(place: int, rest: str) -> str | None:
    return f"resnets_{place}_{_RESNET[rest]}" if rest in _RESNET else None


def _to_compvis(flat: str, slot: int) -> str | None:
    for theirs, ours in _OUTSIDE.items():
        if flat == ours:
            return theirs
    if match := re.fullmatch(r"mid_block_(resnets|attentions)_([01])_(.+)", flat):
        return _inner(
            f"middle_block_{1 if match[1] == 'attentions' else 2 * int(match[2])}", match[1], match[3]
        )
    if match := re.fullmatch(r"down_blocks_(\d+)_downsamplers_0_conv", flat):
        return f"input_blocks_{3 + 3 * int(match[1])}_0_op"
    if match := re.fullmatch(r"up_blocks_(\d+)_upsamplers_0_conv", flat):
        return f"output_blocks_{2 + 3 * int(match[1])}_{2 if int(match[1]) else slot}_conv"
    if match := re.fullmatch(r"(down|up)_blocks_(\d+)_(resnets|attentions)_(\d)_(.+)", flat):
        number = 3 * int(match[2]) + int(match[4])
        where = f"input_blocks_{number + 1}" if match[1] == "down" else f"output_blocks_{number}"
        return _inner(f"{where}_{1 if match[3] == 'attentions' else 0}", match[3], match[5])
    return None


def _inner(where: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{where}_{rest}"
    back = {ours: theirs for theirs, ours in _RESNET.items()}
    return f"{where}_{back[rest]}" if rest in back else None
