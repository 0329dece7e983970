"""What ``--ckpt``, ``--config``, ``--C`` and ``--f`` of CompVis' scripts mean here; whose defaults hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import CheckpointError, NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo

Task = Literal["txt2img", "img2img"]

SCRIPT_DEFAULTS: Mapping[Task, Mapping[str, Any]] = {
    "txt2img": {
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "solver": "ddim",
        "width": 512,
        "height": 512,
    },
    "img2img": {"num_inference_steps": 50, "guidance_scale": 5.0, "solver": "ddim"},
}
"""The scripts' own defaults: those of Stable Diffusion 1, and wrong for any other model."""

_SCRIPT_MULTIPLE = 32
_PARAMETERIZATIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_MAX_CONFIG = 100_000
_MAX_DEPTH = 16


def find_model(ckpt: str | None) -> Path | str | None:
    """Say what ``--ckpt`` names, in the form that `fewstep.engine.engine.Engine` takes.

    Args:
        ckpt: a model's folder, a file, or a name; None is the bundled model.

    Returns:
        The folder or single file of a model, a name (anything that is no path), or None.

    Raises:
        CheckpointError: a pickle, which is refused.
        NotFoundError: a path where nothing is.
    """
    if ckpt is None:
        return None
    path = Path(ckpt)
    if path.is_dir():
        is_model = any((path / name).is_file() for name in ("model_index.json", "bundle.json"))
        return path if is_model or _looks_like_path(ckpt) else ckpt
    if path.is_file():
        from fewstep.checkpoint.safetensors import is_pickle

        if path.suffix.lower() in _PICKLES or is_pickle(path):
            raise CheckpointError(
                f"{path}: a pickle, which can run code when it is read; convert it once, in a restricted "
                f"process, with: fewstep convert {path} --allow-pickle --out FILE.safetensors, and give "
                "--ckpt FILE.safetensors"
            )
        return path
    if _looks_like_path(ckpt):
        raise NotFoundError(
            f"{path}: no such file or folder; give a file, a pipeline folder, a bundle, or a name "
            "(see: fewstep models)"
        )
    return ckpt


def _looks_like_path(ckpt: str) -> bool:
    return "/" in ckpt or "\\" in ckpt or Path(ckpt).suffix.lower() in {*_PICKLES, ".safetensors"}


def follows_script(contract: SamplingContract) -> bool:
    """Whether the scripts' defaults are this model's: Stable Diffusion 1 as it was trained, not distilled."""
    return contract.base_family.startswith("sd1") and contract.method == "base"


def check_latents(info: ModelInfo, channels: int | None, downscale: int | None) -> None:
    """Compare ``--C`` and ``--f`` with the model.

    Raises:
        UsageError: one of them is given and is not the model's.
    """
    for option, value, own, what in (
        ("--C", channels, info.latent_channels, "latent channels"),
        ("--f", downscale, info.downscale, "pixels per latent cell and side"),
    ):
        if value is not None and value != own:
            raise UsageError(
                f"{option} is {value}: {info.name} has {own} {what}, fixed by its weights; leave {option} out"
            )


def check_config(path: Path, params: Mapping[str, Any], info: ModelInfo) -> None:
    """Compare a YAML config of CompVis with the model. Nothing else of it is used.

    Compared are ``parameterization``, ``timesteps``, ``linear_start``, ``linear_end`` and ``channels`` under
    ``model.params``, those that are there; ``parameterization`` is "eps" where it is missing, as in CompVis'
    code. No class that the file names is imported.

    Args:
        path: of the config, for errors.
        params: from `read_config`.
        info: the model.

    Raises:
        UsageError: it is the config of another kind of model.
    """
    contract = info.contract
    kind = params.get("parameterization", "eps")
    if _PARAMETERIZATIONS.get(str(kind)) != contract.prediction_type:
        raise _other_model(path, "parameterization", kind, info, contract.prediction_type)
    known: dict[str, float] = {
        "timesteps": contract.schedule.num_train_timesteps,
        "channels": info.latent_channels,
    }
    if contract.schedule.name in ("scaled_linear", "linear"):
        known |= {"linear_start": contract.schedule.beta_start, "linear_end": contract.schedule.beta_end}
    for key, own in known.items():
        value = params.get(key, own)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isclose(value, own, rel_tol=1e-6):
            raise _other_model(path, key, value, info, own)


def _other_model(path: Path, key: str, value: object, info: ModelInfo, own: object) -> UsageError:
    return UsageError(
        f"{path}: {key} is {value!r:.40}, and {info.name} has {own}; give the config of this model, or leave "
        "--config out: a model here says itself how it is made"
    )


def read_config(path: Path) -> Mapping[str, Any]:
    """Read ``model.params`` of a YAML config of CompVis.

    Raises:
        NotFoundError: no such file.
        UsageError: not such a config, or one that is not as plain as theirs.
    """
    import yaml

    if not path.is_file():
        raise NotFoundError(
            f"{path}: no such file; leave --config out: a model here says itself how it is made"
        )
    foreign = f"{path}: not a config of CompVis (YAML with model.params); leave --config out"
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise UsageError(foreign)
        text = path.read_text("utf-8")
        if not _is_plain(text):
            raise UsageError(foreign)
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(foreign) from error
    for key in ("model", "params"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise UsageError(foreign)
    return found


def _is_plain(text: str) -> bool:
    """Whether a YAML text has no aliases and is nested a little at most, as every config of CompVis.

    Merged aliases grow without bound (nine of the level below in each of ten levels), and PyYAML takes a
    minute for some ten thousand brackets.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            return False
    return True


def shrunk(info: ModelInfo, width: int, height: int) -> tuple[int, int] | tuple[None, None]:
    """The size in which an initial image is drawn: each side cut down to a multiple, as in img2img.py.

    The multiple is the script's 32 for Stable Diffusion (made to fit the model), and the model's own for
    others. The script draws an image of any size; here one that is larger than the model can draw, or larger
    than another model than Stable Diffusion was trained on, gets no size: the engine then takes one of the
    image's shape with about as many pixels as the model was trained on.

    Args:
        info: the model.
        width: of the image, in pixels.
        height: as ``width``.
    """
    script = follows_script(info.contract)
    multiple = math.lcm(_SCRIPT_MULTIPLE, info.size_multiple) if script else info.size_multiple
    size = (width - width % multiple, height - height % multiple)
    native = info.native_size[0] * info.native_size[1]
    if max(size) > info.max_size or (not script and size[0] * size[1] > native):
        return None, None
    return size
