"""The strip of jobs: its texts, and what its script needs of them."""

from __future__ import annotations

import html
import json
import re
from importlib import resources

import pytest

from fewstep.server.schemas.work import BODIES
from fewstep.studio import jobsbar
from fewstep.studio.words import LANGUAGES, Words, texts

SCRIPT = resources.files("fewstep.studio").joinpath("assets", "jobs.js").read_text("utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_script_finds_every_text_that_it_says(language: str) -> None:
    words = {name: Words(language)(f"jobsbar.{name}") for name in texts("jobsbar")}
    markup = jobsbar.markup(words)
    found = re.search(r'data-words="([^"]*)"', markup)
    assert found is not None
    assert json.loads(html.unescape(found[1])) == words
    said = set(re.findall(r'(?:say|offer)\("(\w+)"', SCRIPT)) | {"step", "counted"}
    assert said <= set(words)
    assert {f"kind_{kind}" for kind in ("generate", *BODIES)} <= set(words)


def test_texts_cannot_leave_their_attribute() -> None:
    hostile = "\"'><script>alert(1)</script>"
    markup = jobsbar.markup({"label": hostile, "cancel": hostile})
    assert "<script>" not in markup and markup.count("data-words=") == 1


def test_what_comes_from_outside_is_never_markup() -> None:
    assert "innerHTML" not in SCRIPT and "insertAdjacentHTML" not in SCRIPT
