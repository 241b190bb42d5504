from __future__ import annotations

import numpy as np
import pytest

from pando.adapt.abstain import Answers, above_threshold, choose_threshold
from pando.adapt.findings import calibration, confusion, coverage, disagreements, field_errors, power, rare_labels
from pando.adapt.scorer import Evaluation
from pando.interface import Usage
from pando.skin import Prediction
from pando.task import Example
from pando.task.file import Abstain


def rows(outputs) -> list[Example]:
    return [Example(f"id{i:03}", {"text": f"text {i}"}, output) for i, output in enumerate(outputs)]


def evaluation(values, outputs, confidence=None) -> Evaluation:
    confidences = confidence if confidence is not None else [None] * len(values)
    predictions = [Prediction(v, c) for v, c in zip(values, confidences, strict=True)]
    items = [{"value": float(v == o), "stats": []} for v, o in zip(values, outputs, strict=True)]
    return Evaluation(items, predictions, 0.0, 0.0, Usage(), [])


def test_coverage_falls_as_accuracy_rises():
    found = evaluation("aaab", "aaaa", [0.9, 0.8, 0.7, 0.6])
    assert coverage(found) == [[0.25, 1.0], [0.5, 1.0], [0.75, 1.0], [1.0, 0.75]]
    assert coverage(evaluation("aab", "aaa", [0.9, 0.5, 0.5])) == [[1 / 3, 1.0], [1.0, 2 / 3]]
    assert coverage(evaluation("ab", "aa")) == []
    many = evaluation("a" * 500, "a" * 500, np.linspace(0, 1, 500))
    assert len(coverage(many)) == 50
    assert coverage(many)[-1][0] == 1.0


def test_unanswered_rows_lower_the_coverage():
    assert coverage(evaluation(["a", None], "aa", [0.9, 0.95])) == [[0.5, 1.0]]


def test_calibration_of_a_sure_and_wrong_skin():
    found = calibration(evaluation("abab", "aaaa", [1.0, 1.0, 0.55, 0.55]))
    assert [one["n"] for one in found["bins"]] == [2, 2]
    assert found["ece"] == pytest.approx((2 * 0.05 + 2 * 0.5) / 4)
    assert calibration(evaluation("a", "a")) is None


def test_confusion_has_a_column_for_no_answer():
    found = confusion(evaluation(["x", "y", None, "z"], "xxyy"), rows("xxyy"))
    assert found["labels"] == ["x", "y", "z"]
    assert found["columns"] == ["x", "y", "z", "(none)"]
    assert found["matrix"] == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert confusion(evaluation("x", "x"), rows("x"))["columns"] == ["x"]


def test_field_errors_tell_wrong_from_missing_and_extra():
    wanted = [{"city": "Rome", "day": "Monday"}, {"city": "Oslo"}, {"city": ["Bern", "Graz"]}]
    given = [{"city": "rome", "day": "Friday"}, {"city": "Oslo", "day": "Sunday"}, {"city": ["Bern"]}]
    found = field_errors(evaluation(given, wanted), rows(wanted))
    assert found == [
        {"field": "day", "right": 0, "wrong": 1, "missing": 0, "extra": 1},
        {"field": "city", "right": 3, "wrong": 0, "missing": 1, "extra": 0},
    ]
    assert field_errors(evaluation([None], wanted[:1]), rows(wanted[:1]))[0]["missing"] == 1


def test_disagreements_begin_with_what_the_chosen_rung_gets_wrong():
    outputs = "aaaa"
    found = {
        "floor": evaluation("abba", outputs),
        "lora": evaluation("aaba", outputs),
        "zero": evaluation("baaa", outputs),
    }
    shown = disagreements(found, rows(outputs), "lora")
    assert [one["input"] for one in shown] == ["text 2", "text 0", "text 1"]
    assert shown[0]["answers"] == {"floor": "b", "lora": "b", "zero": "a"}
    assert disagreements({"floor": found["floor"]}, rows(outputs), "floor") == []
    assert len(disagreements(found, rows(outputs), None)) == 3
    both = {"floor": evaluation("b" * 40, "a" * 40), "lora": evaluation("a" * 20 + "b" * 20, "a" * 40)}
    assert len(disagreements({**both, "zero": evaluation("a" * 40, "a" * 40)}, rows("a" * 40), "lora")) == 12


def test_power_in_words():
    assert "0.040 to 0.050" in power([{"mde": 0.05, "n": 300}, {"mde": 0.04, "n": 300}])
    assert "difference of 0.050;" in power([{"mde": 0.05, "n": 300}])
    assert power([]) == ""


def test_rare_labels_are_warned_of_where_they_matter():
    found = rows("aaaaaaaabbb")
    assert "1 of 2 labels have under 5 rows among 11 rows" in rare_labels("macro_f1", found, None)
    assert "2 of 2 labels have under 5 groups" in rare_labels("macro_f1", found, [f"g{i % 3}" for i in range(11)])
    assert rare_labels("accuracy", found, None) == ""
    assert rare_labels("macro_f1", rows("aaaaabbbbb"), None) == ""


def answers(right: list[float], confidence: list[float | None], groups=None) -> Answers:
    predictions = [Prediction("x", c) for c in confidence]
    return Answers(predictions, [{"value": v, "stats": []} for v in right], groups)


def test_a_given_threshold_is_taken():
    assert choose_threshold(Abstain(below=0.6), answers([1.0], [0.9]))[0] == 0.6


def test_a_threshold_for_a_precision_withholds_no_more_than_needed():
    confidence = list(np.linspace(0.5, 1.0, 400))
    right = [float(c > 0.65) for c in confidence]  # 70 % are right, all of them surer than the others
    below, why = choose_threshold(Abstain(precision=0.9), answers(right, confidence))
    assert 0.58 < below < 0.66
    assert "confirmation rows" in why
    kept = above_threshold(answers(right, confidence), below)
    assert kept["quality"] > 0.9
    assert kept["coverage"] == pytest.approx(kept["n"] / 400)


def test_a_precision_that_is_not_shown_withholds_nothing():
    below, why = choose_threshold(Abstain(precision=0.99), answers([1.0] * 20, [0.9] * 20))
    assert below is None
    assert "no threshold" in why
    assert choose_threshold(Abstain(precision=0.9), answers([1.0] * 300, [0.9] * 300)) == (
        None,
        "nothing need be withheld: of the 300 of 300 confirmation rows that are answered 1.000 are right, over 0.982 "
        "with 99.5 % confidence",
    )
    assert choose_threshold(Abstain(precision=0.9), answers([], []))[0] is None


def test_thresholds_seldom_promise_too_much():
    """A skin that is right in 90 % whatever its confidence is seldom said to reach 90.1 %."""
    promised = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        found = answers((draw.random(150) < 0.9).astype(float).tolist(), draw.random(150).tolist())
        promised += "no threshold" not in choose_threshold(Abstain(precision=0.901), found)[1]
    assert promised <= 16


def test_answers_without_a_confidence_are_withheld_by_any_threshold():
    found = answers([1.0, 1.0], [None, 0.7])
    assert above_threshold(found, 0.1)["coverage"] == 0.5
    assert above_threshold(found, None)["coverage"] == 1.0
    assert above_threshold(found, 0.9) == {"coverage": 0.0, "quality": None, "n": 0}
