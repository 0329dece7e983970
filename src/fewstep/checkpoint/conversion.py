"""What ``fewstep convert`` does: a file becomes a folder, a folder a file, a file another type or names.

The kind of the source is told from its content, and that of the output from its name: ``.safetensors`` is a
file, anything else a folder.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.checkpoint import (
    adapter_conversion,
    conversion_notes,
    folder_writing,
    part_configs,
    pickle_compat,
    pipeline_folder,
    single_file,
    tokenizers,
)
from fewstep.checkpoint.adapters.reading import CONTRACT
from fewstep.checkpoint.adapters.writing import WriteStyle
from fewstep.checkpoint.detect import Detected
from fewstep.checkpoint.half import Oddities, Precision
from fewstep.checkpoint.part_configs import Family
from fewstep.checkpoint.parts import TEXT_ENCODERS
from fewstep.checkpoint.safetensors import is_pickle
from fewstep.checkpoint.single_file import PartView, Report
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

SUFFIX = ".safetensors"
CONTRACT_FILE = "fewstep.json"
"""The sampling contract of a pipeline folder; in a file's header it is `reading.CONTRACT`."""
_MAX_CONTRACT = 1_000_000
_ARCHITECTURES: dict[tuple[Family, str], str] = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
}
"""``modelspec.architecture`` of a text-to-image model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to convert.

    Attributes:
        dtype: of floating point tensors; as they are when None (8-bit floats become float16).
        family: what the source is said to be; an autoencoder alone needs it.
        prediction_type: ``epsilon`` or ``v_prediction``, where it is not known.
        base: a model of the same family that gives what the source has not.
        vae: a file with the autoencoder to use.
        tokenizer: a folder with CLIP's vocabulary, or a pipeline folder with tokenizers.
        vocabulary: CLIP's, where no folder gives one.
        ema: take the averaged weights of the U-Net.
        allow_pickle: read a pickle checkpoint.
        names: of an adapter's tensors; as they are when None.
        scheduler: makes the scheduler's configuration of a sampling contract's text: None where diffusers has
            no scheduler for it, CheckpointError where it is none.
        replace: put the output in the place of what has its name.
    """

    dtype: Precision | None = None
    family: Family | None = None
    prediction_type: str | None = None
    base: Path | None = None
    vae: Path | None = None
    tokenizer: Path | None = None
    vocabulary: tokenizers.Vocabulary | None = None
    ema: bool = False
    allow_pickle: bool = False
    names: WriteStyle | None = None
    scheduler: Callable[[str], dict[str, Any] | None] | None = None
    replace: bool = False


def convert(source: Path, out: Path, options: Options, *, on_tensor: Report | None = None) -> list[str]:
    """Convert a file or folder; the output appears when it is complete.

    Args:
        source: a safetensors file, a pickle checkpoint, or a pipeline folder.
        out: ends in ``.safetensors`` for a file.
        options: see `Options`.
        on_tensor: told of every tensor that was written.

    Returns:
        Sentences that the user should read: what was taken for granted, what is missing, what looks broken.

    Raises:
        UsageError: options that do not go together.
        NotFoundError: no such source.
        CheckpointError: it is refused.
        OutputError: the output exists already, or cannot be written.
    """
    _check_paths(source, out, options)
    if options.names is not None and (source.is_dir() or is_pickle(source) or out.suffix != SUFFIX):
        raise UsageError(
            f"--lora-names {options.names}: only a safetensors file of an adapter gets other names, and "
            f"--out ends in {SUFFIX}"
        )
    if source.is_dir():
        return _to_file(source, out, options, on_tensor)
    if is_pickle(source):
        return _from_pickle(source, out, options, on_tensor)
    if options.allow_pickle:
        raise UsageError(f"{source}: no pickle checkpoint by its content; leave --allow-pickle out")
    if out.suffix == SUFFIX:
        _refuse(source, options, ("family", "prediction_type", "base", "vae", "tokenizer", "ema"))
        if options.names is not None:
            return adapter_conversion.write_names(source, out, options.names, dtype=options.dtype)
        odd = Oddities()
        single_file.retype(source, out, options.dtype, odd=odd, on_tensor=on_tensor)
        return conversion_notes.about_values([odd])
    return _to_folder(source, out, options, on_tensor)


