"""Task files: what is accepted, and how what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pando.errors import TaskError
from pando.task.file import Task, TaskFileError, json_schema

GOOD = """\
name: tweets
kind: classify            # classify | extract | generate
instruction: Is the mood of this tweet positive or negative?
data: {train: train.jsonl, test: test.jsonl}
fields: {input: text, output: label}
metric: accuracy
target: {quality: 0.85, p95_ms: 400, cost_per_1k: 0.02, margin: 0.02}
budget: {minutes: 30}
rungs: [floor, zero, few, knn, probe, lora]
seed: 0
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "task.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    task = Task.load(write(tmp_path, GOOD))
    assert (task.name, task.kind, task.metric) == ("tweets", "classify", "accuracy")
    assert task.fields.input == ("text",)
    assert (task.train_path, task.test_path) == (tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert (task.target.quality, task.target.margin, task.budget.minutes) == (0.85, 0.02, 30)


def test_what_is_left_out_follows_from_the_kind(tmp_path: Path) -> None:
    least = {"name": "t", "instruction": "Do.", "data": "rows.csv", "fields": {"input": ["a", "b"], "output": "c"}}
    made = {kind: Task(kind=kind, **least) for kind in ("classify", "extract", "generate")}
    assert [task.metric for task in made.values()] == ["accuracy", "field_f1", "rouge_l"]
    assert "probe" in made["classify"].rungs and "probe" not in made["extract"].rungs
    assert made["generate"].train_path == Path.cwd() / "rows.csv" and made["generate"].test_path is None
    assert made["extract"].bad_rows == "refuse" and made["extract"].target.margin == 0.02


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("metric: accuracy", "metrik: accuracy", 6, "metrik: unknown key; known are name, kind,"),
        ("metric: accuracy", "metric: bleu", 6, "metric: bleu does not fit kind classify; it takes accuracy, macro_f1"),
        ("metric: accuracy", "metric: my.py:f", 6, "metric: no such file"),
        ("metric: accuracy", "metric: 'my:f'", 6, "not of the form file.py:function"),
        ("quality: 0.85", "quality: 85", 7, "quality lies between 0 and 1"),
        ("p95_ms: 400", "p95: 400", 7, "target.p95: unknown key; known are quality, p95_ms"),
        ("quality: 0.85", "quality: .nan", 7, "target.quality: should be a finite number"),
        ("minutes: 30", "minutes: 0", 8, "budget.minutes: should be greater than 0"),
        ("budget: {minutes: 30}", "budget: 30", 8, "budget: should be"),
        ("knn, probe", "knm, probe", 9, "rungs.3: 'knm' is not one of"),
        ("knn, probe", "few, probe", 9, "rungs: names a rung twice"),
        ("seed: 0", "seed: zero", 10, "seed: should be a valid integer"),
        ("seed: 0", "abstain: {}", 10, "abstain: give exactly one of below and precision"),
        ("kind: classify", "kind: classfy", 2, "kind: 'classfy' is not one of"),
        ("name: tweets", "name: 12", 1, "name: must be a text; YAML reads this as 12: put it in quotes"),
        ("name: tweets", "name: my/task", 1, "may only have letters"),
        ("instruction: Is", "instruction: ' ' #", 3, "instruction: is empty"),
        ("instruction: Is", "# Is", 1, "instruction: is missing"),
        ("input: text, ", "", 5, "fields.input: is missing"),
        ("input: text", "input: label", 5, "label is both input and output"),
        ("input: text", "input: [text, text]", 5, "names a field twice"),
        ("input: text", "input: []", 5, "fields.input: "),
        ("output: label", "output: label, schema: {type: object}", 5, "schema is for kind extract"),
        ("test: test.jsonl", "tset: test.jsonl", 4, "data.tset: unknown key"),
        (", test: test.jsonl", "", 4, "data: give both train and test, or one file"),
        ("test: test.jsonl", "test: train.jsonl", 4, "same file"),
        ("seed: 0", "name: again", 10, "name stands twice"),
        ("seed: 0", "seed: [0", 11, "not valid YAML"),
        ("seed: 0", "seed: !!python/object/apply:os.getcwd []", 10, "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(TaskError) as caught:
        Task.load(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a task file is a mapping"),
        ("- a\n", "a task file is a mapping"),
        (b"name: t\nkind: \xff\n", "task.yaml:2: byte 0xff is not UTF-8"),
        ("a: &a [*a]\n", "alias inside its own anchor"),
        ("x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40)), "over 100,000"),
        ("a: " + "[" * 1000, "nested too deeply"),
        ("a: 2024-13-45\n", "month must be in"),
        (b"#" * 1_000_001, "over 1,000,000 bytes"),
    ],
)
def test_files_that_are_no_task(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task.load(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such file"):
        Task.load(tmp_path / "none.yaml")
    with pytest.raises(TaskError, match="is a folder"):
        Task.load(tmp_path)


def test_all_problems_are_counted_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("seed: 0", "seed: -1").replace("minutes: 30", "hours: 1"))
    with pytest.raises(
        TaskFileError, match=r":8: budget\.hours: unknown key; known are minutes \(and 1 more problem\)"
    ):
        Task.load(path)
    with pytest.raises(TaskFileError) as caught:
        Task.load(path)
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["8", "10"]


def test_python_tasks_name_the_field() -> None:
    with pytest.raises(TaskError, match=r"task: fields\.output: is missing"):
        Task(name="t", kind="extract", instruction="Do.", data="a.csv", fields={"input": "a"})
    with pytest.raises(TaskError, match="not a JSON Schema"):
        schema = {"type": "object", "x": {1, 2}}
        Task(
            name="t",
            kind="extract",
            instruction="Do.",
            data="a.csv",
            fields={"input": "a", "output": "b", "schema": schema},
        )


@pytest.mark.parametrize("schema", [{"type": "array"}, {}, {"type": "object", "required": "a"}, "object"])
def test_a_schema_describes_an_object(schema: Any) -> None:
    with pytest.raises(TaskError, match=r"fields\.schema: "):
        fields = {"input": "a", "output": "b", "schema": schema}
        Task(name="t", kind="extract", instruction="Do.", data="a.csv", fields=fields)


def test_the_hash_is_of_what_is_said_and_not_of_where_it_stands(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    task, moved = Task.load(write(tmp_path, GOOD)), Task.load(write(other, GOOD.replace("train.jsonl", "t.jsonl")))
    assert task.hash == moved.hash != Task.load(write(other, GOOD.replace("0.85", "0.84"))).hash
    (tmp_path / "m.py").write_text("def f(p, o): return 1")
    with_metric = Task.load(write(tmp_path, GOOD.replace("accuracy", "m.py:f"))).hash
    (tmp_path / "m.py").write_text("def f(p, o): return 2")
    assert Task.load(tmp_path / "task.yaml").hash != with_metric


def test_the_schema_for_editors_accepts_the_example_and_knows_every_key() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert not schema["additionalProperties"]
    assert set(schema["properties"]) == set(Task.model_fields)
    assert all("description" in prop for prop in schema["properties"].values())
    assert schema["properties"]["data"]["anyOf"][0]["type"] == "string"
    assert "schema" in schema["$defs"]["Fields"]["properties"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*Task.model_fields, "input", "output", "train", "file", "quality", "below"]) | st.text(
    max_size=4
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=8))
def test_whatever_stands_in_a_file_is_a_task_or_one_line(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(TaskError) as caught:  # none of these has all that a task needs
        Task.load(write(tmp_path, json.dumps(values)))
    assert str(caught.value).startswith(str(tmp_path / "task.yaml"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(alphabet="{}[]&*!:-'\"#|>%@ \n\tab0", max_size=40).map(str.encode))
def test_no_bytes_make_a_traceback(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TaskError):
        Task.load(write(tmp_path, content))
