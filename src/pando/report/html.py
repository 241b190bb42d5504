"""A ladder's report as one self-contained page: no script, nothing loaded, everything from the report escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pando.report import plots, words
from pando.report.terminal import abstaining, compared, missing, rows, times

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_LABELS = 16  # beyond these a matrix is unreadable and the commonest confusions are listed instead


def page(report: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pando.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    answers = [one["answers"] for one in report.get("disagreements") or []]
    return environment.get_template("page.html.j2").render(
        report=report,
        test=report.get("test"),
        chosen=next((one for one in report["rungs"] if one["name"] == report["chosen"]), None),
        answering=[one["name"] for one in report["rungs"] if any(one["name"] in each for each in answers)],
        plots=_plots(report),
        confused=_confused(report),
        rows=list(rows(report.get("rows") or {})),
        missing=missing(report),
        abstaining=abstaining(report["abstain"]) if report.get("abstain") else None,
        compared=compared(report),
        others=len(report.get("comparisons") or []) - len(compared(report)),
        seen=_seen(report),
        strip=_stripper(report),
        words=words,
        times=times,
        cut=lambda text: plots.shorten(str(text), 280),
    )


def _plots(report: Mapping[str, Any]) -> dict[str, Markup]:
    from markupsafe import Markup

    made: dict[str, str] = {}
    if any(one["dev"] and one["cost_per_1k"] is not None for one in report["rungs"]):
        made["cost"] = plots.quality_against_cost(report)
    if (report.get("calibration") or {}).get("bins"):
        made["reliability"] = plots.reliability(report["calibration"])
    if report.get("coverage"):
        made["coverage"] = plots.coverage(report["coverage"])
    matrix = report.get("confusion")
    if matrix and len(matrix["labels"]) <= MOST_LABELS:
        made["confusion"] = plots.confusion(matrix["labels"], matrix.get("columns", matrix["labels"]), matrix["matrix"])
    if report.get("field_errors"):
        made["fields"] = plots.fields(report["field_errors"])
    return {name: Markup(svg) for name, svg in made.items()}  # matplotlib has escaped every text


def _seen(report: Mapping[str, Any]) -> str:
    """Whose answers to which rows the plots are about."""
    of = report.get("details_of")
    return f"{of['rung']} on {'test' if of['split'] == 'test' else 'confirmation'} rows" if of else ""


def _confused(report: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """The commonest wrong answers (truth, answer, rows) where there are too many labels for a matrix."""
    found = report.get("confusion")
    if not found or len(found["labels"]) <= MOST_LABELS:
        return []
    columns = found.get("columns", found["labels"])
    pairs = [
        (truth, answer, count)
        for truth, row in zip(found["labels"], found["matrix"], strict=True)
        for answer, count in zip(columns, row, strict=True)
        if count and truth != answer
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:15]


def _stripper(report: Mapping[str, Any]) -> Any:
    """A function that draws one interval on the scale that all rungs share."""
    from markupsafe import Markup

    scores = [one["dev"] for one in report["rungs"] if one["dev"]]
    ends = [end for one in scores for end in (one["low"], one["quality"], one["high"]) if end is not None]
    goal = (report.get("target") or {}).get("quality")
    if goal is not None:
        ends.append(goal)
    bottom, top = min(ends, default=0.0), max(ends, default=1.0)
    span = (top - bottom) or 1.0

    def at(value: float) -> float:
        return 100 * (value - bottom) / span

    def strip(score: Mapping[str, Any]) -> Markup:
        low = at(bottom if score["low"] is None else score["low"])
        high = at(top if score["high"] is None else score["high"])
        mark = f'<u style="left:{at(goal):.1f}%"></u>' if goal is not None else ""
        body = (
            f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{at(score["quality"]):.1f}%"></b>'
        )
        return Markup(f'<span class="strip">{mark}{body}</span>')

    return strip
