"""Splits: every row accounted for, nothing alike on two sides, the same whatever the order."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pando.errors import DataError, FormatVersionError
from pando.task.file import Task
from pando.task.near import find_alike
from pando.task.splits import Splits, groups_of, make_splits

NAMES = ("train", "select", "confirm", "test")


def sentence(i: int, words: int = 8) -> str:
    """A text unlike any other's."""
    draw = random.Random(i)
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(words))


def rows(n: int, labels: int = 2, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": sentence(start + i), "label": f"label {i % labels}"} for i in range(n)]


def make(folder: Path, train: Sequence[Any], test: Sequence[Any] | None = None, **keys: Any) -> Task:
    keys = {"kind": "classify", **keys}
    fields = {"input": "text", "output": "label", **keys.pop("fields", {})}
    for name, content in (("train.jsonl", train), ("test.jsonl", test)):
        if content is not None:
            lines = (row if isinstance(row, str) else json.dumps(row) for row in content)
            (folder / name).write_text("".join(line + "\n" for line in lines))
    data: Any = "train.jsonl" if test is None else {"train": "train.jsonl", "test": "test.jsonl"}
    task = Task(name="t", instruction="Do.", data=data, fields=fields, **keys)
    task._folder = folder
    return task


def parts(splits: Splits) -> dict[str, list[Any]]:
    return {**{name: getattr(splits, name) for name in NAMES[:3]}, "test": splits.open_test()}


def sizes(splits: Splits) -> list[int]:
    return [len(part) for part in parts(splits).values()]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (6000, [4000, 500, 500, 1000]),
        (2000, [1280, 160, 160, 400]),
        (400, [200, 50, 50, 100]),
        (30, [14, 3, 3, 10]),
        (12, [6, 1, 1, 4]),
    ],
)
def test_sizes_of_one_file(tmp_path: Path, n: int, expected: list[int]) -> None:
    assert sizes(make_splits(make(tmp_path, rows(n)))) == expected


def test_sizes_of_two_files(tmp_path: Path) -> None:
    splits = make_splits(make(tmp_path, rows(800), rows(150, start=10_000)))
    assert sizes(splits) == [640, 80, 80, 150]
    assert [e.split for e in splits.open_test()] == ["test"] * 150
    assert splits.labels == ("label 0", "label 1")


def test_the_splits_of_these_rows_are_these_for_ever(tmp_path: Path) -> None:
    """Another hash means other splits for every user's task: an older splits.json must then still be honoured."""
    splits = make_splits(make(tmp_path, rows(300)))
    assert splits.hash == "sha256:fa5e205092a1c9552d118d2f9820a4c8b054e0482124c8b82cf3714ee9a01409"


