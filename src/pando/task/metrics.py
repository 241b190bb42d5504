"""Metrics: a score for each item, and from any multiset of items the metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypedDict

import numpy as np

from pando.task.file import Task
from pando.task.rows import Example, Output


class ItemScore(TypedDict):
    """JSON-able score of one item: `value` alone, and what the metric over many items is made from."""

    value: float
    stats: list[Any]


class Metric(Protocol):
    """`kind`: "proportion" (mean of 0/1), "mean" (mean of values) or "corpus" (a function of summed counts)."""

    name: str
    kind: Literal["proportion", "mean", "corpus"]

    def items(self, predictions: Sequence[Output | None], examples: Sequence[Example]) -> list[ItemScore]: ...
    def aggregate(self, items: Sequence[ItemScore]) -> float: ...
    def aggregate_many(self, items: Sequence[ItemScore], index: np.ndarray) -> np.ndarray: ...  # [B, n] -> [B]


def load_metric(task: Task) -> Metric:
    """The metric that a task names."""
    ...
