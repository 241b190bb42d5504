"""A ladder's report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pando.report import words

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text


def show(report: Mapping[str, Any]) -> None:
    """Prints a report on standard output, whole lines also where that is no terminal."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table(report))


def table(report: Mapping[str, Any]) -> Group:
    """What rich prints of a report: rungs, decision, test result, comparisons, rows."""
    from rich.console import Group

    parts: list[Any] = [_rungs(report), _decision(report)]
    if compared(report):
        parts.append(_comparisons(report))
    parts.append(_facts(report))
    return Group(*parts)


def _rungs(report: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"{report['task']} on {report['base']['name']}, {report['mode']}"
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    grid.add_column("rung")
    for name in (f"{report.get('metric') or 'quality'} [95 %]", "rows", "p50 ms", "p95 ms", "$ / 1,000", "build"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("status")
    for rung in report["rungs"]:
        chosen = rung["name"] == report["chosen"]
        ok = rung["status"] == "ok"
        dev = rung["dev"]
        cells = (
            ("→ " if chosen else "  ") + rung["name"],
            words.measured(dev),
            str(dev["n"]) if dev else words.NONE,
            words.milliseconds(rung["p50_ms"]),
            words.milliseconds(rung["p95_ms"]),
            words.dollars(rung["cost_per_1k"]),
            words.seconds(rung["build_seconds"]),
            "chosen" if chosen else rung["status"],
        )
        grid.add_row(*(Text(cell) for cell in cells), style="bold green" if chosen else "" if ok else "dim")
    return grid


def _decision(report: Mapping[str, Any]) -> Text:
    from rich.text import Text

    text = Text()
    text.append("Decision  ", "bold")
    if report["chosen"]:
        text.append(f"{report['why']}\n", "green")
    else:
        text.append("no rung passes: ", "bold yellow")
        text.append(f"{report['why']}\n")
    if missing(report):
        text.append(f"          {missing(report)}\n", "yellow")
    test = report.get("test")
    if test:
        text.append("Test      ", "bold")
        text.append(f"{words.measured(test)} on {test['n']} rows")
        if test.get("vs_floor"):
            text.append(f"; against the floor on the same rows {words.measured(test['vs_floor'], signed=True)}")
        text.append(f"; opened {times(test['openings'])}\n")
        if test["openings"] > 1:
            text.append("          each further look at these rows makes their number less sure\n", "yellow")
    if report.get("also"):
        text.append("Also      ", "bold")
        text.append("; ".join(f"{one['metric']} {words.measured(one)}" for one in report["also"]) + "\n")
    if report.get("abstain"):
        text.append("Abstains  ", "bold")
        text.append(f"{abstaining(report['abstain'])}\n")
    return text


def _comparisons(report: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = "Compared on the same rows (p by Holm over all pairs; detectable: what so many rows would show)"
    grid = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False, min_width=95)
    grid.add_column("")
    for name in ("difference [95 %]", "p", "detectable"):
        grid.add_column(name, justify="right")
    for one in compared(report):
        grid.add_row(
            Text(f"{one['a']} minus {one['b']}"),
            words.measured(one, signed=True),
            words.probability(one.get("p_holm")),
            words.quality(one.get("mde")),
        )
    return grid


def _facts(report: Mapping[str, Any]) -> Text:
    from rich.text import Text

    text = Text()
    for label, said in (
        ("Rows", "; ".join(rows(report.get("rows") or {}))),
        ("Took", words.seconds(report["seconds"])),
    ):
        if said:
            text.append(f"\n{label:<10}", "bold")
            text.append(said)
    return text


def compared(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons with the chosen rung, or with the best where none is chosen, seen from it."""
    mine = report["chosen"] or report.get("best")
    found = [one for one in report.get("comparisons") or [] if mine in (one["a"], one["b"])]
    return [one if one["a"] == mine else turned(one) for one in found]


def turned(one: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison seen from the other side."""
    low, high = (None if end is None else -end for end in (one["high"], one["low"]))
    return {**one, "a": one["b"], "b": one["a"], "diff": -one["diff"], "low": low, "high": high}


def missing(report: Mapping[str, Any]) -> str:
    """What the best rung lacks where none was chosen."""
    lacks = report.get("missing")
    return f"{report['best']} comes closest; it lacks: {'; '.join(lacks)}" if lacks else ""


def abstaining(abstain: Mapping[str, Any]) -> str:
    """From which confidence on it answers, why, and what that gives on test rows."""
    test = abstain["test"]
    right = f", {words.measured(test)} of them right" if test["n"] else ""
    return f"{abstain['why']}; {words.share(test['coverage'])} of the test rows are answered{right}"


def rows(account: Mapping[str, Any]) -> Iterator[str]:
    """What became of every row, one phrase each; what did not happen is left out."""
    if account.get("read"):
        yield "read " + ", ".join(f"{count:,} of {file}" for file, count in account["read"].items())
    if account.get("used"):
        yield "used " + ", ".join(f"{split} {count:,}" for split, count in account["used"].items())
    for one in account.get("dropped") or []:
        yield f"dropped {one['count']:,} of {one['file']}: {one['why']} ({_lines(one)})"
    if account.get("too_long"):
        yield f"{account['too_long']:,} too long for the model"
    if account.get("duplicates"):
        yield f"{account['duplicates']:,} repeat an earlier row"
    for file, one in (account.get("contradictory") or {}).items():
        yield f"{one['count']:,} of {file} contradict another row ({_lines(one)})"
    for label, one in (account.get("unseen_labels") or {}).items():
        yield f"{one['count']:,} test rows have the label {label}, which no training row has ({_lines(one)})"
    yield from account.get("notes") or []


def _lines(found: Mapping[str, Any]) -> str:
    shown = ", ".join(map(str, found["lines"]))
    more = found["count"] - len(found["lines"])
    return ("lines " if found["count"] > 1 else "line ") + shown + (f" and {more:,} more" if more else "")


def times(count: int) -> str:
    """once, twice, 3 times."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
