"""What a rung may use: training and select rows, the model, and scores that are cached and billed.

Confirmation and test rows are not here: comparing rungs and choosing among them is the ladder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Literal

from pando.adapt.folder import Folder
from pando.adapt.scorer import Evaluation, Scorer
from pando.files import progress
from pando.interface import LanguageModel, Usage
from pando.ledger import Kind, Ledger
from pando.settings import load_settings
from pando.skin import Skin
from pando.task.documents import Documents, read_documents
from pando.task.file import Task
from pando.task.metrics import Metric
from pando.task.rows import Example
from pando.task.splits import Splits


class Lab:
    """One task, one model, and the rows that rungs may see.

    Attributes:
        task: what is wanted.
        train, select: rows to learn from and to choose by.
        labels: sorted; empty unless classify.
        model: the base at work.
        metric: of the task.
        seed: of the task.
        too_long: ids of the training rows that the rung being built could not read.
    """

    def __init__(
        self, task: Task, splits: Splits, model: LanguageModel, scorer: Scorer, folder: Folder, ledger: Ledger
    ) -> None:
        self.task, self.model, self.seed = task, model, task.seed
        self.train: Sequence[Example] = tuple(splits.train)
        self.select: Sequence[Example] = tuple(splits.select)
        self.labels = splits.labels
        self.metric: Metric = scorer.metric
        self._scorer, self._folder, self._ledger = scorer, folder, ledger
        self.too_long: set[str] = set()
        self._billed = 0.0  # outside `evaluate`

    def evaluate(self, skin: Skin, examples: Literal["select"] | Sequence[Example] = "select") -> Evaluation:
        """Scores a skin on the select rows, or on some of them or of the training rows.

        Cached by skin version and item: the same call again, in a later process too, computes nothing.

        Raises:
            PandoError: the model cannot answer.
        """
        self._folder.beat()
        return self._scorer.evaluate(skin, self.select if examples == "select" else examples)

    def workdir(self, rung: str) -> Path:
        """A folder of the rung's own that outlives an interruption."""
        return self._folder.workdir(rung)

    def unread(self, rows: Iterable[Example]) -> None:
        """Says which training rows do not fit the base's context, for the account of the task's rows."""
        self.too_long.update(row.id for row in rows)

    def bill(self, kind: Kind, seconds: float, usage: Usage | None = None) -> None:
        """Writes what a rung spent outside `evaluate`: the machine's seconds, and tokens."""
        self._billed += seconds
        self._record(kind, seconds, usage or Usage(), {})

    def progress(self, total: float | None, label: str) -> AbstractContextManager[Callable[..., None]]:
        """Shows how far a loop is; yields `advance(n=1)`."""
        return progress(total, label)

    @cached_property
    def documents(self) -> Documents:
        """What a retrieve task searches."""
        return read_documents(self.task)

    @property
    def billed(self) -> float:
        """Seconds that were written to the ledger so far, by `evaluate` and by `bill`."""
        return self._billed + self._scorer.billed

    def bill_build(self, rung: str, seconds: float, skin: Skin) -> None:
        """Writes what building took beyond what was billed on the way."""
        self._record("build", seconds, Usage(), {"rung": rung}, skin.version)

    def _record(
        self, kind: Kind, seconds: float, usage: Usage, detail: dict[str, str], version: str | None = None
    ) -> None:
        self._ledger.record(
            kind,
            skin=self.task.name,
            skin_version=version,
            base=self.model.identity,
            usage=usage,
            seconds={"compute": seconds},
            usd=load_settings().usd(seconds),
            detail={**detail, "task": self.task.hash},
        )
