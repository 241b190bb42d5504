"""Examples: rows of a task's files, checked and given a content hash."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pando.errors import DataError
from pando.files import content_hash
from pando.task.documents import judged_rows, read_documents, relevance
from pando.task.file import Kind, Task
from pando.task.formats import BadRow, iter_rows, parse_json

Output = str | dict[str, Any]
MAX_TEXT = 1_000_000  # characters of one field


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
        return one_text(self.inputs)


@dataclass
class Table:
    """The rows of the file that a task names `name`: usable ones, bad ones, the lines of those without any text, and of
    those that were joined with an earlier row of the same query."""

    name: str
    examples: list[Example] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    joined: list[int] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many rows the file has."""
        return len(self.examples) + len(self.bad) + len(self.empty) + len(self.joined)


def read_table(task: Task, name: str) -> Table:
    """Reads a file of a task's rows, `name` as the task's `data` has it.

    Raises:
        DataError: the file cannot be read, has no rows, or no row has a field that the task names.
    """
    table, fields, path = Table(name), task.fields, task.folder / name
    documents = frozenset(read_documents(task).ids) if task.kind == "retrieve" else None
    wanted = [*fields.input, fields.output, *([fields.group] if fields.group else [])]
    present: Counter[str] = Counter()
    judged = judged_rows(task, name, documents or frozenset(), table.joined) if task.data.queries else None
    for row in judged or iter_rows(path):
        if isinstance(row, BadRow):
            table.bad.append(row)
            continue
        present.update(row.values.keys())
        try:
            example = _example(row.values, row.line, task)
            if documents is not None:
                example = replace(example, output=_known(example.output, documents, task))
        except DataError as error:
            table.bad.append(BadRow(row.line, str(error)))
            continue
        if not any(text.strip() for text in example.inputs.values()):
            table.empty.append(row.line)
            continue
        table.examples.append(example)
    if documents is not None:
        _join(table, fields.output)
    table.examples = _numbered(table.examples)
    if not table.read:
        raise DataError(f"{path} has no rows")
    unknown = [name for name in wanted if not present[name]]
    if present and unknown:
        known = ", ".join(name for name, _ in present.most_common(20))
        raise DataError(f"{path} has no field {', '.join(unknown)}; its fields are {known}: mend `fields` in the task")
    return table


def one_text(inputs: Mapping[str, str]) -> str:
    """Several input fields as one text, as `Example.text`."""
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    return "\n".join(f"{name}: {value}" for name, value in inputs.items())


def row_inputs(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The input fields of a row as text: numbers and truth values as JSON writes them, null as the empty text.

    Raises:
        DataError: a field is missing, too long, or neither a text nor a number.
    """
    return {name: _text(_field(values, name), name) for name in names}


def row_output(value: Any, kind: Kind, name: str) -> Output:
    """The wanted answer of a row: labels and texts without white space around them, objects as they are.

    Raises:
        DataError: it is missing or does not suit the kind of task.
    """
    if kind == "extract":
        if isinstance(value, str):
            try:
                value = parse_json(value)
            except ValueError as error:
                raise DataError(f"{name} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise DataError(f"{name} is {_named(value)}; an extract task needs a JSON object")
        return value
    if kind == "retrieve":
        return relevance(value, name)
    text = _text(value, name).strip()
    if not text:
        raise DataError(f"{name} is empty")
    return text


def _join(table: Table, name: str) -> None:
    """Makes one example of the rows of each query, which may each name one document."""
    made: dict[tuple[str, ...], Example] = {}
    for one in table.examples:
        key = (*one.inputs.values(), one.group or "")
        if key not in made:
            made[key] = one
            continue
        table.joined.append(one.line)
        both = [each for each in (made[key].output, one.output) if isinstance(each, dict)]
        output = {wanted: max(each.get(wanted, 0) for each in both) for each in both for wanted in each}
        made[key] = replace(made[key], id=_hashed(one.inputs, output), output=output)
    table.examples = []
    for one in made.values():
        if isinstance(one.output, dict) and any(grade > 0 for grade in one.output.values()):
            table.examples.append(one)
        else:
            table.bad.append(BadRow(one.line, f"{name} wants no document: a query needs one at least"))


def _known(output: Output | None, documents: frozenset[str], task: Task) -> Output | None:
    """Without the unwanted documents that the corpus does not have."""
    if not isinstance(output, dict):
        return output
    for name, grade in output.items():
        if grade > 0 and name not in documents:
            raise DataError(f"the document {name!r} is not in {task.data.corpus}")
    return {name: grade for name, grade in output.items() if name in documents}


def _example(values: Mapping[str, Any], line: int, task: Task) -> Example:
    fields = task.fields
    inputs = row_inputs(values, fields.input)
    output = row_output(_field(values, fields.output), task.kind, fields.output)
    group = (_text(_field(values, fields.group), fields.group).strip() if fields.group else "") or None
    try:
        if len(json.dumps(output)) > 6 * MAX_TEXT:  # an escaped character takes six
            raise DataError(f"{fields.output} is over {MAX_TEXT:,} characters")
        name = _hashed(inputs, output)
    except UnicodeEncodeError:
        raise DataError("a text holds half a surrogate pair, which is no character") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"{fields.output} holds what JSON has no word for: {error}") from None
    return Example(name, inputs, output, group, line)


def _hashed(inputs: Mapping[str, str], output: Output) -> str:
    return content_hash([inputs, output]).removeprefix("sha256:")[:16]


def _numbered(examples: list[Example]) -> list[Example]:
    """Gives repeats of a row ids of their own, by group and not by order: the same rows have the same ids."""
    repeats: Counter[str] = Counter()
    made = {}
    for example in sorted(examples, key=lambda e: (e.id, e.group or "", e.line)):
        repeats[example.id] += 1
        name = example.id if repeats[example.id] == 1 else f"{example.id}-{repeats[example.id]}"
        made[example.line] = replace(example, id=name)
    return [made[example.line] for example in examples]


def _field(values: Mapping[str, Any], name: str) -> Any:
    if name not in values:
        raise DataError(f"no field {name}")
    return values[name]


def _text(value: Any, name: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if not isinstance(value, str):
        raise DataError(f"{name} is {_named(value)}, not a text")
    if len(value) > MAX_TEXT:
        raise DataError(f"{name} has {len(value):,} characters; the limit is {MAX_TEXT:,}: shorten or split the text")
    return value


def _named(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
