"""Pipeline folders in diffusers' layout: reading them by known classes only, and writing them.

A folder is hostile until checked: ``model_index.json`` may name any class of any library, so only the
pairs in `fewstep.models.families` are accepted, nothing in the folder is imported, and weights are
safetensors or refused. The folder's ``fewstep.json`` is the sampling contract (how the checkpoint must be
sampled); ``scheduler/scheduler_config.json`` says the same to plain diffusers, and where there is no
``fewstep.json`` the contract is derived from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic, safetensors
from fewstep.checkpoint.bundle import STUDENTS, student_part
from fewstep.diffusion.contract import SamplingContract
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.models import families, pieces, strict
from fewstep.models.components import Components
from fewstep.models.families import Index
from fewstep.models.students import check_contract

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

CONTRACT_FILE = "fewstep.json"

_TITLE = "the bundled model's kind, or Stable Diffusion 1 or 2"
"""What a U-Net or a text encoder without a ``model_index.json`` beside it can belong to, for messages."""


def pipeline(folder: str | Path, *, dtype: torch.dtype | None = None) -> Components:
    """Load a pipeline folder that :func:`save_pipeline`, or another tool with the same classes, wrote.

    Args:
        folder: a folder with ``model_index.json``, of a family with a U-Net and one text encoder.
        dtype: type of the weights in memory, float32 when not given (files are float16).

    Raises:
        NotFoundError: there is no such folder.
        CheckpointError: a part is missing, of a foreign class, a pickle, or broken; or a family that is made
            of other parts.
    """
    import torch

    root = check_folder(folder)
    index = check_index(root)
    if index.family.text != "last":
        raise CheckpointError(
            f"{root}: {index.family.title} has other parts than a U-Net and one text encoder, so it can only "
            "be drawn with so far; give a model of Stable Diffusion 1 or 2, or one of fewstep's own"
        )
    kind = dtype or torch.float32
    return Components(
        autoencoder=autoencoder(root / "vae", dtype=kind, title=index.family.title),
        denoiser=denoiser(root / "unet", dtype=kind, title=index.family.title),
        text_encoder=text_encoder(root, "text_encoder", index, dtype=kind),
        tokenizer=tokenizer(root, "tokenizer", index),
        contract=contract(root),
    )


def autoencoder(
    folder: str | Path, *, dtype: torch.dtype | None = None, title: str = "any family"
) -> AutoencoderKL:
    """Load the ``vae`` folder of a pipeline in evaluation mode; raises as :func:`pipeline` does."""
    import torch
    from diffusers import AutoencoderKL

    loaded: AutoencoderKL = strict.diffusers_network(
        AutoencoderKL, Path(folder), dtype or torch.float32, title
    )
    return loaded


def denoiser(
    folder: str | Path, *, dtype: torch.dtype | None = None, title: str = _TITLE
) -> UNet2DConditionModel:
    """Load the ``unet`` folder of a pipeline or of a student, as `autoencoder` does.

    Args:
        folder: with ``config.json`` and weights.
        dtype: type of the weights in memory, float32 when not given.
        title: what it belongs to, for messages.
    """
    import torch
    from diffusers import UNet2DConditionModel

    loaded: UNet2DConditionModel = strict.diffusers_network(
        UNet2DConditionModel, Path(folder), dtype or torch.float32, title
    )
    return loaded


def transformer(root: Path, index: Index, *, dtype: torch.dtype | None = None) -> Any:
    """Load the ``transformer`` folder of a pipeline, as `autoencoder` does."""
    import diffusers
    import torch

    cls = getattr(diffusers, index.classes["transformer"])
    return strict.diffusers_network(cls, root / "transformer", dtype or torch.float32, index.family.title)


def network_config(root: Path, index: Index) -> dict[str, Any]:
    """The configuration of a pipeline's denoiser; raises as `families.config`."""
    return families.config(root / index.family.denoiser)


def text_encoder(root: Path, part: str, index: Index, *, dtype: torch.dtype | None = None) -> Any:
    """Load a text encoder of a pipeline, as `autoencoder` does."""
    import torch
    import transformers

    cls = getattr(transformers, index.classes[part])
    return strict.transformers_network(cls, root / part, dtype or torch.float32, index.family.title)


def tokenizer(root: Path, part: str, index: Index) -> Any:
    """Load a tokenizer of a pipeline.

    Raises:
        CheckpointError: it is missing or broken.
        DependencyError: it is a sentencepiece model, and a package that reads these is missing.
    """
    return _tokenizer(root / part, index.classes[part])


def text_parts(folder: str | Path) -> tuple[Any, Any]:
    """Only ``text_encoder`` and ``tokenizer`` of a pipeline folder, float32; raises as `pipeline`."""
    import torch
    import transformers

    root = Path(folder)
    bert = families.config(root / "text_encoder").get("model_type") == "bert"
    cls: Any = transformers.BertModel if bert else transformers.CLIPTextModel
    encoder = strict.transformers_network(cls, root / "text_encoder", torch.float32, _TITLE)
    return encoder, _tokenizer(root / "tokenizer", "BertTokenizer" if bert else "CLIPTokenizer")


def contract(root: Path) -> SamplingContract:
    """The sampling contract of a pipeline folder, or of a student's.

    Raises:
        CheckpointError: ``fewstep.json`` does not follow the contract's schema; or there is none, and it
            cannot be derived (`fewstep.models.families.derived_contract`).
    """
    path = root / CONTRACT_FILE
    if path.is_file():
        return SamplingContract.from_json(path.read_text(encoding="utf-8"))
    if (root / "model_index.json").is_file():
        return families.derived_contract(root)
    raise CheckpointError(f"{root}: no {CONTRACT_FILE}, so it is not known how to sample it; add the file")


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


def check_index(root: Path) -> Index:
    """Read ``model_index.json`` and refuse what is not in `families.FAMILIES`.

    Raises:
        CheckpointError: missing, not JSON, a part missing or of a class that is not accepted.
    """
    return families.read_index(root)


def _tokenizer(folder: Path, class_name: str) -> Any:
    import transformers

    pieces.check(folder)
    try:
        return getattr(transformers, class_name).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder}: cannot be loaded ({text}); fetch or export the folder again"
        ) from error


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
    with strict.quiet():
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
