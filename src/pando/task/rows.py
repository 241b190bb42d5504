"""Examples: rows of a task's files, checked and given a content hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Output = str | dict[str, Any]


@dataclass(frozen=True, eq=False)
class Example:
    """One usable row.

    Attributes:
        id: content hash of input and output (16 hex digits; repeats of a row get `-2`, `-3`, ...).
        inputs: the input fields in the task's order, as text.
        output: the wanted answer: a label or text, or a JSON object for kind extract; None where rows come unlabelled.
        group: value of the group field, if the task names one and the row has it.
        line: line of the file (row number for Parquet), from 1.
        split: "train", "select", "confirm" or "test"; "" before splitting.
    """

    id: str
    inputs: dict[str, str]
    output: Output | None
    group: str | None = None
    line: int = 0
    split: str = ""

    @property
    def text(self) -> str:
        """The input as one text: the only field's value, or a `name: value` line for each of several."""
        if len(self.inputs) == 1:
            return next(iter(self.inputs.values()))
        return "\n".join(f"{name}: {value}" for name, value in self.inputs.items())
