"""Pipeline folders in diffusers' layout: reading them by known classes only, and writing them.

A folder is hostile until checked: ``model_index.json`` may name any class of any library, so only the
pairs in :data:`CLASSES` are accepted, nothing in the folder is imported, and weights are safetensors or
refused. The folder's ``fewstep.json`` is the sampling contract (how the checkpoint must be sampled);
``scheduler/scheduler_config.json`` says the same to plain diffusers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic, safetensors
from fewstep.checkpoint.bundle import STUDENTS, student_part
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.scheduler_config import CLASS_NAMES
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.models.components import Components
from fewstep.models.students import check_contract

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

CONTRACT_FILE = "fewstep.json"

CLASSES = {
    "vae": {("diffusers", "AutoencoderKL")},
    "unet": {("diffusers", "UNet2DConditionModel")},
    "text_encoder": {("transformers", "BertModel"), ("transformers", "CLIPTextModel")},
    "tokenizer": {
        ("transformers", "BertTokenizer"),
        ("transformers", "BertTokenizerFast"),
        ("transformers", "CLIPTokenizer"),
    },
    "scheduler": {("diffusers", name) for name in CLASS_NAMES},
}
"""Accepted (library, class) of each part of ``model_index.json``."""


def pipeline(folder: str | Path, *, dtype: torch.dtype | None = None) -> Components:
    """Load a pipeline folder that :func:`save_pipeline`, or another tool with the same classes, wrote.

    Args:
        folder: a folder with ``model_index.json`` and ``fewstep.json``.
        dtype: type of the weights in memory, float32 when not given (files are float16).

    Raises:
        NotFoundError: there is no such folder.
        CheckpointError: a part is missing, of a foreign class, a pickle, or broken.
    """
    import torch

    root = check_folder(folder)
    index = check_index(root)
    kind = dtype or torch.float32
    with _readable(root):
        return Components(
            autoencoder=autoencoder(root / "vae", dtype=kind),
            denoiser=denoiser(root / "unet", dtype=kind),
            text_encoder=_text_encoder(root, index["text_encoder"][1], kind),
            tokenizer=_tokenizer(root, index["tokenizer"][1]),
            contract=contract(root),
        )


def autoencoder(folder: str | Path, *, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """Load the ``vae`` folder of a pipeline in evaluation mode; raises as :func:`pipeline` does."""
    import torch
    from diffusers import AutoencoderKL

    with _readable(Path(folder)):
        loaded: AutoencoderKL = _from_pretrained(AutoencoderKL, Path(folder), dtype or torch.float32)
    return loaded


def denoiser(folder: str | Path, *, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """Load the ``unet`` folder of a pipeline or of a student, as `autoencoder` does."""
    import torch
    from diffusers import UNet2DConditionModel

    with _readable(Path(folder)):
        loaded: UNet2DConditionModel = _from_pretrained(
            UNet2DConditionModel, Path(folder), dtype or torch.float32
        )
    return loaded


def text_parts(folder: str | Path) -> tuple[Any, Any]:
    """Only ``text_encoder`` and ``tokenizer`` of a pipeline folder, float32; raises as `pipeline`."""
    import torch

    root = Path(folder)
    encoder_class = (
        "BertModel" if _config(root / "text_encoder").get("model_type") == "bert" else "CLIPTextModel"
    )
    tokenizer_class = "BertTokenizer" if encoder_class == "BertModel" else "CLIPTokenizer"
    with _readable(root):
        return _text_encoder(root, encoder_class, torch.float32), _tokenizer(root, tokenizer_class)


def contract(root: Path) -> SamplingContract:
    """The sampling contract of a pipeline folder.

    Raises:
        CheckpointError: ``fewstep.json`` is missing or does not follow the contract's schema.
    """
    path = root / CONTRACT_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{root}: no {CONTRACT_FILE}, so it is not known how to sample it; add the file"
        )
    return SamplingContract.from_json(path.read_text(encoding="utf-8"))


def check_folder(folder: str | Path) -> Path:
    """The folder, when it is one.

    Raises:
        NotFoundError: there is nothing of that name.
        CheckpointError: it is a file; the message says whether it is a pickle.
    """
    root = Path(folder)
    if root.is_dir():
        return root
    if not root.exists():
        raise NotFoundError(f"{root}: no such folder; give a folder with a model_index.json")
    pickle = ", and a pickle, which could run code when read" if safetensors.is_pickle(root) else ""
    raise CheckpointError(
        f"{root}: a single file, not a folder{pickle}; give a pipeline folder in the diffusers layout"
    )


def check_index(root: Path) -> dict[str, list[str]]:
    """Read ``model_index.json`` and refuse what is not in :data:`CLASSES`.

    Raises:
        CheckpointError: missing, not JSON, a part missing or of a class that is not accepted.
    """
    path = root / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{root}: no readable model_index.json; is it a diffusers folder?") from error
    if not isinstance(index, dict) or index.get("_class_name") != "StableDiffusionPipeline":
        raise CheckpointError(f"{path}: not a StableDiffusionPipeline; only that kind is read so far")
    for part, accepted in CLASSES.items():
        named = index.get(part)
        pair = tuple(named) if isinstance(named, list) and len(named) == 2 else None
        if pair not in accepted:
            names = ", ".join(sorted(".".join(p) for p in accepted))
            raise CheckpointError(f"{path}: {part} is {named!r}; only {names} is accepted")
    return index


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: no readable config.json; fetch or export the folder again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json: not an object; fetch or export the folder again")
    # transformers would import modules that auto_map names; nothing of ours has one.
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder}/config.json: auto_map asks for code from the folder; remove that entry"
        )
    return config


def _from_pretrained(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    _config(folder)
    safetensors.check_content(folder / "diffusion_pytorch_model.safetensors")
    model = cls.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype, low_cpu_mem_usage=False
    )
    return model.eval().requires_grad_(False)


def _text_encoder(root: Path, class_name: str, dtype: torch.dtype) -> Any:
    import transformers

    _config(root / "text_encoder")
    safetensors.check_content(root / "text_encoder" / "model.safetensors")
    cls = getattr(transformers, class_name)
    with _no_bars():
        model = cls.from_pretrained(
            root / "text_encoder", local_files_only=True, use_safetensors=True, dtype=dtype
        )
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _readable(root: Path) -> Iterator[None]:
    """Turn what diffusers and transformers raise on a broken folder into a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{root}: cannot be loaded ({text}); fetch or export the folder again"
        ) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars for files of a few megabytes."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(root: Path, class_name: str) -> Any:
    import transformers

    return getattr(transformers, class_name).from_pretrained(root / "tokenizer", local_files_only=True)


