"""The WebUI's options: a closed list, of which only what concerns one caller's pictures can be changed.

None of them reaches a path, code or the network. What a caller sets is kept on disk and holds for its key's
own requests; without keys, for everyone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError, NotFoundError, UsageError
from fewstep.prompt.infotext import EMPHASIS
from fewstep.server.a1111 import names
from fewstep.server.owned import Owned

_log = logging.getLogger("fewstep.server")

CHECKPOINT = "sd_model_checkpoint"
HASH = "sd_checkpoint_hash"
EMPHASES: Mapping[str, str] = {
    "original": "original",
    **{shown.lower(): own for own, shown in EMPHASIS.items()},
}
FORMATS: Mapping[str, str] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option."""

    default: Any
    check: Callable[[str, Any], Any] | None = None
    """Gives the value, or raises UsageError or NotFoundError; None: it is what it is."""


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high or value != int(value):
            raise UsageError(f"option {name} is {value!r:.60}: give a whole number from {low} to {high}")
        return int(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"option {name} is {value!r:.60}: give true or false")
    return value


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        found = next(
            (one for one in choices if isinstance(value, str) and value.lower() == one.lower()), None
        )
        if found is None:
            raise UsageError(f"option {name} is {value!r:.60}: give one of {', '.join(choices)}")
        return found

    return check


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise UsageError(f"option {name} is {value!r:.60}: give a text of at most 200 characters")
    return value


def _vae(name: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and value.lower() in ("automatic", "none", "")):
        return "Automatic"
    raise NotFoundError(
        f"option {name} is {value!r:.60}: a model draws with its own autoencoder; there are: Automatic, None"
    )


def _upscaler(name: str, value: Any) -> str:
    text = _text(name, value)
    if text.lower() not in ("auto", "none"):
        names.upscaler(text)
    return text


OPTIONS: Mapping[str, Option] = {
    CHECKPOINT: Option("", _text),
    HASH: Option(""),
    "sd_vae": Option("Automatic", _vae),
    "CLIP_stop_at_last_layers": Option(1, _whole(1, 12)),
    "samples_format": Option("png", _one_of(*FORMATS)),
    "jpeg_quality": Option(95, _whole(1, 100)),
    "emphasis": Option("Original", _one_of("Original", *EMPHASIS.values())),
    "live_previews_enable": Option(True, _flag),
    "show_progress_every_n_steps": Option(1, _whole(-1, 1000)),
    "fewstep_student": Option("Automatic", _text),
    "fewstep_insist": Option(False, _flag),
    "fewstep_upscaler": Option("auto", _upscaler),
    "randn_source": Option("CPU"),
    "eta_noise_seed_delta": Option(0),
    "img2img_fix_steps": Option(False),
    "return_grid": Option(False),
    "grid_save": Option(False),
    "samples_save": Option(True),
    "enable_pnginfo": Option(True),
    "face_restoration": Option(False),
    "face_restoration_model": Option(None),
    "sd_lora": Option("None"),
    "sd_hypernetwork": Option("None"),
    "api_enable_requests": Option(False),
}
"""Name -> its default and how it is checked. Those that begin with ``fewstep_`` are our own: who draws (a
student's name, ``none`` for the model itself, or ``Automatic``), whether settings that do not fit are used
all the same, and what brings a picture to a size that is not drawn (``none`` draws it at that size)."""


FILE = "webui-options.json"
"""In the folder of the server's data."""


class Store:
    """What every caller has set.

    Args:
        path: the file that keeps it; None keeps it in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._owned = Owned(path)

    def get(self, owner: str) -> dict[str, Any]:
        """Every option of an owner; the model is its name, empty where it chose none.

        What another version of fewstep wrote and this one does not take has its default.
        """
        found = {name: one.default for name, one in OPTIONS.items()}
        for name, value in self._owned.get(owner).items():
            try:
                found |= checked({name: value}, strict=False)
            except FewstepError as error:
                _log.info("option %.60r has its default: %s", name, error)
        return found

    def update(self, owner: str, values: Mapping[str, Any]) -> None:
        """Set what `checked` gave.

        Raises:
            OutputError: it cannot be written; nothing is changed.
        """
        if values:
            self._owned.change(owner, lambda before: before | dict(values))


def checked(given: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """The options that can be changed, each checked; what is fixed is left out, and logged.

    Args:
        given: by their names.
        strict: refuse names that are not known; otherwise they are logged and ignored.

    Raises:
        UsageError: a value out of range, or an unknown name.
        NotFoundError: an upscaler or autoencoder that there is not.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        option = OPTIONS.get(name)
        if option is None and strict:
            raise UsageError(f"option {name[:60]!r} is not known; there are: {', '.join(OPTIONS)}")
        if option is None or option.check is None:
            if option is None or value != option.default:
                _log.info("option %.60r is ignored: it cannot be changed here", name)
            continue
        if name == CHECKPOINT and value in (None, ""):
            continue
        found[name] = option.check(name, value)
    return found
