"""The tabs, in their order: ``build(frame)`` of each adds its components to the tab that is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fewstep.studio.frame import Frame
from fewstep.studio.tabs import (
    create,
    distil,
    extras,
    history,
    info,
    merger,
    models,
    settings,
    train,
    xyz,
)

TABS: Final[dict[str, Callable[[Frame], None]]] = {
    "create": create.build,
    "extras": extras.build,
    "info": info.build,
    "history": history.build,
    "merger": merger.build,
    "models": models.build,
    "train": train.build,
    "distil": distil.build,
    "xyz": xyz.build,
    "settings": settings.build,
}
