from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pando.report.html import page

EVIL = "<script>alert(1)</script>\"'&$x^2$ \x00é🌳"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and complains about tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_part_is_there(report: dict[str, Any]) -> None:
    html = page(report)
    reader = Reader(html)
    assert sum(tag == "svg" for tag, _ in reader.tags) == 4
    for said in (
        "probe is the cheapest whose quality meets 0.85",
        "0.861",
        "+0.103",
        "failed: out of memory",
        "Quality against cost",
        "Can its confidence be trusted?",
        "Where it errs",
        "Where rungs disagree",
        "Yay. Another good phone interview.",
        "probe minus lora",
        "80 rows show differences of 0.07",
        "used train 640, select 80, confirm 80, test 1,000",
        "sha256:0123",
    ):
        assert said in reader.text


def test_it_loads_nothing_and_runs_nothing(report: dict[str, Any]) -> None:
    reader = Reader(page(report))
    for tag, attributes in reader.tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"href", "src", "xlink:href"}:
                assert value and value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", page(report))


def test_ids_are_unique(report: dict[str, Any]) -> None:
    ids = [attributes["id"] for _, attributes in Reader(page(report)).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_everything_from_a_user_is_escaped(report: dict[str, Any]) -> None:
    for key in ("task", "why", "power", "mode", "metric"):
        report[key] = EVIL
    report["base"] = dict.fromkeys(report["base"], EVIL)
    report["rungs"][3]["status"] = EVIL
    for one in report["rungs"]:
        one["name"] += EVIL
    report["chosen"] = report["rungs"][4]["name"]
    report["rows"] = {"notes": [EVIL], "read": {EVIL: 3}}
    report["confusion"]["labels"] = [EVIL, "b"]
    report["field_errors"] = [{"field": EVIL, "right": 3, "wrong": 1, "missing": 0, "extra": 0}]
    report["comparisons"][0]["a"] = report["chosen"]
    report["comparisons"][0]["b"] = EVIL
    report.update(best=EVIL, missing=[EVIL], details_of={"rung": EVIL, "split": "test"})
    report["disagreements"] = [{"input": EVIL, "truth": {EVIL: EVIL}, "answers": {report["chosen"]: EVIL}}]
    html = page(report)
    assert "<script" not in html
    reader = Reader(html)
    assert reader.text.count("alert(1)") >= 10
    assert "$x^2$" in reader.text


def test_many_labels_become_a_list(report: dict[str, Any]) -> None:
    labels = [f"intent {i}" for i in range(77)]
    matrix = [[10 if i == j else 7 if (i, j) == (3, 4) else 0 for j in range(77)] for i in range(77)]
    report["confusion"] = {"labels": labels, "matrix": matrix}
    text = Reader(page(report)).text
    assert "The commonest confusions of 77 labels" in text
    assert re.search(r"intent 3\s*intent 4\s*7", text)


def test_a_page_of_nothing_but_failures(report: dict[str, Any]) -> None:
    for one in report["rungs"]:
        one.update(dev=None, cost_per_1k=None, status="failed: no rows")
    report.update(chosen=None, test=None, comparisons=[], coverage=None, calibration=None, confusion=None)
    report.update(disagreements=[], power=None, rows={}, target=None)
    text = Reader(page(report)).text
    assert "No rung passes" in text and "Quality against cost" not in text


@pytest.mark.parametrize("end", ["low", "high"])
def test_an_end_that_is_not_known(report: dict[str, Any], end: str) -> None:
    report["rungs"][0]["dev"][end] = None
    assert "nan" not in page(report).lower()


def test_the_same_report_gives_the_same_page(report: dict[str, Any]) -> None:
    assert page(report) == page(report)
