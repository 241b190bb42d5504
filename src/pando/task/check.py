"""What `pando task check` says about a task before anything is spent."""

from __future__ import annotations

from typing import Any

from pando.task.accounting import some
from pando.task.file import Task
from pando.task.metrics import load_metric
from pando.task.splits import Splits, make_splits

_LABELS_SHOWN = 10


def check(task: Task) -> dict[str, Any]:
    """Reads all that a task names and says what an adaptation would start from; the test split stays sealed.

    Raises:
        PandoError: whatever would stop an adaptation.
    """
    load_metric(task)
    splits = make_splits(task)
    return {
        "task": {"name": task.name, "kind": task.kind, "metric": task.metric, "rungs": list(task.rungs)},
        "hash": task.hash,
        "splits": splits.hash,
        "rows": splits.report.as_dict(),
        "lines": _lines(task, splits),
    }


def _lines(task: Task, splits: Splits) -> list[str]:
    report = splits.report
    read = ", ".join(f"{n:,} of {name}" for name, n in report.read.items())
    used = ", ".join(f"{name} {n:,}" for name, n in report.used.items())
    lines = [
        f"task    {task.name}: {task.kind}, measured by {task.metric}, rungs {', '.join(task.rungs)}",
        f"rows    {read}",
        f"splits  {used}",
    ]
    if splits.labels:
        shown = sorted(report.labels.items(), key=lambda pair: (-pair[1], pair[0]))[:_LABELS_SHOWN]
        more = f" and {len(splits.labels) - len(shown)} more" if len(splits.labels) > len(shown) else ""
        lines.append(f"labels  {len(splits.labels)}: {', '.join(f'{label} {n:,}' for label, n in shown)}{more}")
    for dropped in report.dropped:
        lines.append(f"dropped {len(dropped.lines):,} of {dropped.file}: {dropped.why} ({some(dropped.lines)})")
    if report.duplicates:
        lines.append(f"repeats {report.duplicates:,} rows repeat another one; they stay, on one side of every split")
    return [*lines, *(f"note    {note}" for note in report.notes)]
