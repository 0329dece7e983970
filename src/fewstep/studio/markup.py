"""Texts from outside as HTML that shows them and does nothing else."""

from __future__ import annotations

import html


def text(value: object) -> str:
    """A text for the content of an element or an attribute in quotes.

    Besides the characters of HTML those of templates are written as references: Gradio fills Handlebars and
    JavaScript templates, and a value must stay one in whatever order it does so.
    """
    made = html.escape(str(value), quote=True)
    for character in "{}$`\\":
        made = made.replace(character, f"&#{ord(character)};")
    return made


def rows(pairs: list[tuple[str, object]]) -> str:
    """A table of names and values; those without a value are left out."""
    lines = [
        f"<tr><th scope='row'>{text(name)}</th><td dir='auto'>{text(value)}</td></tr>"
        for name, value in pairs
        if value not in (None, "")
    ]
    return f"<table class='facts'>{''.join(lines)}</table>" if lines else ""
