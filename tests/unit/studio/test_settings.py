"""Settings are found by words of both languages, and become what the server takes."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.server.schemas.preferences import Preferences, PreferencesBody
from fewstep.studio.tabs import settings


def test_every_setting_of_the_server_is_on_the_page() -> None:
    assert set(settings.NAMES) == set(Preferences.model_fields) == set(PreferencesBody.model_fields)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("", settings.NAMES),
        ("theme", ("theme",)),
        ("DARK", ("theme",)),
        ("尺寸", ("width", "height")),
        ("步数", ("stop",)),
        ("jpeg quality", ("quality",)),
        ("no such words", ()),
    ],
)
def test_settings_are_found(typed: str, found: tuple[str, ...]) -> None:
    assert tuple(name for name in settings.NAMES if settings.matches(name, typed)) == found


def values(**given: Any) -> dict[str, Any]:
    return {**dict.fromkeys(settings.NAMES, ""), "width": 0, "height": 0, **given}


@pytest.mark.parametrize(
    ("name", "given", "body"),
    [
        ("model", {"model": ""}, {"model": None}),
        ("model", {"model": "m"}, {"model": "m"}),
        ("n", {"n": 3}, {"n": 3}),
        ("live", {"live": False}, {"live": False}),
        ("width", {"width": 128, "height": 0}, None),
        ("height", {"width": 128, "height": 64}, {"width": 128, "height": 64}),
        ("height", {"width": None, "height": None}, {"width": None, "height": None}),
    ],
)
def test_what_is_sent_for_a_change(name: str, given: dict[str, Any], body: dict[str, Any] | None) -> None:
    assert settings.body_of(name, values(**given)) == body
    if body is not None:
        PreferencesBody.model_validate(body)
