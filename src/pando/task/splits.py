"""Train, select, confirm and test: by content, never by order, with all that is alike on one side.

Rows that share a `group`, repeat each other or are near-duplicates form a cluster. Clusters are ordered by a hash of
their content, and the first of them make the test split (where one file is given), then confirm, then select; the
rest is train. So the same rows give the same splits on any machine and in any order, and more rows move few.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pando.errors import DataError
from pando.files import atomic_write, check_format, content_hash
from pando.task.accounting import SHOWN, Dropped, RowReport, some
from pando.task.documents import read_documents
from pando.task.file import Task
from pando.task.near import Likeness, find_alike
from pando.task.rows import Example, Table, read_table

FORMAT_VERSION = 1
_SHARE, _LEAST, _MOST = 5, 100, 1000  # a fifth of the rows, 100 to 1,000
_TINY = 3  # and never over a third
_UNSEEN = 0.1  # share of test rows with labels unknown to train above which the two files do not belong together
_PLAN = ("train", "select", "confirm", "test", "dropped")


@dataclass(frozen=True)
class Splits:
    """The rows of a task, each in one split, in the order of their ids.

    Attributes:
        train: what rungs learn from and demonstrate with.
        select: what rungs choose by.
        confirm: what the ladder compares rungs by.
        labels: the sorted labels of kind classify, else empty.
        report: what became of every row.
        hash: "sha256:..." over the ids of all splits.
        test_hash: "sha256:..." over the inputs of the test rows: what openings are counted by.
        test_ids: ids of the test rows, which stay in their file until `open_test`.
        plan: ids by split, those of dropped rows too.
    """

    train: list[Example]
    select: list[Example]
    confirm: list[Example]
    labels: tuple[str, ...]
    report: RowReport
    hash: str
    test_hash: str
    test_ids: tuple[str, ...]
    plan: dict[str, list[str]]
    _read_test: Callable[[], list[Example]] = field(repr=False)

    def open_test(self) -> list[Example]:
        """Reads the test rows; whoever calls this records the opening.

        Raises:
            DataError: the file is gone or its rows have changed since the splits were made.
        """
        rows = {example.id: example for example in self._read_test()}
        if not set(self.test_ids) <= rows.keys():
            raise DataError("the test rows have changed since the splits were made; start anew with another --out")
        return [replace(rows[name], split="test") for name in self.test_ids]

    def keep(self, path: Path) -> None:
        """Writes `splits.json` (ids only), unless it is there."""
        if not path.exists():
            atomic_write(path, json.dumps({"format_version": FORMAT_VERSION, **self.plan}, indent=0) + "\n")


def make_splits(task: Task, path: Path | None = None) -> Splits:
    """Reads, checks and splits the rows of a task.

    Args:
        path: `splits.json`; the splits are those that it holds, if it is there.

    Raises:
        DataError: rows that cannot be used, too few of them, a single label, labels that only the test has, or rows
            other than those that `path` was made for.
    """
    table = read_table(task, task.data.train or task.data.file or "")
    test = read_table(task, task.data.test) if task.data.test else None
    report = _account([table, *([test] if test else [])], task)
    alike = find_alike([e.text for t in (table, test) if t for e in t.examples])
    plan, clusters = _plan(table, test, alike, report, task)
    if path is not None and path.exists():
        plan = _kept(plan, path)
    rows = {example.id: example for example in table.examples}
    made = {name: [replace(rows[i], split=name) for i in plan[name]] for name in ("train", "select", "confirm")}
    test_ids = set(plan["test"])
    tested = [e for e in (test or table).examples if e.id in test_ids]
    report.used = {name: len(plan[name]) for name in _PLAN[:4]}
    labels = _labels(made, tested, report, task) if task.kind == "classify" else ()
    _note_text(made, tested, clusters, report, task)
    return Splits(
        **made,
        labels=labels,
        report=report,
        hash=content_hash({name: plan[name] for name in _PLAN[:4]} | _searched(task)),
        test_hash=content_hash(sorted(content_hash(e.inputs) for e in tested)),
        test_ids=tuple(plan["test"]),
        plan=plan,
        _read_test=lambda: read_table(task, task.data.test or task.data.file or "").examples,
    )


def _searched(task: Task) -> dict[str, Any]:
    """What the rows are about besides themselves."""
    return {"corpus": read_documents(task).hash} if task.kind == "retrieve" else {}


def groups_of(examples: Sequence[Example]) -> list[str] | None:
    """The cluster of each example for intervals: its group, or itself where it has none; None if no row has a group."""
    if all(example.group is None for example in examples):
        return None
    return [example.id if example.group is None else f"group {example.group}" for example in examples]


def _account(tables: list[Table], task: Task) -> RowReport:
    """Counts the rows; refuses bad ones unless the task says otherwise."""
    report = RowReport(read={t.name: t.read for t in tables})
    bad = [f"{t.name}:{row.line}: {row.why}" for t in tables for row in t.bad]
    if bad and task.bad_rows == "refuse":
        more = f"; and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        count = f"{len(bad):,} row{'s' * (len(bad) > 1)} cannot be used"
        raise DataError(f"{count}: {'; '.join(bad[:SHOWN])}{more}. Mend them, or set `bad_rows: drop` in the task")
    for t in tables:
        if t.bad:
            why = f"cannot be used (line {t.bad[0].line}: {t.bad[0].why})"
            report.dropped.append(Dropped(t.name, why, [row.line for row in t.bad]))
        if t.empty:
            report.dropped.append(Dropped(t.name, "no text in the input", t.empty))
        if t.joined:
            report.dropped.append(Dropped(t.name, "joined with an earlier row of the same query", t.joined))
        if not t.examples:
            raise DataError(f"{t.name} has no usable row: {report.dropped[-1].why}")
        if lines := [e.line for e in t.examples if _outside(e.output, task.fields.json_schema)]:
            what = "outputs with fields that the schema forbids, or without ones that it requires"
            report.notes.append(f"{t.name}: {what}: {some(lines)}; no answer can be right there")
        report.duplicates += sum("-" in e.id for e in t.examples)
        outputs: dict[str, set[str]] = defaultdict(set)
        keys = [(content_hash(e.inputs), e.id.partition("-")[0], e.line) for e in t.examples]
        for key, name, _ in keys:
            outputs[key].add(name)
        if lines := [line for key, _, line in keys if len(outputs[key]) > 1]:
            report.contradictory[t.name] = lines
            report.notes.append(f"{t.name}: same input, different output: {some(lines)}")
    return report


def _outside(output: Any, schema: dict[str, Any] | None) -> bool:
    """Whether the fields of an object are others than a schema allows (what is in them is not looked at)."""
    if schema is None:
        return False
    closed = schema.get("additionalProperties") is False
    return not set(schema.get("required", [])) <= set(output) or (
        closed and not set(output) <= set(schema.get("properties", {}))
    )


def _plan(
    table: Table, test: Table | None, alike: Likeness, report: RowReport, task: Task
) -> tuple[dict[str, list[str]], list[list[Example]]]:
    """Ids by split, and the clusters of the training file."""
    dropped = _overlapping(table, test, alike, report) if test else set()
    if len(dropped) == len(table.examples):
        raise DataError(f"every row of {table.name} is also in {task.data.test}: nothing is left to train on")
    kept = [i for i, e in enumerate(table.examples) if e.id not in dropped]
    clusters = _clusters(table.examples, kept, alike)
    pool = _Pool(clusters, classify=task.kind == "classify")
    plan: dict[str, list[Example]] = {}
    plan["test"] = test.examples if test else pool.take(_share(pool.rows), "test")
    development = _share(pool.rows)
    plan["confirm"] = pool.take(development // 2, "confirm")
    plan["select"] = pool.take(development - development // 2, "select")
    plan["train"] = pool.rest()
    if task.fields.group:
        dropped |= _part(plan, table, alike, report, task)
    if missing := [name for name, examples in plan.items() if not examples]:
        labels = len({str(e.output) for e in table.examples})
        of = f" with {labels:,} labels" if task.kind == "classify" else ""
        raise DataError(
            f"{table.name}: {len(kept):,} rows{of} in {len(clusters):,} clusters (rows that are alike or of one group "
            f"stay together) cannot fill the {missing[0]} split beside train, which needs a row of each label: add rows"
        )
    ids = {name: sorted(e.id for e in examples) for name, examples in plan.items()}
    return {**ids, "dropped": sorted(dropped)}, clusters


def _overlapping(table: Table, test: Table, alike: Likeness, report: RowReport) -> set[str]:
    """Ids of training rows that a test row repeats, or nearly; the test stays whole."""
    classes = alike.classes[: len(table.examples)]
    near = _near(set(alike.classes[len(table.examples) :]), alike)
    inputs = {content_hash(e.inputs) for e in test.examples}
    exact = [e for e in table.examples if content_hash(e.inputs) in inputs]
    found = {e.id for e in exact}
    close = [e for e, c in zip(table.examples, classes, strict=True) if c in near and e.id not in found]
    report.overlap_exact, report.overlap_near = len(exact), len(close)
    for why, rows in (("also in the test file", exact), ("nearly the same as a test row", close)):
        if rows:
            report.dropped.append(Dropped(table.name, why, [e.line for e in rows]))
    shared = {e.group for e in table.examples} & {e.group for e in test.examples} - {None}
    if shared:
        report.notes.append(f"{len(shared):,} groups have rows in both {table.name} and {test.name}")
    return found | {e.id for e in close}


def _near(classes: set[int], alike: Likeness) -> set[int]:
    """The classes and those that are nearly the same as one of them."""
    near = set(classes)
    for a, b in alike.pairs:
        if a in classes:
            near.add(b)
        if b in classes:
            near.add(a)
    return near


def _clusters(examples: list[Example], kept: list[int], alike: Likeness) -> list[list[Example]]:
    """Groups, and beside them the rows without one, joined by near-duplicates over any number of steps.

    Look-alikes do not join groups: a "thank you" from each of a thousand customers would make one cluster of them all.
    """
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while (up := parent.setdefault(x, x)) != x:
            parent[x] = parent[up]
            x = up
        return x

    present = {alike.classes[i] for i in kept}
    for a, b in alike.pairs:
        if a in present and b in present:
            parent[root(b)] = root(a)
    found: dict[int | str, list[Example]] = defaultdict(list)
    for i in kept:
        found[examples[i].group or root(alike.classes[i])].append(examples[i])
    return list(found.values())


def _part(plan: dict[str, list[Example]], table: Table, alike: Likeness, report: RowReport, task: Task) -> set[str]:
    """Drops rows that are like one of another group in a split opened later; the last row of a label stays in train."""
    classes = {e.id: c for e, c in zip(table.examples, alike.classes, strict=False)}
    ahead: set[int] = set()
    gone: list[Example] = []
    for name in ("test", "confirm", "select", "train"):
        if name == "test" and task.data.test:
            continue  # what is like a row of a test file has been dropped already
        near = _near(ahead, alike)
        left = Counter(str(e.output) for e in plan[name])
        stay = []
        for example in sorted(plan[name], key=lambda e: e.id):
            last = name == "train" and task.kind == "classify" and left[str(example.output)] == 1
            if classes[example.id] in near and not last:
                left[str(example.output)] -= 1
                gone.append(example)
            else:
                stay.append(example)
        plan[name] = stay
        ahead |= {classes[e.id] for e in stay}
    if gone:
        lines = sorted(e.line for e in gone)
        report.dropped.append(Dropped(table.name, "nearly the same as a row of another group in another split", lines))
    return {e.id for e in gone}


class _Pool:
    """Clusters not yet taken by a split. What is left always has a row of every label."""

    def __init__(self, clusters: list[list[Example]], classify: bool) -> None:
        self._clusters = clusters
        self._classify = classify
        self._left = Counter(self._label(e) for cluster in clusters for e in cluster)

    @property
    def rows(self) -> int:
        return self._left.total()

    def take(self, want: int, split: str) -> list[Example]:
        """About `want` rows: a cluster is taken if that brings their number closer, the smallest if none does."""
        ordered = sorted(self._clusters, key=lambda cluster: _order(cluster, split))
        taken: list[Example] = []
        rest = []
        for cluster in ordered:
            if len(cluster) < 2 * (want - len(taken)) and self._spares(cluster):
                taken += self._remove(cluster)
            else:
                rest.append(cluster)
        if not taken and (small := min(filter(self._spares, rest), key=len, default=None)):
            rest.remove(small)
            taken = self._remove(small)
        self._clusters = rest
        return taken

    def rest(self) -> list[Example]:
        return [e for cluster in self._clusters for e in cluster]

    def _label(self, example: Example) -> str:
        return str(example.output) if self._classify else ""

    def _spares(self, cluster: list[Example]) -> bool:
        return all(self._left[label] > n for label, n in Counter(map(self._label, cluster)).items())

    def _remove(self, cluster: list[Example]) -> list[Example]:
        self._left.subtract(map(self._label, cluster))
        return cluster


def _order(cluster: list[Example], split: str) -> bytes:
    return hashlib.sha256(f"{split} {min(e.id for e in cluster)}".encode()).digest()


def _share(rows: int) -> int:
    return min(max(rows // _SHARE, _LEAST), _MOST, rows // _TINY)


def _kept(plan: dict[str, list[str]], path: Path) -> dict[str, list[str]]:
    """The plan that `path` holds, which is this one unless an older Pando made it."""
    try:
        stored = json.loads(path.read_text())
        check_format(str(path), stored["format_version"], FORMAT_VERSION)
        kept: dict[str, list[str]] = {name: stored[name] for name in _PLAN}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; remove it, or start anew with another --out") from None
    if sorted(chain(*kept.values())) != sorted(chain(*plan.values())):
        raise DataError(f"the rows have changed since {path} was made; start anew with another --out")
    return kept


def _labels(made: dict[str, list[Example]], tested: list[Example], report: RowReport, task: Task) -> tuple[str, ...]:
    """The labels, sorted; they are those of the train split, which has them all."""
    counts = Counter(str(e.output) for examples in made.values() for e in examples)
    labels = tuple(sorted(counts))
    report.labels = {label: counts[label] for label in labels}
    if len(labels) == 1:
        raise DataError(
            f"{task.data.train or task.data.file}: every row has the label {labels[0]!r}; classifying needs two or more"
        )
    unseen: dict[str, list[int]] = defaultdict(list)
    for example in tested:
        if example.output not in counts:
            unseen[str(example.output)].append(example.line)
    report.unseen_labels = dict(sorted(unseen.items()))
    total = sum(map(len, unseen.values()))
    if total:
        named = ", ".join(f"{label!r} ({some(lines)})" for label, lines in list(report.unseen_labels.items())[:SHOWN])
        what = f"{task.data.test}: {total:,} of {len(tested):,} rows have labels that no training row has: {named}"
        if total > _UNSEEN * len(tested):
            raise DataError(f"{what}. Mend the labels, or add training rows that have them")
        report.notes.append(f"{what}; they count as wrong for every rung")
    alike = Counter(label.casefold() for label in labels)
    if twins := [label for label in labels if alike[label.casefold()] > 1]:
        report.notes.append(f"labels that differ in case only: {', '.join(map(repr, twins[:SHOWN]))}")
    return labels


def _note_text(
    made: dict[str, list[Example]], tested: list[Example], clusters: list[list[Example]], report: RowReport, task: Task
) -> None:
    """Notes on what makes the numbers to come weaker than they look."""
    largest = max(map(len, clusters))
    rows = sum(map(len, made.values()))
    if largest > max(10, rows // 4):
        report.notes.append(f"{largest:,} rows are alike or of one group and so in one split")
    if task.metric == "rouge_l":
        sample = [str(e.output) for e in made["train"][:200]]
        if sum(any(c.isascii() and c.isalnum() for c in text) for text in sample) < len(sample) / 2:
            report.notes.append("rouge_l sees only the letters a-z and digits, which most outputs lack: use chrf")
    if len(tested) < _LEAST:
        wide = 98 / len(tested) ** 0.5
        report.notes.append(f"{len(tested)} test rows: a share's 95 % interval is up to ±{min(wide, 50):.0f} points")
