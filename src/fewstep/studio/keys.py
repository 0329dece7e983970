"""The keyboard's list, and the buttons of the header that page.js answers."""

from __future__ import annotations

import html
from typing import Final

from fewstep.studio.words import Words

KEYS: Final = (
    ("Enter", "enter"), ("Ctrl+Enter", "control_enter"), ("Shift+Enter", "newline"), ("Esc", "stop"),
    ("Ctrl+↑ Ctrl+↓", "weight"), ("← →", "browse"), ("1 – 8", "quality"), ("U", "upscale"), ("E", "edit"),
    ("V", "vary"), ("C", "compare"), ("F", "favourite"), ("/", "prompt"), ("?", "help"),
)  # fmt: skip
"""Every key and the name of what it does, see words/keys.yaml; assets/page.js does it."""


def buttons(words: Words) -> str:
    """HTML for the header: dark or light, and the list of keys."""
    return "".join(
        f'<button type="button" class="fewstep-icon" data-do="{name}" title="{text}" aria-label="{text}">'
        f"{sign}</button>"
        for name, sign, text in (
            ("theme", "◐", html.escape(words("keys.theme"))),
            ("keys", "?", html.escape(words("keys.open"))),
        )
    )


def dialog(words: Words) -> str:
    """HTML of the list of keys; the browser's own modal dialog keeps the focus in it."""
    rows = "".join(
        f"<tr><th scope='row'>{' '.join(f'<kbd>{html.escape(one)}</kbd>' for one in _single(keys))}</th>"
        f"<td>{html.escape(words(f'keys.{name}'))}</td></tr>"
        for keys, name in KEYS
    )
    return (
        '<dialog id="keys" aria-labelledby="keys-title">'
        f'<h2 id="keys-title">{html.escape(words("keys.title"))}</h2>'
        f"<table>{rows}</table><p>{html.escape(words('keys.typing'))}</p>"
        f'<form method="dialog"><button>{html.escape(words("keys.close"))}</button></form></dialog>'
    )


def _single(keys: str) -> list[str]:
    return [keys] if "–" in keys else keys.split(" ")
