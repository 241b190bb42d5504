"""The model card of a base trained here: README.md as the hub and people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """What a base's page says.

    Attributes:
        name: of the base.
        licence: an SPDX name, or "other"; the user decides it, not the data alone.
        summary: one paragraph on what it is.
        task: what the hub calls what it does.
        data: the mix, one row a source: {"source": ..., "licence": ..., "tokens": ..., "share": ...} or the like; all
            rows have the same keys, which head the table.
        training: facts of the run by name, such as parameters, tokens, steps, objectives, hash of the corpus.
        costs: what was spent by name: hours, US dollars, FLOPs.
        results: what was measured by name: bits per byte, minimal pairs.
    """

    name: str
    licence: str = "other"
    summary: str = ""
    task: str = "text-generation"
    data: Sequence[Mapping[str, Any]] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The page in Markdown, its head in YAML."""
        head = {"license": self.licence, "library_name": "transformers", "pipeline_tag": self.task}
        lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "tags: [pando]", "---", ""]
        lines += [f"# {self.name}", "", self.summary or "A base model trained with Pando.", ""]
        if self.data:
            lines += ["## Data", "", *_table(list(self.data[0]), [list(row.values()) for row in self.data]), ""]
        for title, facts in (("Training", self.training), ("Costs", self.costs), ("Results", self.results)):
            if facts:
                lines += [f"## {title}", "", *_table(["", ""], [list(fact) for fact in facts.items()]), ""]
        return "\n".join(lines)


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(head), "|" + " --- |" * len(head), *map(line, rows)]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return " ".join(str(value).split()).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.3e}"