def _check_paths(source: Path, out: Path, options: Options) -> None:
    if not source.exists():
        raise NotFoundError(f"{source}: no such file or folder; check the path")
    if source.is_dir() and out.suffix != SUFFIX:
        raise UsageError(
            f"{out}: a folder becomes a file; give a name that ends in {SUFFIX}, such as {out.name}{SUFFIX}"
        )
    if out.exists():
        if not options.replace:
            raise OutputError(f"{out}: exists already; give --replace or another name")
        if out.is_dir() == (out.suffix == SUFFIX):
            kind = "a folder" if out.is_dir() else "a file"
            raise OutputError(f"{out}: is {kind}, which is not replaced by the other kind; give another name")
    if out.is_dir() and source.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out}: holds the source, which would be replaced; give another name")


def _refuse(source: Path, options: Options, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(options, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} has no meaning for {source} and this output; leave it out"
            )


def _from_pickle(source: Path, out: Path, options: Options, on_tensor: Report | None) -> list[str]:
    if not options.allow_pickle:
        raise CheckpointError(
            f"{source}: a pickle checkpoint, which could run code when read; if it must be, convert it once: "
            f"fewstep convert {source} --allow-pickle --out {source.with_suffix(SUFFIX).name}"
        )
    if out.suffix != SUFFIX:
        raise UsageError(
            f"{out}: a pickle becomes a file first; give --out with a name that ends in {SUFFIX}"
        )
    _refuse(source, options, ("family", "prediction_type", "base", "vae", "tokenizer", "ema"))
    odd = Oddities()
    if options.dtype is None:
        told = pickle_compat.convert(source, out)
    else:
        with tempfile.TemporaryDirectory(dir=_parent(out), prefix=".convert-") as folder:
            plain = Path(folder) / "plain.safetensors"
            told = pickle_compat.convert(source, plain)
            single_file.retype(plain, out, options.dtype, odd=odd, on_tensor=on_tensor)
    left = f"; {told.left_out} entries that are no tensors were left out" if told.left_out else ""
    return [f"{told.tensors} tensors{left}", *conversion_notes.about_values([odd])]


def _to_file(source: Path, out: Path, options: Options, on_tensor: Report | None) -> list[str]:
    _refuse(source, options, ("base", "tokenizer", "ema", "allow_pickle"))
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            pipeline_folder.open_folder(
                source, family=options.family, prediction_type=options.prediction_type
            )
        )
        family = folder.detected.family
        assert family is not None
        views = dict(folder.views)
        if options.vae is not None:
            views["vae"] = _autoencoder(options.vae, family, stack)
        notes = []
        contract = _contract_of(source)
        if (source / "students").is_dir():
            notes.append("the students beside the base are not in the file")
        if family.startswith("pixart"):
            notes.append(f"{family} has no file of a whole model: only its transformer was written")
            views = {"transformer": views["transformer"]}
        _check_networks(source, family, views)
        single_file.write(
            out,
            list(views.values()),
            family=family,
            dtype=options.dtype,
            metadata=_metadata(folder.detected) | contract,
            markers=_markers(folder.detected),
            on_tensor=on_tensor,
        )
        return notes + conversion_notes.about_values([view.odd for view in views.values()])


