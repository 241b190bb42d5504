"""Samples with known scores."""

from __future__ import annotations

from pando.evaluate.sample import Sample
from pando.task.metrics import Accuracy, FunctionMetric, ItemScore


class Mean(FunctionMetric):
    def __init__(self) -> None:
        super().__init__("mean", float, None, False)  # type: ignore[arg-type]


def scores(values) -> list[ItemScore]:
    return [{"value": float(v), "stats": []} for v in values]


def share(right: int, n: int, groups=None) -> Sample:
    return Sample(scores([1] * right + [0] * (n - right)), Accuracy(), groups)


def labelled(truth, answers) -> list[ItemScore]:
    return [{"value": float(t == a), "stats": [t, a]} for t, a in zip(truth, answers, strict=True)]
