"""Retrieve tasks: their files, what is wrong with them, and what rankings are worth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pando.errors import DataError, TaskError
from pando.task import Example, Task
from pando.task.documents import read_documents, relevance
from pando.task.metrics import Ranked, load_metric
from pando.task.rows import read_table
from pando.task.splits import make_splits

DOCUMENTS = [
    {"id": "d1", "title": "Cats", "text": "They sleep."},
    {"id": "d2", "title": "", "text": "Dogs bark."},
    {"id": 3, "text": "Birds sing."},
]


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def task(folder: Path, **data: Any) -> Task:
    write(folder / "corpus.jsonl", DOCUMENTS)
    rows = [{"query": f"what about {word}", "wanted": wanted} for word, wanted in WANTED]
    write(folder / "rows.jsonl", rows)
    made = Task(
        name="find",
        kind="retrieve",
        instruction="Find what it is about.",
        data={"file": "rows.jsonl", "corpus": "corpus.jsonl"} | data,
        fields={"input": "query", "output": "wanted"},
    )
    made._folder = folder
    return made


def judged(folder: Path, *lines: str) -> Task:
    """A task whose judgements are lines of query, document and grade."""
    made = task(folder, file=None, train="train.tsv", test="test.tsv", queries="queries.jsonl")
    write(folder / "queries.jsonl", [{"_id": i, "query": f"question {i}"} for i in range(4)])
    rows = ["query-id\tcorpus-id\twanted", *(line.replace(" ", "\t") for line in lines)]
    (folder / "train.tsv").write_text("".join(f"{row}\n" for row in rows))
    return made


WANTED: list[tuple[str, Any]] = [
    ("cats", ["d1"]),
    ("dogs", {"d2": 2, "d1": 0}),
    ("birds", "3"),
    ("all", '["d1", "d2"]'),
]
LIKE_NUMBERS = ("1234e567", "12.5", "true", "null", "-0", "007")


def test_documents_and_wanted_ones_are_read(tmp_path: Path) -> None:
    made = task(tmp_path)
    assert made.rungs == ("floor", "embed", "hybrid", "lora") and made.metric == "ndcg@10"
    found = read_documents(made)
    assert found.ids == ("d1", "d2", "3") and found.texts == ("Cats They sleep.", "Dogs bark.", "Birds sing.")
    outputs = [one.output for one in read_table(made, "rows.jsonl").examples]
    assert outputs == [{"d1": 1}, {"d2": 2, "d1": 0}, {"3": 1}, {"d1": 1, "d2": 1}]


@pytest.mark.parametrize("name", LIKE_NUMBERS)
def test_ids_that_look_like_numbers_stay_as_they_are(name: str) -> None:
    assert relevance(name, "wanted") == {name: 1}


def test_judgements_are_joined_with_their_queries(tmp_path: Path) -> None:
    made = judged(tmp_path, "0 d1 1", "1 d2 1", "0 3 2", "9 d1 1", "2 none 1", "3 d1 much")
    table = read_table(made, "train.tsv")
    assert [(one.inputs["query"], one.output, one.line) for one in table.examples] == [
        ("question 0", {"d1": 1, "3": 2}, 2),
        ("question 1", {"d2": 1}, 3),
    ]
    assert table.joined == [4] and table.read == 6
    assert sorted((bad.line, bad.why) for bad in table.bad) == [
        (5, "the query '9' is not in queries.jsonl"),
        (6, "the document 'none' is not in corpus.jsonl"),
        (7, "a grade is 'much'; expected a number"),
    ]


def test_grades_that_want_nothing_need_no_document_and_none_is_given_twice(tmp_path: Path) -> None:
    made = judged(tmp_path, "0 d1 1", "0 gone 0", "0 d2 -2", "1 d2 1", "1 d2 1", "1 d2 2")
    table = read_table(made, "train.tsv")
    assert [one.output for one in table.examples] == [{"d1": 1, "d2": 0}, {"d2": 1}]
    assert [(bad.line, bad.why) for bad in table.bad] == [(7, "'d2' has another grade for '1' in line 5")]
    write(tmp_path / "queries.jsonl", [{"_id": 1, "query": "a"}, {"_id": 1, "query": "b"}])
    with pytest.raises(DataError, match=r"queries.jsonl:2: the id '1' stands in an earlier line"):
        read_table(made, "train.tsv")


def test_rows_of_one_query_are_one(tmp_path: Path) -> None:
    made = task(tmp_path)
    rows = [("cats", "d1"), ("dogs", "d2"), ("cats", {"3": 2, "d1": 0}), ("cats", "d1")]
    write(tmp_path / "rows.jsonl", [{"query": query, "wanted": wanted} for query, wanted in rows])
    table = read_table(made, "rows.jsonl")
    assert [(one.text, one.output, one.line) for one in table.examples] == [
        ("cats", {"d1": 1, "3": 2}, 1),
        ("dogs", {"d2": 1}, 2),
    ]
    assert table.joined == [3, 4] and table.read == 4


def test_grades_in_rows_follow_the_same_rules(tmp_path: Path) -> None:
    made = task(tmp_path)
    rows = [("cats", {"d1": 1, "d2": -1}), ("dogs", {"d2": 1, "gone": 0}), ("birds", {"3": 0}), ("birds", ["d1"])]
    rows += [("nothing", {"d1": 0}), ("gone", {"gone": 2}), ("huge", {"d1": 10**400})]
    write(tmp_path / "rows.jsonl", [{"query": query, "wanted": wanted} for query, wanted in rows])
    table = read_table(made, "rows.jsonl")
    assert [one.output for one in table.examples] == [{"d1": 1, "d2": 0}, {"d2": 1}, {"3": 0, "d1": 1}]
    assert [(bad.line, bad.why[:30]) for bad in sorted(table.bad, key=lambda bad: bad.line)] == [
        (5, "wanted wants no document: a qu"),
        (6, "the document 'gone' is not in "),
        (7, "a grade is 1000000000000000000"),
    ]
    assert table.read == 7


def test_a_changed_corpus_is_another_task(tmp_path: Path) -> None:
    made = task(tmp_path)
    write(tmp_path / "rows.jsonl", [{"query": f"about number {i} {'x' * i}", "wanted": ["d1"]} for i in range(60)])
    before = make_splits(made).hash
    assert make_splits(made).hash == before
    write(tmp_path / "corpus.jsonl", [*DOCUMENTS, {"id": "d4", "text": "Fish swim."}])
    assert make_splits(made).hash != before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"title": "no id"}], "no field id or _id"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], r"corpus.jsonl:2: the id 'a' stands in line 1 too"),
        ([{"id": "a", "body": "x"}], "fields.document"),
        ([{"id": "a", "text": 5}], "must be texts"),
        ([{"id": "a", "text": "\ud83d"}], r"corpus.jsonl:1: holds half a surrogate pair"),
        ([], "has no documents"),
    ],
)
def test_what_is_wrong_with_a_corpus_is_named(rows: list[Any], said: str, tmp_path: Path) -> None:
    made = task(tmp_path)
    write(tmp_path / "corpus.jsonl", rows)
    with pytest.raises(DataError, match=said):
        read_documents(made)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data": {"file": "rows.jsonl"}}, "needs `corpus`"),
        ({"kind": "classify"}, "corpus and queries are for kind retrieve"),
        ({"rungs": ["floor", "probe"]}, "probe does not fit kind retrieve"),
        ({"metric": "accuracy"}, "does not fit kind retrieve"),
        ({"abstain": {"below": 0.5}}, "no confidence"),
    ],
)
def test_what_is_wrong_with_a_task_is_named(keys: dict[str, Any], said: str) -> None:
    values = {
        "name": "find",
        "kind": "retrieve",
        "instruction": "Find.",
        "data": {"file": "rows.jsonl", "corpus": "corpus.jsonl"},
        "fields": {"input": "query", "output": "wanted"},
    }
    with pytest.raises(TaskError, match=said):
        Task(**values | keys)


def test_rankings_are_worth_what_their_definitions_say(tmp_path: Path) -> None:
    row = Example("1", {"query": "q"}, {"a": 2, "b": 1, "c": 0})
    ranking = {"x": 3.0, "b": 2.0, "a": 1.0}
    best = 2 / math.log2(2) + 1 / math.log2(3)
    (found,) = Ranked("ndcg", 10).items([ranking], [row])
    assert found["value"] == pytest.approx((1 / math.log2(3) + 2 / math.log2(4)) / best)
    worth = {
        name: Ranked(*name).items([ranking], [row])[0]["value"] for name in (("ndcg", 1), ("recall", 2), ("mrr", 10))
    }
    assert worth == {("ndcg", 1): 0, ("recall", 2): 0.5, ("mrr", 10): 0.5}
    assert Ranked("recall", 10).items([None, {}], [row, row]) == [{"value": 0.0, "stats": []}] * 2
    assert load_metric(task(tmp_path)).name == "ndcg@10"
