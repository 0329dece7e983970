"""Values of callers in one file: shared, replaced as a whole, and never lost for being unreadable."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fewstep.errors import OutputError, UsageError
from fewstep.server.a1111 import options
from fewstep.server.owned import Owned
from fewstep.server.preferences import FILE, Keeps
from fewstep.server.schemas.preferences import PreferencesBody
from fewstep.server.settings import Limits


def put(owned: Owned, owner: str, **values: Any) -> dict[str, Any]:
    return owned.change(owner, lambda before: before | values)


def test_what_was_set_is_there_after_a_restart_and_at_another_server(tmp_path: Path) -> None:
    path = tmp_path / "new" / "values.json"
    first, second = Owned(path), Owned(path)
    assert second.get("ann") == {}
    put(first, "ann", a=1)
    put(second, "bob", b=2)  # does not undo what the other one did
    put(first, "ann", c=3)
    for owned in (first, second, Owned(path)):
        assert (owned.get("ann"), owned.get("bob"), owned.get("")) == ({"a": 1, "c": 3}, {"b": 2}, {})


def test_changes_at_once_lose_nothing(tmp_path: Path) -> None:
    servers = [Owned(tmp_path / "v.json") for _ in range(4)]
    threads = [
        threading.Thread(target=lambda n=n: [put(servers[n], "ann", **{f"{n}-{i}": i}) for i in range(5)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Owned(tmp_path / "v.json").get("ann")) == 20


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 9, "owners": {}}', '{"version": 1, "owners": {"": 1}}']
)
def test_a_broken_file_has_the_defaults_and_is_kept_beside_the_next(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "v.json"
    path.write_text(text)
    owned = Owned(path)
    assert owned.get("") == {} and owned.get("") == {}
    assert len(caplog.records) == 1
    put(owned, "", a=1)
    assert Owned(path).get("") == {"a": 1}
    assert (tmp_path / "v.json.broken").read_text() == text


def test_a_refused_change_changes_nothing(tmp_path: Path) -> None:
    owned = Owned(tmp_path / "v.json")
    put(owned, "", a=1)

    def refuse(before: dict[str, Any]) -> dict[str, Any]:
        before["a"] = 2
        raise UsageError("no")

    with pytest.raises(UsageError):
        owned.change("", refuse)
    assert owned.get("") == Owned(tmp_path / "v.json").get("") == {"a": 1}


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError):
        put(Owned(tmp_path / "taken" / "v.json"), "", a=1)


def test_options_of_the_webui_outlive_a_restart_but_not_what_is_no_option_any_more(tmp_path: Path) -> None:
    path = tmp_path / options.FILE
    options.Store(path).update("ann", options.checked({"jpeg_quality": 70}, strict=True))
    assert options.Store(path).get("ann")["jpeg_quality"] == 70
    assert options.Store(path).get("bob")["jpeg_quality"] == 95
    content = json.loads(path.read_text())
    content["owners"]["ann"] |= {"samples_format": 7, "gone": 1}
    path.write_text(json.dumps(content))
    found = options.Store(path).get("ann")
    assert (found["jpeg_quality"], found["samples_format"], "gone" in found) == (70, "png", False)


def keeps(folder: Path) -> Keeps:
    return Keeps(folder, Limits(max_images=4, max_output=512 * 512))


def test_preferences_are_set_reset_and_kept(tmp_path: Path) -> None:
    made = keeps(tmp_path).change("ann", PreferencesBody(n=2, width=128, height=64, format="webp"))
    assert (made.n, made.width, made.height, made.save) == (2, 128, 64, True)
    assert keeps(tmp_path).kept_as("ann") == ("webp", 95)
    assert keeps(tmp_path).kept_as("bob") == ("png", 95)
    assert keeps(tmp_path).change("ann", PreferencesBody(n=None)).n == 4
    assert keeps(tmp_path).own("ann") == {"width": 128, "height": 64, "format": "webp"}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"width": 64}, "height"),
        ({"n": 5}, "at most 4"),
        ({"width": 1024, "height": 1024}, "262144"),
    ],
)
def test_preferences_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, values: dict[str, Any], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        keeps(tmp_path).change("", PreferencesBody(**values))
    assert not (tmp_path / FILE).exists()


def test_a_preference_that_a_later_fewstep_wrote_has_its_default(tmp_path: Path) -> None:
    text = json.dumps({"version": 1, "owners": {"": {"theme": "violet", "n": 3, "unknown": 1}}})
    (tmp_path / FILE).write_text(text)
    found = keeps(tmp_path).get("")
    assert (found.theme, found.n) == ("auto", 3)
