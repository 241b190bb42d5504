"""Runs as a terminal view and as a page."""

from __future__ import annotations

from typing import Any

import pytest

from pando.report.runs import chart, compared_lines, differences, figures, forecast_lines, page, show_runs, thin


def _run(name: str, rate: float, steps: int = 50) -> dict[str, Any]:
    return {
        "folder": name,
        "config": {"optim.rate": rate, "seed": 0},
        "corpus": "sha256:abc",
        "made": steps,
        "finished": True,
        "seconds": 61.0,
        "speed": 1234.5,
        "loss": [(i, 5 - i / steps) for i in range(steps)],
        "bits": [(25, 1.5), (50, 1.25)],
        "sources": {"code": 1.0, "books": 1.5},
        "skipped": 1,
        "samples": ["once <b>upon</b> a time"],
        "scores": {"all": 0.75},
        "forecast": {},
    }


def test_the_page_is_self_contained_and_escaped() -> None:
    text = page([_run("one", 0.1), _run("<two>", 0.2)])
    assert "<script" not in text and "src=" not in text and "<b>upon" not in text and "<two>" not in text
    assert text.count("<svg") == 2 and "optim.rate" in text and "seed" not in text and "1.250" in text
    assert page([_run("one", 0.1)]).count("What differs") == 0


def test_a_run_that_has_not_begun_is_shown() -> None:
    empty = _run("new", 0.1) | {"loss": [], "bits": [], "sources": {}, "samples": [], "speed": None, "made": 0}
    assert "<svg" not in page([empty])
    assert dict(figures(empty))["loss"] == "-"


def test_what_differs() -> None:
    assert differences([_run("a", 0.1), _run("b", 0.2)]) == [("optim.rate", ["0.1", "0.2"])]


def test_the_terminal_view(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs([_run("one", 0.1), _run("two", 0.2)])
    said = capsys.readouterr().out
    assert "1,234" in said and "optim.rate" in said and "sample: once <b>upon" in said and "⠁" <= max(said) <= "⣿"


def test_curves_are_thinned_by_means() -> None:
    assert thin([(0, 1.0), (1, 3.0), (2, 5.0)], 2) == [(1, 2.0), (2, 5.0)]
    lines = chart([(i, float(i)) for i in range(100)], width=10, height=4).splitlines()
    assert len(lines) == 4 and lines[0].split()[-1] == "97.000" and lines[-1].split()[-1] == "2.000"


def test_forecasts_in_words() -> None:
    said = {
        "tokens": 10_000, "steps": 10, "flops": 1e12, "tokens_per_second": 500.0, "step_seconds": 2.0, "memory": 2**30,
        "hours": 0.5, "usd": 0.05, "bits_per_byte": 1.2, "bits_per_byte_low": 1.0, "bits_per_byte_high": 1.4,
        "extrapolated": True,
    }  # fmt: skip
    lines = dict(forecast_lines(said))
    assert lines["time"] == "30 min 0 s" and lines["money"] == "$0.050" and "far outside" in lines["loss"]
    was = {"step_seconds": 2.5, "memory": None, "hours": 0.6, "usd": 0.06, "bits_per_byte": 1.3}
    assert next(iter(compared_lines(said, was))).split() == ["step", "2.5", "s,", "forecast", "2", "s"]
    assert len(list(compared_lines(said, was))) == 4
