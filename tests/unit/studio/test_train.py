"""Train: captions, uploads, what stands in Create's form afterwards; curves and states of runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from fewstep.errors import UsageError
from fewstep.server.schemas.work import DistillBody, TrainBody
from fewstep.studio import curves, forms
from fewstep.studio.client import Api
from fewstep.studio.tabs import runs, train, train_pictures
from fewstep.studio.words import LANGUAGES, Words, texts

HOSTILE = "\"'><script>alert(1)</script>{{x}}${y}"


@pytest.mark.parametrize("part", ["train", "distil", "xyz", "runs", "forms", "jobsbar"])
def test_every_text_is_there_in_both_languages(part: str) -> None:
    for name, entry in texts(part).items():
        assert set(entry) == set(LANGUAGES), name
        assert all(isinstance(text, str) and text.strip() for text in entry.values()), name


def test_the_word_goes_into_captions_that_do_not_have_it() -> None:
    table = [["", "a", ""], ["", "b", "a ball"], ["", "c", "my zzq ball"]]
    assert [row[2] for row in train_pictures.filled(table, " zzq ")] == ["zzq", "zzq, a ball", "my zzq ball"]
    assert train_pictures.filled(table, "") == table


def test_uploads_are_sent_in_parts_with_their_captions(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"p{i}.PNG").write_bytes(b"x" * 40)
    (tmp_path / "p1.txt").write_text("one")
    (tmp_path / "alone.txt").write_text("of nothing")
    found = train_pictures.parts([str(path) for path in sorted(tmp_path.iterdir())], most=100)
    names = [[piece[1][0] for piece in part] for part in found]
    assert names == [["p0.PNG", "p1.PNG", "p1.txt"], ["p2.PNG", "p3.PNG"]]
    assert {piece[1][2] for part in found for piece in part} == {"image/png", "text/plain"}


def test_names() -> None:
    assert train_pictures.free_name(["pictures-1", "x"]) == "pictures-2"
    assert train_pictures.product_name("My dog! 小狗 ../x") == "My-dog-x"


def test_create_draws_with_what_was_made() -> None:
    pictures = [{"caption": ""}, {"caption": "a ball"}]
    order: dict[str, Any] = {"what": "lora", "trigger": "zzq", "model": "base", "student": "four"}
    assert train.wish({"lora": "mine"}, order, pictures) == {
        "prompt": "zzq, a ball", "adapters": [{"name": "mine", "weight": 1.0}], "model": "base",
        "student": "four",
    }  # fmt: skip
    assert train.wish({"embedding": "word"}, {"what": "embedding"}, pictures) == {"prompt": "word, a ball"}
    found = train.wish({"model": "tuned"}, {"what": "dreambooth", "model": "base", "trigger": "zzq"}, [])
    assert found == {"prompt": "zzq", "model": "tuned"}


def test_fields_of_an_order_are_read_as_their_schema_says() -> None:
    words = Words("en")
    values = {"rank": "8", "learning_rate": " 1e-3 ", "precision": "bf16", "seed": "", "minutes": None}
    read = forms.given(words, "train", TrainBody, values)
    assert read == {"rank": 8, "learning_rate": 1e-3, "precision": "bf16"}
    assert forms.given(words, "distil", DistillBody, {"steps": "4"}) == {"steps": 4}
    with pytest.raises(UsageError, match=r"Rank.*'many'"):
        forms.given(words, "train", TrainBody, {"rank": "many"})


def test_curves_are_in_the_picture() -> None:
    made = curves.svg({"a": [(0, 1.0), (10, 0.0)], HOSTILE: [(5, 0.5)], "none": []}, label="L", x="images")
    assert made.count("<polyline") == 2 and "<script" not in made and "${" not in made
    points = made.split('points="')[1].split('"')[0].split()
    (x0, y0), (x1, y1) = (tuple(map(float, point.split(","))) for point in points)
    assert x0 < x1 and y0 < y1  # the value falls, and SVG counts downwards
    assert curves.svg({"none": []}, label="L", x="images") == ""
    assert [curves.number(value) for value in (12_000, 0.12345, 250.4)] == ["12k", "0.123", "250"]


def test_curves_of_several_stages_are_told_apart() -> None:
    one = {"stage": "", "values": {"loss/adapter": [[1, 1.0]], "seconds": [[1, 2.0]]}}
    assert curves.chosen([one], "loss") == {"adapter": [[1, 1.0]]}
    two = [{"stage": name, "values": {"teacher_distance/4": [[1, 1.0]]}} for name in ("00-a", "01-b")]
    assert list(curves.chosen(two, "teacher_distance")) == ["00-a 4", "01-b 4"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_states_of_runs_are_texts_and_never_markup(language: str) -> None:
    words = Words(language)
    for state in ("queued", "running", "done", "failed", "cancelled", "cut_off", "expired"):
        job = {"state": state, "error": HOSTILE, "position": 2, "started": 1.0, "finished": 400.0,
               "progress": {"step": 3, "total": 9, "seconds": 4.0, "message": HOSTILE}}  # fmt: skip
        said = runs.status(words, job)
        assert "<script>" not in said and f'data-state="{state}"' in said
    progress = {
        "step": 300,
        "total": 600,
        "seconds": 30.2,
        "message": "300 of 600 images, 9 images/s, 0:00:33 left",
    }
    assert "33" in runs.status(words, {"state": "running", "progress": progress})
    grids = runs.grids(
        words, "/api/v1/jobs/x", [f"00-a-{n:010d}.png" for n in range(1, 7)] + [f"{HOSTILE}.png"]
    )
    assert grids.count("<img") == 4 and "<script>" not in grids


def test_the_model_that_was_chosen_stays_and_the_servers_own_is_the_first() -> None:
    class Server:
        async def get(self, path: str) -> dict[str, Any]:
            assert path == "/api/v1/models"
            plain = {"default": False, "kinds": []}
            return {
                "models": [
                    {"name": "ball-fast", "kind": "pipeline", **plain},
                    {"name": "base", "kind": "bundle", "kinds": ["bundle", "pipeline"], "default": True},
                    {"name": "base-ball-fast", "kind": "bundle", **plain},
                ]
            }

    there = asyncio.run(train_pictures.trainable(cast(Api, Server())))
    assert there == ["base", "ball-fast"]  # what was distilled here is no first choice of a teacher
    words = Words("en")
    assert train_pictures.offered(words, there, None)[1]["value"] == "base"
    assert train_pictures.offered(words, there, "ball-fast")[1]["value"] == "ball-fast"
    assert train_pictures.offered(words, there, "gone")[1]["value"] == "base"
    sentence, update = train_pictures.offered(words, [], "base")
    assert words("train.no_model").split()[0] in sentence
    assert update["value"] is None


@pytest.mark.parametrize(
    ("there", "stands", "value"),
    [
        ([], "", None),
        (["cats"], "", "cats"),
        (["cats"], "cats", None),
        (["cats"], "dogs", None),  # of a set that is not there yet
    ],
)
def test_a_look_at_the_datasets_does_not_write_over_a_name_that_is_typed_meanwhile(
    there: list[str], stands: str, value: str | None
) -> None:
    class Server:
        async def get(self, path: str) -> dict[str, Any]:
            return {"datasets": [{"name": name} for name in there], "pictures": []}

    server = cast(Api, Server())
    choice = asyncio.run(train_pictures.view(Words("en"), server, stands, [], stands=stands))[0]
    assert choice["choices"] == there and choice.get("value") == value
    added = asyncio.run(train_pictures.view(Words("en"), server, "cats"))[0]
    assert added["value"] == "cats"
