"""What became of every row: used in a split, or dropped and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = 5  # line numbers and rows that a message lists; the count says how many more, `report.json` has them all


@dataclass(frozen=True)
class Dropped:
    """Rows of one file that are in no split, for one reason."""

    file: str
    why: str
    lines: list[int]

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.file, "why": self.why, "count": len(self.lines), "lines": self.lines}


@dataclass
class RowReport:
    """What became of every row of a task; `read` equals `used` plus `dropped`, file by file.

    Attributes:
        read: rows by file.
        used: rows by split.
        dropped: what is in no split.
        too_long: rows that a model cannot hold; set by whoever renders them for one.
        duplicates: rows that repeat an earlier one of their file, output included; they stay, in one split.
        contradictory: lines of rows with the same input and different outputs, by file.
        overlap_exact: training rows dropped because a test row has the same input.
        overlap_near: training rows dropped because a test row's input is a near-duplicate.
        labels: rows of each label outside the test split (classify).
        unseen_labels: lines of test rows by label, for labels that no training row has.
        notes: what a user should know before anything is spent, a sentence each.
    """

    read: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    too_long: int = 0
    duplicates: int = 0
    contradictory: dict[str, list[int]] = field(default_factory=dict)
    overlap_exact: int = 0
    overlap_near: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    unseen_labels: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON: the `rows` of a ladder's report."""
        return {
            "read": self.read,
            "used": self.used,
            "dropped": [dropped.as_dict() for dropped in self.dropped],
            "too_long": self.too_long,
            "duplicates": self.duplicates,
            "contradictory": _counted(self.contradictory),
            "overlap": {"exact": self.overlap_exact, "near": self.overlap_near},
            "labels": self.labels,
            "unseen_labels": _counted(self.unseen_labels),
            "notes": self.notes,
        }


def some(lines: Sequence[int]) -> str:
    """ "line 3", "lines 3, 7" or "lines 3, 7, 9, 11, 12 and 40 more"."""
    more = f" and {len(lines) - SHOWN:,} more" if len(lines) > SHOWN else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:SHOWN]))}{more}"


def _counted(lines: dict[str, list[int]]) -> dict[str, dict[str, Any]]:
    return {name: {"count": len(found), "lines": found} for name, found in lines.items()}