def _to_folder(source: Path, out: Path, options: Options, on_tensor: Report | None) -> list[str]:
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            single_file.open_file(
                source,
                family=options.family,
                prediction_type=options.prediction_type,
                ema=options.ema,
            )
        )
        detected = reader.detected
        if not detected.parts:
            raise CheckpointError(
                f"{source}: {conversion_notes.ARTICLES[detected.kind]}, which is no folder; "
                f"give --out with a name that ends in {SUFFIX}"
            )
        views = {name: reader.part(name) for name in detected.parts}
        notes = conversion_notes.about_left_out(detected)
        if detected.kind in ("vae", "text_encoder"):
            _refuse(source, options, ("base", "vae", "tokenizer", "prediction_type"))
        if len(views) == 1 and options.base is None and options.vae is None:
            return notes + _network(source, out, detected, views, options, on_tensor)
        return notes + _pipeline(reader, out, views, options, on_tensor, stack)


def _network(
    source: Path,
    out: Path,
    detected: Detected,
    views: Mapping[str, PartView],
    options: Options,
    on_tensor: Report | None,
) -> list[str]:
    """Write a network alone."""
    _refuse(source, options, ("tokenizer",))
    ((name, network),) = views.items()
    if network.config:
        _check_networks(source, detected.family, views)
    folder_writing.write_network(
        out, network, dtype=options.dtype, replace=options.replace, on_tensor=on_tensor
    )
    notes = [f"the file holds a {name} alone, and so does the folder; a pipeline is made with --base"]
    return (notes if detected.kind == "denoiser" else []) + conversion_notes.about_values([network.odd])


def _pipeline(
    reader: single_file.Reader,
    out: Path,
    own: Mapping[str, PartView],
    options: Options,
    on_tensor: Report | None,
    stack: contextlib.ExitStack,
) -> list[str]:
    source, detected = reader.file.path, reader.detected
    family = detected.family
    assert family is not None
    views, prediction = dict(own), (detected.prediction_type, detected.prediction_source)
    base = options.base
    if base is not None:
        given, others = _base(base, family, stack)
        views = {**others, **views}
        if prediction[1] in ("", "family") and given.prediction_type is not None:
            prediction = (given.prediction_type, f"base {base.name}")
        detected = replace(detected, zero_terminal_snr=detected.zero_terminal_snr or given.zero_terminal_snr)
    if options.vae is not None:
        views["vae"] = _autoencoder(options.vae, family, stack)
    views = _again_configured(views, family, prediction[0])
    _check_networks(source, family, views)
    detected = replace(detected, prediction_type=prediction[0], prediction_source=prediction[1])
    found = tokenizers.tokenizers(
        family,
        options.tokenizer,
        base if base and base.is_dir() else None,
        packaged=options.vocabulary,
        sizes={
            name: view.config["vocab_size"] for name, view in views.items() if "vocab_size" in view.config
        },
    )
    contract, scheduler, notes = _contract_in(reader, options)
    folder_writing.write_folder(
        out,
        detected,
        views,
        tokenizers=found,
        texts={} if contract is None else {CONTRACT_FILE: contract},
        scheduler=scheduler,
        dtype=options.dtype,
        replace=options.replace,
        on_tensor=on_tensor,
    )
    if prediction[1] in ("name", "metadata"):
        notes.append(conversion_notes.about_prediction(detected))
    absent = [name for name in TEXT_ENCODERS[family] if name not in views]
    notes += [f"there is no {name}: the folder draws without it" for name in absent]
    notes += conversion_notes.about_tokenizers(tokenizers.missing(family, found, set(views)))
    return notes + conversion_notes.about_values([view.odd for view in views.values()])


def _base(path: Path, family: Family, stack: contextlib.ExitStack) -> tuple[Detected, dict[str, PartView]]:
    if path.is_dir():
        folder = stack.enter_context(pipeline_folder.open_folder(path, family=family))
        return folder.detected, dict(folder.views)
    reader = stack.enter_context(single_file.open_file(path, family=family))
    return reader.detected, {name: reader.part(name) for name in reader.detected.parts}


