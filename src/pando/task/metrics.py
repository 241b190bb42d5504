"""Metrics: a score for each item, and the metric from any multiset of items.

Every metric is a function of summed per-item numbers, so that a bootstrap of thousands of resamples is one matrix
product. The built-in ones lie between 0 and 1 (BLEU 0.25 is what others print as 25); more is better.
"""

from __future__ import annotations

import math
import types
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from pando.errors import TaskError
from pando.task.file import Task
from pando.task.rows import Example, Output

MetricKind = Literal["proportion", "mean", "corpus"]


class ItemScore(TypedDict):
    """JSON-able score of one item: `value` taken alone, and `stats`, what the metric over many items is made from."""

    value: float
    stats: list[Any]


class Metric(ABC):
    """A metric; `items` scores predictions, the rest makes numbers of item scores, stored ones too.

    Attributes:
        name: as in the task file.
        kind: "proportion" (mean of 0/1), "mean" (mean of values) or "corpus" (another function of summed counts).
    """

    name: str
    kind: MetricKind

    def items(self, predictions: Sequence[Output | None], examples: Sequence[Example]) -> list[ItemScore]:
        """Scores each prediction against its example's output; None (withheld, unparsable) counts as wrong."""
        pairs = zip(predictions, examples, strict=True)
        return [self._item(prediction, example) for prediction, example in pairs]

    def aggregate(self, items: Sequence[ItemScore]) -> float:
        """The metric over all items.

        Raises:
            ValueError: no items.
        """
        return float(self.aggregate_counts(items, np.ones((1, len(items))))[0])

    def aggregate_counts(self, items: Sequence[ItemScore], counts: np.ndarray) -> np.ndarray:
        """The metric of each multiset: `counts` [B, n] says how often each of the n items is in it -> float64 [B]."""
        if not items:
            raise ValueError(f"{self.name} of no items")
        counts = np.asarray(counts, dtype=np.float64)
        return self._score(counts @ self._matrix(items), counts.sum(axis=1))

    @abstractmethod
    def _item(self, prediction: Output | None, example: Example) -> ItemScore: ...

    def _matrix(self, items: Sequence[ItemScore]) -> np.ndarray:
        """What is summed: float64 [n, k]."""
        return np.array([item["stats"] for item in items], dtype=np.float64)

    @abstractmethod
    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Summed numbers [B, k] and item counts [B] -> the metric [B]."""


class MeanMetric(Metric):
    """The mean of one value per item."""

    kind: MetricKind = "mean"

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        return {"value": 0.0 if prediction is None else self._value(prediction, example), "stats": []}

    def _matrix(self, items: Sequence[ItemScore]) -> np.ndarray:
        return np.array([[item["value"]] for item in items])

    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        return ratio(sums[:, 0], n)

    @abstractmethod
    def _value(self, prediction: Output, example: Example) -> float: ...


class Accuracy(MeanMetric):
    """Share of items whose label is the wanted one."""

    name = "accuracy"
    kind = "proportion"

    def _value(self, prediction: Output, example: Example) -> float:
        return float(prediction == example.output)


class ExactMatch(MeanMetric):
    """Share of items that are the wanted ones but for white space (texts) or as `field_f1` compares (objects)."""

    name = "exact_match"
    kind = "proportion"

    def _value(self, prediction: Output, example: Example) -> float:
        return float(_comparable(prediction) == _comparable(example.output))


class MacroF1(Metric):
    """Mean over labels of F1, each label that is wanted or answered counting the same (as scikit-learn has it)."""

    name = "macro_f1"
    kind = "corpus"

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        return {"value": float(prediction == example.output), "stats": [example.output, prediction]}

    def _matrix(self, items: Sequence[ItemScore]) -> np.ndarray:
        """Columns: right, wanted and answered, each by label."""
        pairs = [item["stats"] for item in items]
        labels = sorted({label for pair in pairs for label in pair if label is not None})
        column = {label: c for c, label in enumerate(labels)}
        right, wanted, answered = np.zeros((3, len(items), len(labels)))
        for row, (truth, prediction) in enumerate(pairs):
            wanted[row, column[truth]] = 1
            if prediction is not None:
                answered[row, column[prediction]] = 1
                right[row, column[truth]] = truth == prediction
        return np.hstack([right, wanted, answered])

    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        right, wanted, answered = np.split(sums, 3, axis=1)
        seen = (wanted + answered) > 0
        return ratio(ratio(2 * right, wanted + answered).sum(axis=1), seen.sum(axis=1))


class FieldF1(Metric):
    """Micro F1 over (field, value) pairs of JSON objects; `stats` are true positives, false positives, misses."""

    name = "field_f1"
    kind = "corpus"

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        wanted = Counter(field_pairs(example.output))
        answered = Counter(field_pairs(prediction))
        right = (wanted & answered).total()
        counts = [right, answered.total() - right, wanted.total() - right]
        if prediction is None and not wanted:
            counts[1] = 1  # no answer is wrong even where there is nothing to find
        return {"value": float(self._score(np.array([counts], dtype=np.float64), np.ones(1))[0]), "stats": counts}

    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        right, wrong, missed = sums.T
        total = 2 * right + wrong + missed
        return np.where(total > 0, ratio(2 * right, total), 1.0)  # nothing to find, nothing found


class Ranked(MeanMetric):
    """How good the first documents of a ranking are; `wanted` has grades by document, the ranking scores in order."""

    def __init__(self, measure: str, depth: int) -> None:
        self.name = f"{measure}@{depth}"
        self._measure, self._depth = getattr(self, f"_{measure}"), depth

    def _value(self, prediction: Output, example: Example) -> float:
        wanted = example.output
        assert isinstance(prediction, dict) and isinstance(wanted, dict)
        return float(self._measure(list(prediction)[: self._depth], wanted))

    def _ndcg(self, found: Sequence[str], wanted: dict[str, Any]) -> float:
        """Grades discounted by the logarithm of the rank, against the best order (Jarvelin and Kekalainen 2002; linear
        gains, as trec_eval has them)."""
        best = sorted(wanted.values(), reverse=True)[: self._depth]
        gained = sum(wanted.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(found))
        return float(gained / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best)))

    def _recall(self, found: Sequence[str], wanted: dict[str, Any]) -> float:
        """Share of the wanted documents that are among the first."""
        relevant = {name for name, grade in wanted.items() if grade > 0}
        return len(relevant & set(found)) / len(relevant)

    def _mrr(self, found: Sequence[str], wanted: dict[str, Any]) -> float:
        """One over the rank of the first wanted document; 0 where none is among them."""
        return next((1 / (rank + 1) for rank, name in enumerate(found) if wanted.get(name, 0) > 0), 0.0)


class FunctionMetric(MeanMetric):
    """The mean of what a user's function gives for (prediction, output), one number per item. An answer that was
    withheld or cannot be read is shown to it as an empty text or object: what that is worth only the function knows."""

    def __init__(self, name: str, function: Callable[[Any, Any], Any], path: Path, extract: bool) -> None:
        self.name = name
        self._function = function
        self._path = path
        self._extract = extract

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        empty: Output = {} if self._extract else ""
        return {"value": self._value(empty if prediction is None else prediction, example), "stats": []}

    def _value(self, prediction: Output, example: Example) -> float:
        try:
            value = self._function(prediction, example.output)
        except Exception as error:
            where = f"{self._path}:{_line_in(self._path, error)}"
            raise TaskError(
                f"{where}: metric {self.name} failed on the row of line {example.line}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(value, (bool, int, float, np.number, np.bool_)) or not np.isfinite(float(value)):
            raise TaskError(
                f"{self._path}: metric {self.name} gave {value!r} for the row of line {example.line}; "
                "it must give a finite number"
            )
        return float(value)


def load_metric(task: Task) -> Metric:
    """The metric that a task names. A `file.py:function` metric runs that file.

    Raises:
        TaskError: the file cannot be run or has no such function.
    """
    if task.metric_path is not None:
        name = task.metric.rpartition(":")[2]
        return FunctionMetric(
            task.metric, _load_function(task.metric_path, name), task.metric_path, task.kind == "extract"
        )
    from pando.task.text_metrics import Bleu, Chrf, RougeL

    measure, at, depth = task.metric.partition("@")
    if at:
        return Ranked(measure, int(depth))
    known: tuple[type[Metric], ...] = (Accuracy, ExactMatch, MacroF1, FieldF1, RougeL, Chrf, Bleu)
    return next(metric for metric in known if metric.name == task.metric)()


def field_pairs(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(field, value) pairs of a JSON object, as `field_f1` and the report's field errors count them.

    Fields of nested objects have dotted names, a list gives a pair for each of its values. Texts are compared without
    case and with single spaces, a whole number is the same with and without `.0`, null and the empty text are absent.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from field_pairs(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from field_pairs(inner, key)
    elif value is not None:
        text = _plain(value)
        if text:
            yield key, text


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`above / below`, 0 where `below` is 0."""
    quotient: np.ndarray = np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) != 0)
    return quotient


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).casefold().split())


def _comparable(value: Output | None) -> Any:
    return Counter(field_pairs(value)) if isinstance(value, dict) else " ".join(str(value).split())


def _load_function(path: Path, name: str) -> Callable[[Any, Any], Any]:
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        # compiled here and not imported, which would leave a __pycache__ in the user's folder
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    except OSError as error:
        raise TaskError(f"{path}: the metric's file cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise TaskError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from None
    except (Exception, SystemExit) as error:
        where = f"{path}:{_line_in(path, error)}"
        raise TaskError(f"{where}: the metric's file failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise TaskError(f"{path} has no function {name}")
    loaded: Callable[[Any, Any], Any] = function
    return loaded


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of the file that the error passed through."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
