"""Numbers of a report as short text, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "-"


def quality(value: float | None, signed: bool = False) -> str:
    """0.8654 -> 0.865; a difference with its sign."""
    if value is None:
        return NONE
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """[0.79, 0.92]; an end that the sample says nothing about is a dash."""
    ends = (NONE if end is None else (f"{end:+.2f}" if signed else f"{end:.2f}") for end in (low, high))
    return "[{}, {}]".format(*ends)


def measured(score: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A quality or difference with its 95 % interval."""
    if not score:
        return NONE
    value = score["diff"] if "diff" in score else score["quality"]
    return f"{quality(value, signed)} {interval(score['low'], score['high'], signed)}"


def milliseconds(value: float | None) -> str:
    """Three digits at most: 0.41, 38, 1 210 ms."""
    if value is None:
        return NONE
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}".replace(",", " ")


def dollars(value: float | None) -> str:
    """US dollars with two significant digits: 0.0041, 0.23, 12."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


def seconds(value: float | None) -> str:
    """0.4 s, 38 s, 12 min 5 s, 1 h 2 min."""
    if value is None:
        return NONE
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def probability(value: float | None) -> str:
    """0.012, or < 0.001."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def share(value: float) -> str:
    """0.873 -> 87 %."""
    return f"{100 * value:.0f} %"


def wanted(target: Mapping[str, Any] | None) -> str:
    """The task's target in words, or that there is none."""
    target = {name: value for name, value in (target or {}).items() if value is not None}
    parts = []
    if "quality" in target:
        parts.append(f"quality at least {target['quality']:g}")
    if "p95_ms" in target:
        parts.append(f"95 % of answers within {target['p95_ms']:g} ms")
    if "cost_per_1k" in target:
        parts.append(f"at most ${target['cost_per_1k']:g} per 1,000 calls")
    if parts:
        return ", ".join(parts)
    return f"none; the cheapest that is not worse than the best by more than {target.get('margin', 0.02):g}"


def value(answer: Any) -> str:
    """One answer or truth: text as it is, fields as JSON, nothing as a dash."""
    import json

    if answer is None:
        return NONE
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
