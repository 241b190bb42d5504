from __future__ import annotations

import io
from typing import Any

import pytest

from pando.report import words
from pando.report.terminal import rows, table


def printed(report: dict[str, Any], width: int = 120) -> str:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width).print(table(report))
    return file.getvalue()


def test_every_rung_and_number_is_there(report: dict[str, Any]) -> None:
    text = printed(report)
    flat = " ".join(text.split())
    for said in ("→ probe", "0.870 [0.80, 0.92]", "failed: out of memory", "4 min 12 s", "0.000020", "chosen"):
        assert said in text
    assert "Test      0.861 [0.84, 0.88] on 1000 rows" in text
    assert "against the floor on the same rows +0.103 [+0.07, +0.13]; opened once" in text
    assert "Decision  probe is the cheapest whose quality meets 0.85" in text
    assert "probe minus floor" in text and "< 0.001" in text
    assert "used train 640, select 80, confirm 80, test 1,000; dropped 2 of train.jsonl: no text (lines 3, 9)" in flat
    assert "too long" not in text


def test_no_decision_and_repeated_openings_are_plain(report: dict[str, Any]) -> None:
    report.update(chosen=None, missing=["0.050 of quality", "more rows"])
    report["test"]["openings"] = 3
    text = printed(report)
    assert "no rung passes" in text and "→" not in text
    assert "lora comes closest; it lacks: 0.050 of quality; more rows" in text
    assert "opened 3 times" in text and "each further look" in text


def test_comparisons_are_seen_from_the_chosen_rung(report: dict[str, Any]) -> None:
    text = printed(report)
    assert "probe minus lora" in text and "-0.030 [-0.08, +0.02]" in text
    report["chosen"] = "lora"
    text = printed(report)
    assert "lora minus probe" in text and "+0.030 [-0.02, +0.08]" in text
    assert "probe minus floor" not in text


def test_abstaining_is_told(report: dict[str, Any]) -> None:
    test = {"coverage": 0.83, "quality": 0.951, "low": 0.93, "high": 0.97, "n": 830}
    report["abstain"] = {"below": 0.6, "why": "answers below 0.6 are withheld", "test": test}
    assert "83 % of the test rows are answered, 0.951 [0.93, 0.97] of them right" in " ".join(printed(report).split())
    report["abstain"]["test"] = {"coverage": 0.0, "quality": None, "n": 0}
    assert "0 % of the test rows are answered" in " ".join(printed(report).split())


def test_markup_of_a_user_is_not_ours(report: dict[str, Any]) -> None:
    report["rungs"][0]["status"] = "failed: [bold]label[/bold] [/nonsense]"
    assert "[bold]label[/bold]" in printed(report, 200)


def test_without_test_rows_and_comparisons(report: dict[str, Any]) -> None:
    report["test"] = None
    report["comparisons"] = []
    assert "Test" not in printed(report)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.quality(0.8654), "0.865"),
        (words.quality(-0.0125, signed=True), "-0.013"),
        (words.interval(None, 0.5), "[-, 0.50]"),
        (words.measured(None), "-"),
        (words.milliseconds(0.412), "0.41"),
        (words.milliseconds(1210.4), "1 210"),
        (words.dollars(0.00412), "0.0041"),
        (words.dollars(12.3), "12"),
        (words.dollars(0), "0"),
        (words.seconds(0.44), "0.4 s"),
        (words.seconds(3725), "1 h 2 min"),
        (words.probability(2e-9), "< 0.001"),
        (words.wanted({"quality": 0.85, "p95_ms": None}), "quality at least 0.85"),
        (words.wanted(None), "none; the cheapest that is not worse than the best by more than 0.02"),
        (words.value({"name": "é"}), '{"name": "é"}'),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected


def test_every_kind_of_row_is_accounted_for(report: dict[str, Any]) -> None:
    assert list(rows(report["rows"])) == [
        "read 802 of train.jsonl, 1,000 of test.jsonl",
        "used train 640, select 80, confirm 80, test 1,000",
        "dropped 2 of train.jsonl: no text (lines 3, 9)",
        "4 repeat an earlier row",
        "7 of train.jsonl contradict another row (lines 11, 12, 13, 14, 15 and 2 more)",
        "1 test rows have the label mixed, which no training row has (line 5)",
        "two of three rows are positive",
    ]
    assert list(rows({})) == []