def any_rows(first: int, last: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows of few texts, so that many repeat or nearly repeat each other."""
    texts = [sentence(i, 4) + end for i in range(first, last) for end in ("", "!", " now")]
    row = {
        "text": st.sampled_from(texts),
        "label": st.sampled_from("xxyz"),
        "who": st.sampled_from([None, *"ABCDEFGH"]),
    }
    return st.lists(st.fixed_dictionaries(row), min_size=20, max_size=80)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=any_rows(0, 40), test=st.none() | any_rows(35, 60), grouped=st.booleans(), seed=st.integers(0, 99))
def test_whatever_the_rows(tmp_path: Path, train: Any, test: Any, grouped: bool, seed: int) -> None:
    fields = {"group": "who"} if grouped else {}
    task = make(tmp_path, train, test, fields=fields, kind="classify")
    try:
        splits = make_splits(task)
    except DataError as error:
        assert "\n" not in str(error)
        return
    made = parts(splits)
    ids = [e.id for part in made.values() for e in part]
    assert len(ids) == len(set(ids)) and all(made.values())
    report = splits.report.as_dict()
    assert report["used"] == {name: len(part) for name, part in made.items()}
    assert sum(report["read"].values()) == len(ids) + sum(dropped["count"] for dropped in report["dropped"])
    assert {e.output for e in splits.train} == set(splits.labels) >= {e.output for e in splits.select + splits.confirm}
    assert_apart(made, splits, grouped)
    if grouped and test is None:
        homes = {(e.group, name) for name, part in made.items() for e in part if e.group}
        assert len(homes) == len({group for group, _ in homes})

    random.Random(seed).shuffle(train)
    again = make_splits(make(tmp_path, train, test, fields=fields))
    assert again.hash == splits.hash and again.test_hash == splits.test_hash


def assert_apart(made: dict[str, list[Any]], splits: Splits, grouped: bool) -> None:
    """No row of a split is like one of another. Only the last row of a label may stay in train all the same."""
    home = {e.id: name for name, part in made.items() for e in part}
    examples = [e for part in made.values() for e in part]
    found = find_alike([e.text for e in examples])
    near = set(found.pairs) | {(c, c) for c in found.classes}
    labels = [e.output for e in splits.train]
    for e, c in zip(examples, found.classes, strict=True):
        for f, d in zip(examples, found.classes, strict=True):
            if (c, d) in near and home[e.id] != home[f.id]:
                alone = [x for x in (e, f) if home[x.id] == "train" and labels.count(x.output) == 1]
                assert grouped and alone


def test_rows_that_the_test_repeats_leave_train_and_stay_in_test(tmp_path: Path) -> None:
    test = rows(120, start=10_000)
    near = {"text": test[1]["text"] + " !", "label": "label 0"}
    nearer = {"text": test[2]["text"][:-1], "label": "label 1"}
    other_label = {"text": test[3]["text"], "label": "label 9"}
    splits = make_splits(make(tmp_path, [*rows(300), test[0], near, nearer, other_label], test))
    report = splits.report
    assert (report.overlap_exact, report.overlap_near) == (2, 2)
    assert [dropped.lines for dropped in report.dropped] == [[301, 304], [302, 303]]
    assert len(splits.open_test()) == 120 and "label 9" not in splits.labels


def test_train_that_is_all_in_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is left to train on"):
        make_splits(make(tmp_path, rows(30), rows(50)))


def test_rare_labels_stay_in_train(tmp_path: Path) -> None:
    data = rows(200) + [{"text": sentence(900 + i), "label": f"rare {i}"} for i in range(40)]
    splits = make_splits(make(tmp_path, data))
    assert len(splits.labels) == 42 == len({e.output for e in splits.train})


def test_labels_that_only_the_test_has(tmp_path: Path) -> None:
    few = [*rows(95, start=10_000), *({"text": sentence(i), "label": "new"} for i in range(20_000, 20_005))]
    report = make_splits(make(tmp_path, rows(300), few)).report
    assert report.unseen_labels == {"new": [96, 97, 98, 99, 100]}
    assert any("5 of 100 rows have labels that no training row has: 'new'" in note for note in report.notes)
    many = [{**row, "label": row["label"].upper()} for row in rows(100, start=10_000)]
    with pytest.raises(DataError, match="100 of 100 rows have labels that no training row has: 'LABEL 0' "):
        make_splits(make(tmp_path, rows(300), many))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "has no rows"),
        (rows(50, labels=1), "every row has the label 'label 0'"),
        (rows(50, labels=50), r"50 rows with 50 labels in 50 clusters .* cannot fill the test split"),
        (rows(3), "cannot fill the"),
        ([{"text": "the same text", "label": "ab"[i % 2]} for i in range(50)], "50 rows with 2 labels in 1 clusters"),
        ([{"text": " ", "label": "a"}] * 9, "has no usable row: no text in the input"),
    ],
)
def test_rows_that_no_task_can_be_made_of(tmp_path: Path, train: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_splits(make(tmp_path, train))


def test_bad_rows_stop_everything_unless_they_may_be_dropped(tmp_path: Path) -> None:
    bad: list[Any] = [{"text": f"t{i}"} for i in range(6)]
    data = [*rows(100), *bad, "{", {"text": "", "label": "label 1"}]
    with pytest.raises(DataError) as caught:
        make_splits(make(tmp_path, data))
    assert str(caught.value).startswith("7 rows cannot be used: train.jsonl:101: no field label; train.jsonl:102: ")
    assert "and 2 more. Mend them, or set `bad_rows: drop` in the task" in str(caught.value)
    report = make_splits(make(tmp_path, data, bad_rows="drop")).report.as_dict()
    assert [(d["why"][:20], d["count"], d["lines"]) for d in report["dropped"]] == [
        ("cannot be used (line", 7, list(range(101, 108))),
        ("no text in the input", 1, [108]),
    ]
    assert sum(report["used"].values()) == 100


def test_repeats_and_contradictions_are_reported(tmp_path: Path) -> None:
    data = [*rows(100), rows(1)[0], {"text": rows(2)[1]["text"], "label": "label 0"}]
    report = make_splits(make(tmp_path, data)).report
    assert (report.duplicates, report.contradictory) == (1, {"train.jsonl": [2, 102]})
    assert any("same input, different output: lines 2, 102" in note for note in report.notes)


def test_groups_stay_whole_and_look_alikes_do_not_join_them(tmp_path: Path) -> None:
    data = [{**row, "who": f"user {i % 40}"} for i, row in enumerate(rows(400))]
    data += [{"text": "thank you very much", "label": "label 0", "who": f"user {i}"} for i in range(40)]
    splits = make_splits(make(tmp_path, data, fields={"group": "who"}))
    made = parts(splits)
    homes = {(e.group, name) for name, part in made.items() for e in part}
    assert len(homes) == 40
    thanks = {name for name, part in made.items() for e in part if e.text.startswith("thank")}
    assert len(thanks) == 1
    assert splits.report.dropped[-1].why == "nearly the same as a row of another group in another split"
    assert groups_of(splits.train) == [f"group {e.group}" for e in splits.train]


def test_groups_of_rows_without_one_are_the_rows_themselves(tmp_path: Path) -> None:
    data = [{**row, "who": "one" if i < 3 else None} for i, row in enumerate(rows(60))]
    splits = make_splits(make(tmp_path, data, fields={"group": "who"}))
    found = groups_of(splits.train) or []
    assert len(set(found)) == len(splits.train) - 2 * (any(e.group for e in splits.train))
    assert groups_of(make_splits(make(tmp_path, rows(60))).train) is None


def test_the_test_file_is_opened_when_asked_and_must_be_the_same(tmp_path: Path) -> None:
    task = make(tmp_path, rows(100), rows(120, start=10_000))
    splits = make_splits(task)
    assert "label" not in repr(splits.test_ids)
    make(tmp_path, rows(100), rows(119, start=10_000))
    with pytest.raises(DataError, match="test rows have changed"):
        splits.open_test()


def test_splits_are_written_once_and_verified_after(tmp_path: Path) -> None:
    task, path = make(tmp_path, rows(200)), tmp_path / "splits.json"
    first = make_splits(task, path)
    assert not path.exists()  # whoever can go on keeps them
    first.keep(path)
    stored = json.loads(path.read_text())
    assert stored["format_version"] == 1 and len(stored["train"]) == len(first.train)
    assert make_splits(task, path).hash == first.hash

    stored["train"], stored["select"] = stored["select"] + stored["train"][2:], stored["train"][:2]
    path.write_text(json.dumps(stored))  # as another version of Pando might have split the same rows
    assert sizes(make_splits(task, path))[1] == 2

    with pytest.raises(DataError, match=r"rows have changed since .*splits\.json was made"):
        make_splits(make(tmp_path, rows(201)), path)
    path.write_text(json.dumps({**stored, "format_version": 2}))
    with pytest.raises(FormatVersionError, match=r"splits\.json has format version 2"):
        make_splits(task, path)
    for damaged in ("", "[]", '{"format_version": 1}', '{"format_version": 1, "train": 3}'):
        path.write_text(damaged)
        with pytest.raises(DataError, match="is damaged"):
            make_splits(task, path)


def test_notes_warn_of_numbers_that_will_be_weak(tmp_path: Path) -> None:
    data = [{"text": sentence(i), "label": "перевод"} for i in range(60)]
    notes = make_splits(make(tmp_path, data, kind="generate")).report.notes
    assert any(note.startswith("rouge_l sees only") for note in notes)
    assert any(note.startswith("20 test rows: a share's 95 % interval is up to ±22 points") for note in notes)


def test_outputs_that_the_schema_rules_out_are_noted(tmp_path: Path) -> None:
    data = [{**row, "label": {"intent": "a"}} for row in rows(60)]
    data[3]["label"], data[5]["label"] = {"intent": "a", "extra": 1}, {}
    schema = {"type": "object", "properties": {"intent": {}}, "required": ["intent"]}
    for closed, lines in ((True, "lines 4, 6;"), (False, "line 6;")):
        fields = {"schema": {**schema, "additionalProperties": not closed}}
        notes = make_splits(make(tmp_path, data, kind="extract", fields=fields)).report.notes
        assert any("schema forbids" in note and lines in note for note in notes)


def test_labels_that_differ_in_case_only_are_noted(tmp_path: Path) -> None:
    data = [*rows(100), *({**row, "label": "Label 0"} for row in rows(20, start=500))]
    assert any("'Label 0', 'label 0'" in note for note in make_splits(make(tmp_path, data)).report.notes)


def test_twenty_thousand_rows_take_seconds(tmp_path: Path) -> None:
    task = make(tmp_path, rows(20_000, labels=50))
    start = time.process_time()
    splits = make_splits(task)
    assert time.process_time() - start < 10
    assert len(splits.train) == 18_000


def test_the_format_of_the_file_does_not_matter(tmp_path: Path) -> None:
    import csv

    import pyarrow
    import pyarrow.parquet

    data = [{"text": f'{row["text"]}, "quoted"\nand é', "label": i % 3} for i, row in enumerate(rows(60))]
    task = make(tmp_path, data)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(data)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "rows.parquet")
    hashes = {make_splits(task).hash}
    for name in ("rows.csv", "rows.parquet"):
        other = Task(**{**task.model_dump(by_alias=True), "data": name})
        other._folder = tmp_path
        hashes.add(make_splits(other).hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("name", "test", "kind", "fields"),
    [
        ("uci_sentiment", "test.jsonl", "classify", {}),
        ("banking77", "test.jsonl.gz", "classify", {}),
        ("spam_assassin", "test.jsonl.gz", "classify", {"group": "group"}),
        ("sroie_receipts", "test.jsonl", "extract", {"output": "json"}),
        ("scitldr", "validation.jsonl.gz", "generate", {"output": "summary"}),
    ],
)
def test_real_rows_add_up(data: Path, name: str, test: str, kind: Any, fields: dict[str, str]) -> None:
    files = {"train": str(data / name / "train.jsonl.gz"), "test": str(data / name / test)}
    fields = {"input": "text", "output": "label", **fields}
    splits = make_splits(Task(name=name, kind=kind, instruction="Do.", data=files, fields=fields))
    report = splits.report.as_dict()
    assert sum(report["read"].values()) == sum(report["used"].values()) + sum(d["count"] for d in report["dropped"])
    assert min(report["used"].values()) >= 50
    assert len(splits.open_test()) == report["used"]["test"]
