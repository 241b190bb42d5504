"""Floors: scikit-learn's numbers without scikit-learn, and the best of the simplest answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pando.adapt.rungs import RUNGS
from pando.adapt.rungs.fitting import cross_validate, fit_linear
from pando.skin.tfidf import TfIdf
from pando.task import Task
from tests.adapt.rungs.conftest import MakeLab
from tests.fakes import FakeModel


@pytest.mark.parametrize("classes", [2, 5])
def test_probabilities_are_those_of_scikit_learn(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(40)])
    y = random.integers(classes, size=120)
    texts = [" ".join([*random.choice(words, 5), f"sign{label}"]) for label in y]
    vectors = TfIdf.fit(texts)
    x = vectors(texts)
    theirs = LogisticRegression(C=10.0, max_iter=1000).fit(x, y).predict_proba(x)
    ours = fit_linear(x, y, classes, 10.0).probabilities(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_class_without_rows_is_never_answered() -> None:
    x = np.eye(4)
    found = fit_linear(x, np.array([0, 2, 0, 2]), 4, 1.0).probabilities(x)
    np.testing.assert_allclose(found[:, [1, 3]], 0, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_few_columns_or_many_are_judged_alike() -> None:
    from pando.adapt.rungs import fitting

    random = np.random.default_rng(1)
    x, y = random.normal(size=(60, 200)), random.integers(3, size=60)
    compact = cross_validate(x, y, (0.01, 1.0), 0)
    whole, fitting._compact = fitting._compact, lambda known, new: (known, new)  # type: ignore[assignment]
    try:
        np.testing.assert_allclose(cross_validate(x, y, (0.01, 1.0), 0), compact, atol=1e-3)
    finally:
        fitting._compact = whole


def test_words_that_tell_nothing_leave_the_majority(make_lab: MakeLab, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        {
            "text": " ".join(random.choice(list("abcdefghij"), 12)) + f" {i}",
            "label": "x" if random.random() < 0.8 else "y",
        }
        for i in range(400)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "{name: t, kind: classify, instruction: i, data: rows.jsonl, fields: {input: text, output: label}}"
    )
    task, lab, _ = make_lab(Task.load(tmp_path / "task.yaml"))
    (skin,) = RUNGS["floor"].propose(task, lab)
    assert skin.baseline == "majority"
    (found,) = skin.predict(["anything"])
    assert found.value == "x" and found.confidence == pytest.approx(0.8, abs=0.06)


def test_it_needs_no_model(make_lab: MakeLab) -> None:
    task, lab, model = make_lab()
    (skin,) = RUNGS["floor"].propose(task, lab)
    lab.evaluate(skin)
    assert model.asked == [] and skin.base is None


def test_extract_answers_what_most_rows_have(make_lab: MakeLab, cities: Any) -> None:
    task, lab, _ = make_lab(cities)
    (skin,) = RUNGS["floor"].propose(task, lab)
    assert skin.baseline == "constant" and isinstance(skin.constant, dict)
    assert set(skin.constant) >= {"city", "seats"}


@pytest.mark.parametrize(("wanted", "baseline"), [("lead", "lead"), ("copy", "copy")])
def test_generate_takes_the_better_of_copy_and_lead(
    wanted: str, baseline: str, make_lab: MakeLab, tmp_path: Path
) -> None:
    rows = []
    for i in range(60):
        first = f"The {i}th thing is here."
        text = f"{first} And then came something else of number {i * 7}."
        rows.append({"text": text, "out": first if wanted == "lead" else text})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "{name: t, kind: generate, instruction: i, data: rows.jsonl, fields: {input: text, output: out}}"
    )
    task, lab, _ = make_lab(Task.load(tmp_path / "task.yaml"), FakeModel())
    (skin,) = RUNGS["floor"].propose(task, lab)
    assert skin.baseline == baseline
    assert lab.evaluate(skin).quality == pytest.approx(1.0)


@pytest.mark.slow
def test_many_labels_can_be_fitted(data: Path, make_lab: MakeLab, tmp_path: Path) -> None:
    import gzip

    with gzip.open(data / "banking77" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = file.readlines()[::10]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    (tmp_path / "task.yaml").write_text(
        "{name: t, kind: classify, instruction: i, data: rows.jsonl, fields: {input: text, output: label}}"
    )
    task, lab, _ = make_lab(Task.load(tmp_path / "task.yaml"))
    (skin,) = RUNGS["floor"].propose(task, lab)
    assert lab.evaluate(skin).quality > 0.6
