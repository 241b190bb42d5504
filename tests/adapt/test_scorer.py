from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pando.adapt.scorer import BATCH, TIMED, Scorer
from pando.errors import FormatVersionError, PandoError, RequestError
from pando.files import progress
from pando.ledger import Ledger
from pando.skin import Skin
from pando.skin.parts import Prompt
from pando.task.metrics import load_metric
from pando.task.splits import Splits, make_splits
from tests.adapt.tasks import HINTS, make_task
from tests.fakes import FakeModel


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return make_splits(make_task(tmp_path, train=1000))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


class Bench:
    """A scorer on a store that outlives it."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.task, self.folder, self.ledger = make_task(folder), folder, ledger
        self.store = folder / "items.jsonl"
        self.model = FakeModel(HINTS)

    def scorer(self, **keys: Any) -> Scorer:
        return Scorer(self.model, load_metric(self.task), self.store, self.ledger, **keys)

    def skin(self, instruction: str = "Good or bad?", base: bool = True) -> Skin:
        return Skin(
            name="moods",
            kind="classify",
            rung="zero",
            method="score",
            prompt=Prompt(instruction, ("text",)),
            base=self.model.identity if base else None,
            labels=("bad", "good"),
        )

    def stored(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.store.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, ledger: Ledger) -> Bench:
    return Bench(tmp_path, ledger)


def test_scores_follow_the_order_asked_for(bench, splits):
    rows = splits.confirm[::-1]
    found = bench.scorer().evaluate(bench.skin(), rows)
    again = bench.skin().predict([e.text for e in rows], bench.model)
    assert [p.value for p in found.predictions] == [p.value for p in again]
    assert [item["value"] for item in found.items] == [
        float(p.value == e.output) for p, e in zip(again, rows, strict=True)
    ]
    assert found.quality == pytest.approx(sum(i["value"] for i in found.items) / len(rows))
    assert found.seconds > 0


def test_nothing_is_scored_twice(bench, splits):
    first = bench.scorer().evaluate(bench.skin(), splits.confirm)
    asked = len(bench.model.asked)
    again = bench.scorer().evaluate(bench.skin(), splits.confirm[::-1])
    assert len(bench.model.asked) == asked
    assert (again.quality, again.usage) == (first.quality, first.usage)
    assert again.seconds == pytest.approx(first.seconds)
    assert [p.scores for p in again.predictions] == [p.scores for p in first.predictions][::-1]
    bench.scorer().evaluate(bench.skin("Another?"), splits.confirm)
    bench.scorer(seed=1).evaluate(bench.skin(), splits.confirm)
    assert len(bench.model.asked) == 3 * asked


def test_a_part_is_not_scored_again_with_the_whole(bench, splits):
    scorer = bench.scorer()
    scorer.evaluate(bench.skin(), splits.confirm[:7])
    scorer.evaluate(bench.skin(), splits.confirm)
    counts = Counter(record["id"] for line in bench.stored() for record in line["items"])
    assert counts == Counter(e.id for e in splits.confirm)
    assert len(bench.model.asked) == len(splits.confirm)


def test_batches_are_the_same_in_any_order(bench, splits):
    bench.scorer().evaluate(bench.skin(), splits.confirm)
    bench.scorer().evaluate(bench.skin("Another?"), splits.confirm[::-1])
    lines = [[record["id"] for record in line["items"]] for line in bench.stored()]
    half = len(lines) // 2
    assert lines[:half] == lines[half:]
    assert all(len(line) <= BATCH for line in lines)
    assert half > 1


def test_a_torn_line_is_scored_again_and_nothing_else(bench, splits):
    whole = bench.scorer().evaluate(bench.skin(), splits.confirm)
    lines = bench.store.read_bytes().splitlines(keepends=True)
    bench.store.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    lost = len(json.loads(lines[-1])["items"])
    asked = len(bench.model.asked)
    assert bench.scorer().evaluate(bench.skin(), splits.confirm).quality == whole.quality
    assert len(bench.model.asked) == asked + lost
    counts = Counter(record["id"] for line in bench.stored() for record in line["items"])
    assert set(counts.values()) == {1}


def test_stores_that_cannot_be_read_are_named(bench):
    bench.store.write_text('{"format_version": 1, "items"\n')
    with pytest.raises(PandoError, match=r"items\.jsonl is damaged"):
        bench.scorer()
    bench.store.write_text('{"format_version": 99}\n')
    with pytest.raises(FormatVersionError, match="99"):
        bench.scorer()


def test_items_beyond_the_context_count_as_wrong(bench, splits):
    bench.model.context_length = 24
    rows = [*splits.confirm[:5], splits.select[0]]
    rows[-1].inputs["text"] = "great " * 50
    found = bench.scorer().evaluate(bench.skin(), rows)
    assert found.too_long == [rows[-1].id]
    assert found.predictions[-1].value is None
    assert found.items[-1]["value"] == 0
    assert bench.scorer().evaluate(bench.skin(), rows).too_long == found.too_long


def test_other_errors_end_the_evaluation_and_leave_no_line(bench, splits):
    bench.model = FakeModel(HINTS, fail=splits.confirm[3].text)
    with pytest.raises(RequestError, match="told to fail"):
        bench.scorer().evaluate(bench.skin(), splits.confirm[:10])
    assert not bench.store.exists()


def test_timing_asks_one_at_a_time_and_once(bench, splits):
    scorer = bench.scorer()
    speed = scorer.measure(bench.skin(), splits.confirm, splits.select, progress)
    assert 0 < speed.p50_ms <= speed.p95_ms
    lines = bench.stored()
    alone = [line for line in lines if line["alone"]]
    timed = min(TIMED, len(splits.confirm) // 2)
    assert [len(line["items"]) for line in alone] == [1] * timed
    batched = [line for line in lines if not line["alone"]]
    assert speed.seconds == pytest.approx(sum(b["seconds"] for b in batched) / (len(splits.confirm) - timed))
    asked = len(bench.model.asked)
    assert asked == len(splits.confirm) + 2  # and what warms up
    assert bench.scorer().measure(bench.skin(), splits.confirm, splits.select, progress) == speed
    scorer.evaluate(bench.skin(), splits.confirm)
    assert len(bench.model.asked) == asked


def test_timing_goes_on_where_it_was_killed(bench, splits):
    bench.scorer().measure(bench.skin(), splits.confirm, splits.select, progress)
    lines = bench.store.read_text().splitlines(keepends=True)
    bench.store.write_text("".join(lines[:5]))
    before = len(bench.model.asked)
    bench.scorer().measure(bench.skin(), splits.confirm, splits.select, progress)
    assert len(bench.model.asked) == before + len(splits.confirm) - 5 + 2
    assert bench.store.read_text().splitlines()[:5] == [line.rstrip() for line in lines[:5]]


def test_tiny_confirmation_splits_can_be_timed(bench, splits):
    for n in (1, 2, 3):
        speed = bench.scorer().measure(bench.skin(f"{n}?"), splits.confirm[:n], splits.select, progress)
        assert speed.p95_ms > 0
        assert speed.seconds > 0


def test_every_batch_is_billed(bench, splits, ledger):
    found = bench.scorer().evaluate(bench.skin(), splits.confirm)
    lines = ledger.lines()
    assert sum(line["prompt_tokens"] for line in lines) == found.usage.prompt_tokens > 0
    assert sum(line["compute_seconds"] for line in lines) == pytest.approx(found.seconds)
    assert {line["kind"] for line in lines} == {"eval"}
    assert {line["skin_version"] for line in lines} == {bench.skin().version}
    assert sum(line["detail"]["items"] for line in lines) == len(splits.confirm)
    bench.scorer().evaluate(bench.skin(), splits.confirm)
    assert len(ledger.lines()) == len(lines)
