"""Reports survive JSON, refuse what is foreign, and never print a figure without its yardsticks."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fewstep.errors import DataError, UsageError
from fewstep.evaluation import tables
from fewstep.evaluation.report import (
    Comparison,
    Confusion,
    Difference,
    EvaluatorCard,
    Figure,
    ModelCard,
    Report,
    SetReport,
    shown,
)

TOP1 = Figure(
    name="top1", text="concept first", value=0.5, low=0.4, high=0.625, n=64, real=0.95, chance=1 / 1562,
    better="higher", unit="%",
)  # fmt: skip
FID = Figure(name="fid", text="FID", value=12.345, low=10.0, high=14.0, n=64, real=0.25, better="lower")
CARD = EvaluatorCard(
    name="emoji-evaluator",
    hash="ab" * 32,
    concepts=1562,
    images_seen=600_000,
    figures=(dataclasses.replace(TOP1, name="combination_top1", real=None, n=1024),),
    confusions=(Confusion(first="horse", second="horse face", errors=7, drawings=40),),
    feature_net="fewstep evaluator",
    feature_hash="ab" * 32,
    feature_dims=256,
)
MODEL = ModelCard(
    name="mine|pipe", hash="cd" * 32, engine={"backend": "fake"}, num_inference_steps=4, guidance_scale=4.0,
    guidance_rescale=0.5, solver="ddim", seed=3, images_seen=86_000,
)  # fmt: skip
REPORT = Report(
    fewstep="0.1.0",
    model=MODEL,
    evaluator=CARD,
    drawings="ef" * 32,
    selection={"styles": ["noto"]},
    sets=(SetReport(name="seen", prompts=64, images=64, figures=(TOP1, FID), notes=("few pictures",)),),
    autoencoder=(Figure(name="psnr", text="PSNR", value=30.5, low=30.0, high=31.0, n=9, unit="dB"),),
    autoencoder_hash="12" * 32,
    seconds={"draw": 1.5},
)


def test_a_report_survives_json() -> None:
    assert Report.from_json(REPORT.to_json()) == REPORT
    assert json.loads(REPORT.to_json())["version"] == 1


def test_a_comparison_survives_json() -> None:
    difference = Difference(
        set="seen", figure="top1", text="concept first", model="B", over="A", value=0.1, low=0.0,
        high=0.2, n=64,
    )  # fmt: skip
    comparison = Comparison(reports=(REPORT, REPORT), differences=(difference,))
    assert Comparison.from_json(comparison.to_json()) == comparison
    text = tables.comparison_table(comparison)
    assert "+10.0 [+0.0, +20.0] points" in text
    assert "B over A" in text
    assert text.count("30.50 dB [30.00 dB, 31.00 dB]") == 2
    assert "concept first" in tables.comparison_markdown(comparison)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"version": 2}, "version 2, this fewstep reads 1"),
        (lambda data: data | {"colour": "red"}, "colour"),
        (lambda data: {key: value for key, value in data.items() if key != "sets"}, "sets"),
        (lambda data: data | {"drawings": 5}, "drawings"),
        (lambda data: data | {"model": data["model"] | {"height": 3}}, "model.height"),
        (lambda data: [data], "not one that fewstep wrote"),
    ],
)
def test_a_foreign_report_is_refused_and_says_why(change: object, message: str) -> None:
    data = json.loads(REPORT.to_json())
    with pytest.raises(DataError, match=message):
        Report.from_json(json.dumps(change(data)))  # type: ignore[operator]
    with pytest.raises(DataError, match="not one that fewstep wrote"):
        Report.from_json("{")


@pytest.mark.parametrize("name", ["value", "low", "real"])
def test_no_figure_holds_what_is_not_a_number(name: str) -> None:
    with pytest.raises(UsageError, match=f"figure top1: {name} is nan"):
        dataclasses.replace(TOP1, **{name: float("nan")})


YARDSTICKS = (
    "emoji-evaluator abababab",
    "50.0% [40.0%, 62.5%]",  # the figure, and the evaluator's own on real drawings
    "95.0%",
    "0.06%",
    "horse / horse face (7 of 40)",
    "256 dimensions",
    "trained on 600,000 images",
    "12.35 [10.00, 14.00]",
    "few pictures",
    "30.50 dB [30.00 dB, 31.00 dB]",
    "guidance 4 rescaled 0.5, seed 3",
)


@pytest.mark.parametrize("said", YARDSTICKS)
def test_table_and_page_have_the_yardsticks_beside_the_figures(said: str) -> None:
    assert said in tables.table(REPORT)
    assert said in tables.markdown(REPORT)
    assert "on real drawings, combination held out, 1024: concept first" in tables.table(REPORT)


def test_a_table_is_plain_and_a_page_has_no_stray_columns() -> None:
    assert "\x1b" not in tables.table(REPORT)
    report = dataclasses.replace(
        REPORT, sets=(dataclasses.replace(REPORT.sets[0], figures=(dataclasses.replace(TOP1, text="a|b"),)),)
    )
    line = next(line for line in tables.markdown(report).splitlines() if "a\\|b" in line)
    assert line.replace("\\|", "").count("|") == 6


def test_small_numbers_keep_a_digit() -> None:
    assert shown(TOP1, 0.0) == "0.0%"
    assert shown(TOP1, 0.004) == "0.40%"
    assert shown(TOP1, 0.000004) == "<0.01%"
    assert shown(FID, 0.0123) == "0.0123"
