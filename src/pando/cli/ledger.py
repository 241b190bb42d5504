"""`pando ledger`: what was spent, line by line or summed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

_NUMBERS = {
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "completion_tokens": "generated",
    "queue_seconds": "queue s",
    "prefill_seconds": "prefill s",
    "decode_seconds": "decode s",
    "compute_seconds": "compute s",
    "usd": "USD",
}
_NARROW = ("prompt_tokens", "cached_tokens", "completion_tokens", "compute_seconds", "usd")  # fit 80 columns


class By(StrEnum):
    """What to sum over."""

    skin = "skin"
    day = "day"
    kind = "kind"


def command(
    by: Annotated[By | None, typer.Option(help="Sum over skins (with their versions), days or kinds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only the newest lines; 20 unless summed or printed as JSON.")
    ] = None,
) -> None:
    """Show what was spent: tokens, seconds and money of every build, evaluation and call."""
    from pando.ledger import open_ledger

    with open_ledger() as ledger:
        if by:
            found, total = ledger.summary(by.value, last), None
        else:
            found = ledger.lines(last if last or as_json else 20)
            total = sum(group["lines"] for group in ledger.summary("kind"))
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print("The ledger is empty: nothing was built, evaluated or called yet.")
    else:
        _print_table(found, by, total)


def _print_table(found: list[dict[str, Any]], by: By | None, total: int | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe has no width: cut nothing there
    wide = console.width >= 140
    labels = [_labels(row, by, wide) for row in found]
    numbers = {key: name for key, name in _NUMBERS.items() if wide or key in _NARROW}
    title = f"{len(found)} of {total} lines" if total and total > len(found) else None
    table = Table(title=title, title_justify="left", show_footer=True, box=None, header_style="bold")
    for place, name in enumerate(labels[0]):
        table.add_column(name, footer="" if place else "total", overflow="fold")
    if by:
        table.add_column("lines", justify="right", footer=str(sum(row["lines"] for row in found)))
    for key, name in numbers.items():
        table.add_column(name, justify="right", footer=_number(key, sum(row[key] for row in found)), no_wrap=True)
    for row, label in zip(found, labels, strict=True):
        counts = [str(row["lines"])] if by else []
        table.add_row(*label.values(), *counts, *(_number(key, row[key]) for key in numbers))
    console.print(table)


def _labels(row: dict[str, Any], by: By | None, wide: bool) -> dict[str, str]:
    if by is By.skin:
        return {"skin": row["skin"] or "-", "version": _short(row["skin_version"])}
    if by:
        return {by.value: row[by.value]}
    label = {
        "when (UTC)": datetime.fromtimestamp(row["at"], UTC).strftime("%m-%d %H:%M:%S"),
        "kind": row["kind"],
        "skin": row["skin"] or "-",
    }
    if wide:
        label |= {"version": _short(row["skin_version"]), "base": row["base"] or "-", "key": row["key"] or "-"}
    return label


def _short(version: str | None) -> str:
    return version.removeprefix("sha256:")[:8] if version else "-"


def _number(key: str, value: float) -> str:
    if key.endswith("tokens"):
        return f"{value:,}"
    return f"{value:,.6f}" if key == "usd" else f"{value:,.2f}"
