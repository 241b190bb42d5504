"""Every metric against its library, and every fast path against the slow one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pando.errors import TaskError
from pando.task.file import METRICS, Task
from pando.task.metrics import Metric, field_pairs, load_metric
from pando.task.rows import Example

LABELS = st.sampled_from(["a", "b", "c", "d"])
WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "mat", ",", "12", "Straße", "猫"]), max_size=9).map(
    " ".join
)
FIELDS = st.dictionaries(
    st.sampled_from("xyz"), st.one_of(st.none(), st.integers(0, 2), st.lists(st.sampled_from("pq"), max_size=3))
)


def metric(name: str) -> Metric:
    kind = next(kind for kind, names in METRICS.items() if name in names)
    return load_metric(make_task(kind, name))


def make_task(kind: str, name: str) -> Task:
    data = {"file": "rows.jsonl"} | ({"corpus": "corpus.jsonl"} if kind == "retrieve" else {})
    return Task(name="t", kind=kind, instruction="Do.", data=data, fields={"input": "i", "output": "o"}, metric=name)


def examples(outputs: Sequence[Any]) -> list[Example]:
    return [Example(str(i), {"i": "x"}, output, line=i + 1) for i, output in enumerate(outputs)]


def score(m: Metric, predictions: Sequence[Any], outputs: Sequence[Any]) -> float:
    return m.aggregate(m.items(predictions, examples(outputs)))


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40))
def test_labels_agree_with_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    truth, prediction = zip(*pairs, strict=True)
    assert score(metric("accuracy"), prediction, truth) == pytest.approx(accuracy_score(truth, prediction))
    assert score(metric("macro_f1"), prediction, truth) == pytest.approx(
        f1_score(truth, prediction, average="macro", zero_division=0)
    )


@settings(max_examples=200)
@given(st.lists(st.tuples(WORDS, WORDS.filter(str.strip)), min_size=1, max_size=12))
def test_corpus_scores_are_sacrebleus(pairs: list[tuple[str, str]]) -> None:
    from sacrebleu import BLEU, CHRF

    predictions, outputs = map(list, zip(*pairs, strict=True))
    assert 100 * score(metric("bleu"), predictions, outputs) == pytest.approx(
        BLEU().corpus_score(predictions, [outputs]).score, abs=1e-9
    )
    assert 100 * score(metric("chrf"), predictions, outputs) == pytest.approx(
        CHRF().corpus_score(predictions, [outputs]).score, abs=1e-9
    )
    for item, prediction, output in zip(
        metric("chrf").items(predictions, examples(outputs)), predictions, outputs, strict=True
    ):
        assert 100 * item["value"] == pytest.approx(CHRF().sentence_score(prediction, [output]).score, abs=1e-9)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_rouge_l_is_rouge_scores(pairs: list[tuple[str, str]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    values = [scorer.score(output, prediction)["rougeL"].fmeasure for prediction, output in pairs]
    predictions, outputs = zip(*pairs, strict=True)
    assert score(metric("rouge_l"), predictions, outputs) == pytest.approx(float(np.mean(values)))


def outputs_for(name: str) -> st.SearchStrategy[Any]:
    if "@" in name:
        return st.dictionaries(st.sampled_from("xyz"), st.integers(1, 3), min_size=1)
    if name in ("accuracy", "macro_f1"):
        return LABELS
    return FIELDS if name == "field_f1" else WORDS


@pytest.mark.parametrize("name", sorted({name for names in METRICS.values() for name in names}))
@settings(max_examples=25)
@given(data=st.data())
def test_resamples_are_what_rescoring_gives(name: str, data: st.DataObject) -> None:
    m, outputs = metric(name), outputs_for(name)
    pairs = data.draw(st.lists(st.tuples(st.none() | outputs, outputs), min_size=1, max_size=15))
    items = m.items([p for p, _ in pairs], examples([o for _, o in pairs]))
    assert json.loads(json.dumps(items)) == items
    index = np.random.default_rng(0).integers(len(items), size=(7, len(items) + 2))
    slow = [m.aggregate([items[i] for i in row]) for row in index]
    counts = np.array([np.bincount(row, minlength=len(items)) for row in index])
    assert m.aggregate_counts(items, counts) == pytest.approx(slow, abs=1e-12)
    assert all(0 <= item["value"] <= 1 + 1e-12 for item in items)
    if m.kind != "corpus":
        assert m.aggregate(items) == pytest.approx(float(np.mean([item["value"] for item in items])))


@pytest.mark.parametrize("name", sorted({name for names in METRICS.values() for name in names}))
def test_right_is_one_and_no_answer_is_wrong(name: str) -> None:
    outputs: list[Any] = [{"x": "1"}, {}, {"y": [1, 2]}] if name == "field_f1" else ["the cat sat on it", "b", "c d"]
    if "@" in name:
        outputs = [{"d1": 1}, {"d2": 2, "d1": 1}, {"d3": 0.5}]
    if name in ("accuracy", "macro_f1"):
        outputs = ["a", "b", "b"]
    m = metric(name)
    assert score(m, outputs, outputs) == pytest.approx(1.0)
    assert score(m, [None] * 3, outputs) == 0.0
    assert [item["value"] for item in m.items([None] * 3, examples(outputs))] == [0.0] * 3


def test_macro_f1_of_a_withheld_answer_is_a_miss_but_no_label() -> None:
    # label a: 1 right, 2 wanted, 1 answered -> 2/3; label b: 1, 1, 1 -> 1
    assert score(metric("macro_f1"), ["a", None, "b"], ["a", "a", "b"]) == pytest.approx((2 / 3 + 1) / 2)


def test_field_f1_counts_pairs_over_all_rows() -> None:
    m = metric("field_f1")
    predictions = [{"a": "Red", "b": [1, 2]}, {"a": "x"}]
    outputs = [{"a": " red ", "b": [2.0, 3]}, {"a": None, "c": {"d": True}}]
    items = m.items(predictions, examples(outputs))
    assert [item["stats"] for item in items] == [[2, 1, 1], [0, 1, 1]]
    assert m.aggregate(items) == pytest.approx(2 * 2 / (2 * 2 + 2 + 2))
    assert list(field_pairs(outputs[1])) == [("c.d", "true")]


def test_exact_match_forgives_white_space_only() -> None:
    assert score(metric("exact_match"), ["a  b\n", "A b"], ["a b", "a b"]) == 0.5


def test_lists_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        metric("accuracy").items(["a"], examples(["a", "b"]))
    with pytest.raises(ValueError, match="no items"):
        metric("accuracy").aggregate([])


def custom(folder: Path, source: str, name: str = "m.py:f") -> Metric:
    (folder / "m.py").write_text(source)
    task = make_task("generate", name)
    task._folder = folder
    return load_metric(task)


def test_a_users_function_gives_one_value_per_row(tmp_path: Path) -> None:
    m = custom(tmp_path, "def f(prediction, output):\n    return len(prediction) / len(output)\n")
    assert score(m, ["ab", None], ["abcd", "x"]) == 0.25
    assert m.kind == "mean"
    m = custom(tmp_path, "def f(prediction, output):\n    return -abs(len(prediction) - len(output))\n")
    assert score(m, ["abc", None], ["abcd", "abcd"]) == -2.5  # no answer is not the best one
    assert [path.name for path in tmp_path.iterdir()] == ["m.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(p, o):\n    return 1 / 0\n", r"m\.py:2: .*line 1: ZeroDivisionError"),
        ("def f(p, o):\n    return 'good'\n", "gave 'good'"),
        ("def f(p, o):\n    return float('nan')\n", "gave nan"),
        ("def g(p, o):\n    return 1\n", "no function f"),
        ("def f(:\n", r"m\.py:1: not valid Python"),
        ("x = 1\nimport nothing_like_it\n", r"m\.py:2: .*ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"m\.py:1: .*SystemExit"),
    ],
)
def test_a_broken_function_is_one_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        score(custom(tmp_path, source), ["a"], ["b"])
    assert "\n" not in str(caught.value)
