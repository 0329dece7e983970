"""The list of models, what is known of one, and how long work is shown."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.studio import preferred, working
from fewstep.studio.tabs import models_view
from fewstep.studio.words import Words, texts

HOSTILE = "</td><script>alert(1)</script> ${alert(3)} {{constructor}} `x` \" '"


def model(**more: Any) -> dict[str, Any]:
    contract = {
        "num_inference_steps": 20,
        "solver": "ddim",
        "guidance_scale": 2.0,
        "negative_prompt_effective": True,
    }
    return {
        "name": "m", "kind": "pipeline", "origin": "user", "bytes": 85_000_000, "loaded": False,
        "default": False, "draft": False, "removable": None, "hash": "h", "family": "f", "licence": "MIT",
        "native_width": 128,
        "native_height": 128, "size_multiple": 8, "max_size": 512, "num_inference_steps": 20,
        "guidance_scale": 2.0, "solver": "ddim", "prediction_type": "v", "contract": contract,
        "students": [
            {"name": "few", "method": "lcm", "steps": [2, 4], "contract": {**contract, "guidance_scale": 1.0}}
        ], **more,
    }  # fmt: skip


def test_h04_hostile_names_and_licences_stay_texts() -> None:
    one = model(name=HOSTILE, licence=HOSTILE, family=HOSTILE, hash=HOSTILE, solver=HOSTILE, origin=HOSTILE)
    one["students"][0] |= {"name": HOSTILE, "method": HOSTILE}
    words = Words("en")
    job = {"state": "failed", "error": HOSTILE, "progress": None}
    running = {"state": "running", "progress": {"message": HOSTILE, "step": 1, "total": 2, "seconds": 3.2}}
    for html in (
        models_view.table([one], HOSTILE, words), models_view.details(one, words), working.line(job, words),
        working.line(running, words),
    ):  # fmt: skip
        assert "<script" not in html and not set(html) & set("{}$`")


def test_the_table_says_what_is_loaded_and_which_is_chosen() -> None:
    html = models_view.table([model(loaded=True), model(name="n", draft=True)], "n", Words("en"))
    assert html.count("in memory") == 1 and html.count("merge not kept yet") == 1
    assert html.count("class='chosen'") == 1 and "85.0 MB" in html


def test_progress_has_a_bar_where_it_is_known() -> None:
    words = Words("zh")
    job: dict[str, Any] = {"state": "running", "progress": {"message": "MB 3/8", "step": 3, "total": 8}}
    assert "max='8' value='3'" in working.line(job, words)
    assert "<progress" not in working.line({"state": "queued", "position": 2}, words)
    assert working.line({"state": "done"}, words) == ""


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1234, "1 kB"), (8.5e7, "85.0 MB"), (2e12, "2000.0 GB")]
)
def test_bytes_for_people(count: float, shown: str) -> None:
    assert working.size(count) == shown


@pytest.mark.parametrize(("wanted", "steps"), [("1", 2), ("2", 2), ("4", 4), ("8", 4), ("teacher", 20)])
def test_the_stop_that_is_nearest_to_what_is_preferred(wanted: str, steps: int) -> None:
    assert preferred.stop(model(), wanted).steps == steps
    assert preferred.stop(model(students=[]), wanted).steps == 20


@pytest.mark.parametrize("part", ["models", "settings", "history"])
def test_every_text_is_there_in_both_languages(part: str) -> None:
    for name, both in texts(part).items():
        assert set(both) == {"en", "zh"} and all(isinstance(one, str) and one for one in both.values()), name
