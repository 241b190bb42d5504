"""A ladder's report as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pando.report import words

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text


def table(report: Mapping[str, Any]) -> Group:
    """What rich prints of a report: rungs, decision, test result, comparisons, rows."""
    from rich.console import Group

    parts: list[Any] = [_rungs(report), _decision(report)]
    if report.get("comparisons"):
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

    chosen = report["chosen"]
    text = Text()
    text.append("Decision  ", "bold")
    text.append(chosen or "no rung passes", "bold green" if chosen else "bold yellow")
    text.append(f": {report['why']}\n")
    test = report.get("test")
    if test:
        text.append("Test      ", "bold")
        text.append(f"{words.measured(test)} on {test['n']} rows")
        if test.get("vs_floor"):
            text.append(f"; against the floor on the same rows {words.measured(test['vs_floor'], signed=True)}")
        text.append(f"; opened {times(test['openings'])}\n")
        if test["openings"] > 1:
            text.append("          each further look at these rows makes their number less sure\n", "yellow")
    return text


def _comparisons(report: Mapping[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = "Compared on the same rows (p by Holm; the last column is what these rows could have shown)"
    grid = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for name, justify in (("", "left"), ("difference [95 %]", "right"), ("p", "right"), ("detectable", "right")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in report["comparisons"]:
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
    for label, said in (("Rows", "; ".join(rows(report.get("rows") or {}))), ("Power", report.get("power"))):
        if said:
            text.append(f"\n{label:<10}", "bold")
            text.append(str(said))
    text.append(f"\n{'Took':<10}", "bold")
    text.append(words.seconds(report["seconds"]))
    return text


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