def _autoencoder(path: Path, family: Family, stack: contextlib.ExitStack) -> PartView:
    return stack.enter_context(single_file.open_file(path, family=family)).part("vae")


def _again_configured(
    views: Mapping[str, PartView], family: Family, prediction: str | None
) -> dict[str, PartView]:
    """Configs that depend on other parts, now that these are known: sizes, and the text beside them."""
    found = dict(views)
    if "unet" in views:
        second = views.get("text_encoder_2")
        pooled = int(second.config["projection_dim"]) if second else None
        part = views["unet"].part
        config = part_configs.unet_config(part.shapes, family, prediction_type=prediction, pooled=pooled)
        found["unet"] = replace(views["unet"], part=replace(part, config=config))
    if "vae" in views:
        part = views["vae"].part
        config = part_configs.vae_config(part.shapes, family, prediction_type=prediction)
        found["vae"] = replace(views["vae"], part=replace(part, config=config))
    return found


def _check_networks(source: Path, family: Family | None, views: Mapping[str, PartView]) -> None:
    """Refuse networks that are not whole, or not of one model."""
    try:
        for view in views.values():
            expected = folder_writing.expected_shapes(view.part.class_name, view.config)
            single_file.check(view, expected, family)
        _check_widths(views)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _check_widths(views: Mapping[str, PartView]) -> None:
    denoiser = views.get("unet") or views.get("transformer")
    if denoiser is None:
        return
    channels = denoiser.config["out_channels" if "unet" in views else "in_channels"]
    if "vae" in views and views["vae"].config["latent_channels"] != channels:
        raise CheckpointError(
            f"the autoencoder has {views['vae'].config['latent_channels']} latent channels and the denoiser "
            f"{channels}; give an autoencoder of the same family"
        )
    widths = [view.config["hidden_size"] for name, view in views.items() if "hidden_size" in view.config]
    wanted = denoiser.config.get("cross_attention_dim")
    if "unet" in views and widths and sum(widths) != wanted:
        raise CheckpointError(
            f"the text encoders give {sum(widths)} numbers a token and the U-Net takes {wanted}; "
            "give parts of one model"
        )


def _metadata(detected: Detected) -> dict[str, str]:
    assert detected.family is not None
    predicted = detected.prediction_type or ""
    found = {}
    if detected.variant == "text" and (detected.family, predicted) in _ARCHITECTURES:
        found["modelspec.architecture"] = _ARCHITECTURES[detected.family, predicted]
    if predicted in ("epsilon", "v_prediction"):
        found["modelspec.prediction_type"] = "v" if predicted == "v_prediction" else "epsilon"
    return found


def _contract_in(
    reader: single_file.Reader, options: Options
) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    """The sampling contract in a file's header, its scheduler, and what is to be said of it."""
    contract = reader.file.metadata.get(CONTRACT)
    if contract is None or options.scheduler is None:
        return contract, None, []
    try:
        scheduler = options.scheduler(contract)
    except CheckpointError as error:
        return None, None, [f"warning: its sampling contract is left out: {error}"]
    if scheduler is None:
        return contract, None, ["diffusers has no scheduler for its sampling contract: it has the family's"]
    return contract, scheduler, []


def _contract_of(folder: Path) -> dict[str, str]:
    """The sampling contract of a folder, which goes with the weights; it is not looked into here."""
    path = folder / CONTRACT_FILE
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CONTRACT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export the folder again") from None
    if len(text) > _MAX_CONTRACT:
        raise CheckpointError(f"{path}: too long for a sampling contract; export the folder again")
    return {CONTRACT: text}


def _markers(detected: Detected) -> tuple[str, ...]:
    """Empty tensors by which web UIs know a model of XL that predicts velocity."""
    if detected.family != "sdxl" or detected.prediction_type != "v_prediction":
        return ()
    return ("v_pred", "ztsnr") if detected.zero_terminal_snr else ("v_pred",)


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent
