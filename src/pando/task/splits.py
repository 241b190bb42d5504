"""Train, select, confirm and test, by content and never by order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pando.task.file import Task
from pando.task.rows import Example


@dataclass
class RowReport:
    """What became of every row; `as_dict()` is the report's `rows`."""

    too_long: int = 0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Splits:
    """The rows of a task, each in one split. The test rows stay in their file until `open_test` is called."""

    train: list[Example]
    select: list[Example]
    confirm: list[Example]
    labels: tuple[str, ...]  # sorted; empty unless classify
    report: RowReport
    hash: str  # of all splits
    test_hash: str  # of the test rows' inputs: what the ledger counts openings by
    test_ids: tuple[str, ...]
    _open: Callable[[], list[Example]]

    def open_test(self) -> list[Example]: ...


def make_splits(task: Task, path: Path | None = None) -> Splits:
    """Reads the rows, checks and splits them; `path` (splits.json) keeps the ids and is verified on later calls."""
    ...


def clusters(examples: list[Example]) -> list[str] | None:
    """Cluster of each example for clustered intervals: its group (a row without one is its own); None without groups."""
    ...
