"""What every tab of a page is built with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr
    from gradio.components import Component

    from fewstep.studio.words import Words


@dataclass(frozen=True, slots=True)
class Target:
    """A place that takes a picture from elsewhere.

    Args:
        tab: name of its tab.
        outputs: components that are set.
        take: an async function of (`fewstep.studio.sending.Sent`, request) that returns their values.
        folds: accordions that are opened before: an editor fits a picture to the room that it has then.
    """

    tab: str
    outputs: list[Component]
    take: Callable[..., Any]
    folds: tuple[gr.Accordion, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A place that gives pictures away.

    Args:
        tab: name of its tab.
        chosen: gr.State with the id in the history of the picture that is meant, or None.
        buttons: the buttons, by the name of the target that they lead to.
    """

    tab: str
    chosen: gr.State
    buttons: dict[str, gr.Button]


@dataclass(slots=True)
class Frame:
    """Of one page. Tabs add their targets and sources while they are built; `sending.wire` connects them."""

    words: Words
    tabs: gr.Tabs | None = None
    tab: gr.Tab | None = None
    """The one that is being built."""
    targets: dict[str, Target] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)
    """Components and functions that one tab offers to those that are built after it, by name."""