def save_pipeline(
    folder: str | Path,
    components: Components,
    *,
    texts: Mapping[str, str],
    half: bool = True,
    replace: bool = False,
) -> None:
    """Write a pipeline folder that plain ``StableDiffusionPipeline.from_pretrained`` opens; all or nothing.

    Args:
        folder: where it goes; must not exist unless ``replace``.
        components: networks in any type; written as float16 when ``half``, which halves the files and,
        for the
            bundled model, changes no pixel by more than one level.
        texts: text files to write beside the weights, such as the model card ``README.md``, by name.
        half: write float16 weights.
        replace: put the new folder in the place of an old one.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    from diffusers import __version__

    with atomic.folder(folder, replace=replace) as root:
        for name, part in (
            ("vae", components.autoencoder),
            ("unet", components.denoiser),
            ("text_encoder", components.text_encoder),
        ):
            _save_network(part, root / name, half=half)
        components.tokenizer.save_pretrained(root / "tokenizer")
        scheduler = _save_contract(components.contract, root)
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": __version__,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler],
            "text_encoder": ["transformers", type(components.text_encoder).__name__],
            "tokenizer": ["transformers", _plain_name(type(components.tokenizer).__name__)],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        atomic.write_text(root / "model_index.json", json.dumps(index, indent=2) + "\n")
        for file, text in texts.items():
            atomic.write_text(root / file, text)


def save_student(
    folder: str | Path,
    name: str,
    denoiser: UNet2DConditionModel,
    contract: SamplingContract,
    *,
    half: bool = True,
    replace: bool = False,
) -> Path:
    """Write a student into the pipeline folder of its base, as ``students/NAME``; all or nothing.

    It holds ``unet``, ``scheduler`` and ``fewstep.json``; the text encoder, the tokenizer and the autoencoder
    are the base's.

    Args:
        folder: a pipeline folder.
        name: of the student.
        denoiser: its network, in any type.
        contract: how it is sampled; without guidance.
        half: write float16 weights.
        replace: put it in the place of an old one.

    Returns:
        The student's folder.

    Raises:
        UsageError: not a name for a student.
        NotFoundError, CheckpointError: ``folder`` is no pipeline folder, or the contract asks for guidance.
        OutputError: there is such a student, or the folder cannot be written.
    """
    root = check_folder(folder)
    check_index(root)
    check_contract(name, contract)
    out = root / student_part(name)
    with atomic.folder(out, replace=replace) as made:
        _save_network(denoiser, made / "unet", half=half)
        _save_contract(contract, made)
    return out


def load_student(
    folder: str | Path, name: str, *, dtype: torch.dtype | None = None
) -> tuple[UNet2DConditionModel, SamplingContract]:
    """Load the network and the contract of a student that `save_student` wrote.

    Raises:
        UsageError: not a name for a student.
        NotFoundError: there is none of that name.
        CheckpointError: it is broken.
    """
    root = Path(folder) / student_part(name)
    if not root.is_dir():
        raise NotFoundError(f"{root}: no such folder; the pipeline has no student {name!r}")
    return denoiser(root / "unet", dtype=dtype), check_contract(name, contract(root))


def student_contracts(folder: str | Path) -> dict[str, SamplingContract]:
    """The contracts of all students of a pipeline folder, by name in alphabetical order.

    Raises:
        CheckpointError: one is broken, or a sub-folder has a name that no student can have.
    """
    found = {}
    for path in sorted((Path(folder) / STUDENTS).glob("[!.]*/")):
        try:
            student_part(path.name)
        except UsageError as error:
            raise CheckpointError(f"{path}: {error}; rename the folder") from None
        found[path.name] = check_contract(path.name, contract(path))
    return found


def _save_network(network: Any, folder: Path, *, half: bool) -> None:
    import copy

    import torch

    kind = torch.float16 if half else torch.float32
    # the plain method: diffusers' own warns of modules to be kept in float32 even when there are none
    written: Any = torch.nn.Module.to(copy.deepcopy(network), kind)
    with _no_bars():
        written.save_pretrained(folder)
    _forget_origin(folder / "config.json")


def _save_contract(contract: SamplingContract, folder: Path) -> str:
    """Write a contract as ``fewstep.json`` and as a diffusers scheduler, and return the scheduler's class."""
    import diffusers

    config = contract.scheduler_config()
    name: str = config["_class_name"]
    getattr(diffusers, name).from_config(config).save_pretrained(folder / "scheduler")
    atomic.write_text(folder / CONTRACT_FILE, contract.to_json())
    return name


def _forget_origin(config: Path) -> None:
    # diffusers keeps the path that a network was loaded from, a path of the author's machine
    settings = json.loads(config.read_text("utf-8"))
    if settings.pop("_name_or_path", None) is not None:
        atomic.write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _plain_name(tokenizer_class: str) -> str:
    return tokenizer_class.removesuffix("Fast")
