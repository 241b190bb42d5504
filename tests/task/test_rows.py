"""Examples out of rows: what counts as text, label and object."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.errors import DataError
from pando.task.file import Task
from pando.task.rows import MAX_TEXT, Table, one_text, read_table, row_inputs, row_output


def table(folder: Path, rows: list[Any], kind: str = "classify", **fields: Any) -> Table:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name="t",
        kind=kind,
        instruction="Do.",
        data="r.jsonl",
        fields={"input": "text", "output": "label", **fields},
    )
    task._folder = folder
    return read_table(task, "r.jsonl")


def test_labels_are_text_whatever_json_calls_them(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in (1, True, 1.5, " 1 ", "true")]
    assert [e.output for e in table(tmp_path, rows).examples] == ["1", "true", "1.5", "1", "true"]


def test_several_inputs_become_named_lines(tmp_path: Path) -> None:
    row = {"label": "x", "b": 2, "a": "one", "c": None}
    example = table(tmp_path, [row], input=["a", "b", "c"]).examples[0]
    assert example.inputs == {"a": "one", "b": "2", "c": ""}
    assert example.text == one_text(example.inputs) == "a: one\nb: 2\nc: "


def test_ids_follow_from_content_and_repeats_are_numbered(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x", "more": i} for i in range(3)] + [{"text": "a", "label": "y"}]
    first, second, third, other = table(tmp_path, rows).examples
    assert [second.id, third.id] == [f"{first.id}-2", f"{first.id}-3"]
    assert other.id not in (first.id, second.id, third.id) and len(other.id) == 16
    assert table(tmp_path, rows[3:]).examples[0].id == other.id


@pytest.mark.parametrize(
    ("row", "kind", "why"),
    [
        ({"text": "a"}, "classify", "no field label"),
        ({"label": "a"}, "classify", "no field text"),
        ({"text": ["a"], "label": "x"}, "classify", "text is a list, not a text"),
        ({"text": "a", "label": None}, "classify", "label is empty"),
        ({"text": "a", "label": "  "}, "generate", "label is empty"),
        ({"text": "a", "label": {"x": 1}}, "generate", "label is an object, not a text"),
        ({"text": "a", "label": ["x"]}, "classify", "label is a list, not a text"),
        ({"text": "a", "label": "{"}, "extract", "label is not JSON: Expecting property name"),
        ({"text": "a", "label": "[1]"}, "extract", "label is a list; an extract task needs a JSON object"),
        ({"text": "a", "label": None}, "extract", "label is null; an extract task needs a JSON object"),
        ({"text": "\ud800", "label": "x"}, "classify", "half a surrogate pair"),
        ({"text": "a", "label": {"x": "\udc00"}}, "extract", "half a surrogate pair"),
        (
            {"text": "x" * 10_000_000, "label": "x"},
            "classify",
            "text has 10,000,000 characters; the limit is 1,000,000",
        ),
        ({"text": "a", "label": "x" * 10_000_000}, "generate", "label has 10,000,000 characters"),
        ({"text": "a", "label": {"x": "y" * 10_000_000}}, "extract", "label is over 1,000,000 characters"),
    ],
)
def test_a_bad_row_keeps_its_line_and_reason(tmp_path: Path, row: Any, kind: str, why: str) -> None:
    good = {"text": "b", "label": {"k": "v"} if kind == "extract" else "x"}
    found = table(tmp_path, [good, row, good], kind)
    assert len(found.examples) == 2
    assert [(bad.line, bad.why.startswith(why) or why in bad.why) for bad in found.bad] == [(2, True)]


def test_rows_without_text_are_set_apart(tmp_path: Path) -> None:
    found = table(tmp_path, [{"text": " \n", "label": "x"}, {"text": "a", "label": "x"}, {"text": None, "label": "x"}])
    assert (found.empty, found.read, len(found.examples)) == ([1, 3], 3, 1)


def test_an_object_may_come_as_text(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": '{"k": [1, null]}'}, {"text": "b", "label": {}}]
    assert [e.output for e in table(tmp_path, rows, "extract").examples] == [{"k": [1, None]}, {}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"input": "txt"}, "no field txt; its fields are text, label"), ({"group": "user"}, "no field user; its fields")],
)
def test_a_field_that_no_row_has_is_a_mistake_in_the_task(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        table(tmp_path, [{"text": "a", "label": "x"}] * 3, **fields)


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl has no rows"):
        table(tmp_path, [])


def test_groups_are_text_and_may_be_missing_in_a_row(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x", "g": g} for g in (7, " u ", None, "")]
    assert [e.group for e in table(tmp_path, rows, group="g").examples] == ["7", "u", None, None]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(VALUES, st.sampled_from(["classify", "extract", "generate"]))
def test_any_value_is_used_or_named(value: Any, kind: Any) -> None:
    try:
        inputs = row_inputs({"text": value}, ["text"])
        assert isinstance(inputs["text"], str)
    except DataError as error:
        assert str(error).startswith("text is ")
    try:
        output = row_output(value, kind, "label")
        assert isinstance(output, dict if kind == "extract" else str) and (output or kind == "extract")
    except DataError as error:
        assert str(error).startswith("label is ")


@given(st.floats() | st.integers() | st.booleans())
def test_numbers_read_as_json_writes_them(value: Any) -> None:
    text = row_inputs({"n": value}, ["n"])["n"]
    assert text == ("" if math.isnan(value) else json.dumps(value))
    assert len(text) <= MAX_TEXT
