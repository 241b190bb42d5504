"""What a report shows beyond the numbers of the decision, from predictions that are there anyway."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pando.adapt.scorer import Evaluation
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import interval
from pando.skin import Prediction
from pando.task.file import METRICS, Task
from pando.task.metrics import field_pairs, load_metric
from pando.task.rows import Example
from pando.task.splits import groups_of

BINS = 10
POINTS = 50
SHOWN = 12
NONE = "(none)"
ENOUGH = 5


def coverage(found: Evaluation) -> list[list[float]]:
    """[share answered, mean value of what is answered] as the least confident answers are withheld, at most 50 pairs.

    Empty where answers carry no confidence.
    """
    confidence, values = _confident(found)
    if not len(confidence):
        return []
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) < 0, True))  # equal confidence is withheld together
    means = np.cumsum(values[order])[ends] / (ends + 1)
    kept = np.unique(np.linspace(0, len(ends) - 1, POINTS).round().astype(int))
    return [[float((ends[i] + 1) / len(found.items)), float(means[i])] for i in kept]


def calibration(found: Evaluation) -> dict[str, Any] | None:
    """Mean confidence against mean value in ten bins of equal width, and their mean distance weighted by size (ECE)."""
    confidence, values = _confident(found)
    if not len(confidence):
        return None
    codes = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        {
            "confidence": float(confidence[codes == code].mean()),
            "accuracy": float(values[codes == code].mean()),
            "n": int((codes == code).sum()),
        }
        for code in np.unique(codes)
    ]
    error = sum(abs(b["confidence"] - b["accuracy"]) * b["n"] for b in bins) / len(confidence)
    return {"bins": bins, "ece": error}


def confusion(found: Evaluation, examples: Sequence[Example]) -> dict[str, Any]:
    """Counts of answers (columns) by wanted label (rows); a last column for rows without an answer if there are any."""
    pairs = Counter(
        (str(e.output), NONE if p.value is None else str(p.value))
        for e, p in zip(examples, found.predictions, strict=True)
    )
    labels = sorted({truth for truth, _ in pairs} | {answer for _, answer in pairs if answer != NONE})
    columns = labels + ([NONE] if any(answer == NONE for _, answer in pairs) else [])
    matrix = [[pairs[truth, answer] for answer in columns] for truth in labels]
    return {"labels": labels, "columns": columns, "matrix": matrix}


def other_metrics(task: Task, found: Evaluation, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """What the other built-in metrics of a retrieve task say of the same rankings, with their intervals."""
    told = []
    for name in METRICS[task.kind]:
        if name != task.metric:
            metric = load_metric(task.model_copy(update={"metric": name}))
            items = metric.items([prediction.value for prediction in found.predictions], examples)
            sample = Sample(items, metric, groups_of(examples), task.seed)
            told.append({"metric": name, **interval(sample).as_dict()})
    return told


def field_errors(found: Evaluation, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For each field: values that are right, wrong (another value), missing, and extra; most errors first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example, prediction in zip(examples, found.predictions, strict=True):
        wanted, answered = _by_field(example.output), _by_field(prediction.value)
        for name in wanted.keys() | answered.keys():
            right = (wanted[name] & answered[name]).total()
            lacking, more = wanted[name].total() - right, answered[name].total() - right
            wrong = min(lacking, more)
            counts[name].update(right=right, wrong=wrong, missing=lacking - wrong, extra=more - wrong)
    rows = [{"field": name, **{k: c[k] for k in ("right", "wrong", "missing", "extra")}} for name, c in counts.items()]
    return sorted(rows, key=lambda row: (-row["wrong"] - row["missing"] - row["extra"], row["field"]))


def disagreements(
    found: Mapping[str, Evaluation], examples: Sequence[Example], chosen: str | None
) -> list[dict[str, Any]]:
    """Rows on which some rungs are right and others wrong, those that the chosen one has wrong first."""
    values = np.array([[item["value"] for item in one.items] for one in found.values()])
    if len(values) < 2:
        return []
    spread = values.max(axis=0) - values.min(axis=0)
    names = list(found)
    lost = values.max(axis=0) - values[names.index(chosen)] if chosen in names else np.zeros(len(spread))
    order = sorted(np.flatnonzero(spread > 0).tolist(), key=lambda i: (-lost[i], -spread[i], examples[i].id))
    half = SHOWN // 2
    wins = [i for i in order if lost[i] == 0]
    picked = [i for i in order if lost[i] > 0][: SHOWN - min(half, len(wins))] + wins
    return [
        {
            "input": examples[i].text,
            "truth": examples[i].output,
            "answers": {name: one.predictions[i].value for name, one in found.items()},
        }
        for i in picked[:SHOWN]
    ]


def rare_labels(metric: str, examples: Sequence[Example], groups: Sequence[str] | None) -> str:
    """Macro F1 where a label has under five rows, or groups: a warning in words, else nothing."""
    if metric != "macro_f1":
        return ""
    pairs = {(str(e.output), groups[i] if groups else e.id) for i, e in enumerate(examples)}
    counts = Counter(label for label, _ in pairs)
    rare = [label for label, count in counts.items() if count < ENOUGH]
    unit = "groups" if groups else "rows"
    if not rare:
        return ""
    return (
        f"{len(rare)} of {len(counts)} labels have under {ENOUGH} {unit} among {len(examples):,} rows: macro F1 is "
        "uncertain beyond its interval."
    )


def power(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """How small a difference the confirmation rows could have shown, in words."""
    if not comparisons:
        return ""
    sizes = sorted(row["mde"] for row in comparisons)
    smallest, largest = sizes[0], sizes[-1]
    between = f"{smallest:.3f}" if largest - smallest < 0.0005 else f"{smallest:.3f} to {largest:.3f}, by pair"
    return (
        f"On {comparisons[0]['n']:,} confirmation rows four of five such samples would show a true difference of "
        f"{between}; smaller ones may be there unseen."
    )


def _confident(found: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and value of the items that were answered with a confidence."""
    pairs = [
        (p.confidence, item["value"])
        for p, item in zip(found.predictions, found.items, strict=True)
        if _answered(p) and p.confidence is not None
    ]
    both = np.array(pairs, dtype=float).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _answered(prediction: Prediction) -> bool:
    return prediction.value is not None


def _by_field(value: Any) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, text in field_pairs(value):
        found[name][text] += 1
    return found
