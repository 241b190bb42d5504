"""The ladder from a task to a report, on rungs that are instant and a model without weights."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pando
from pando.adapt import ladder
from pando.adapt.ladder import Report, adapt
from pando.errors import DataError, PandoError
from pando.ledger import open_ledger
from pando.skin import Skin, load_skin
from pando.skin.parts import Prompt
from tests.adapt.tasks import HINTS, make_task, write_rows
from tests.fakes import FakeModel

DEAF = {"good": ["great"], "bad": ["awful"]}  # knows a third of the words


class Words:
    """A rung whose skin scores labels; `instruction` makes its version, `hook` runs while it builds."""

    def __init__(self, name: str, cost: float = 1.0, hook: Callable[[Any], None] | None = None) -> None:
        self.name, self._cost, self._hook = name, cost, hook
        self.built = 0

    def fits(self, task: Any, capabilities: Any) -> str | None:
        return None

    def cost(self, task: Any, lab: Any) -> float:
        return self._cost

    def propose(self, task: Any, lab: Any) -> list[Skin]:
        self.built += 1
        skin = self._skin(task, lab)
        lab.evaluate(skin)
        if self._hook:
            self._hook(lab)
        return [skin, skin]

    def _skin(self, task: Any, lab: Any) -> Skin:
        return Skin(
            name=task.name,
            kind="classify",
            rung=self.name,
            method="score",
            prompt=Prompt(f"{self.name}: {task.instruction}", tuple(task.fields.input)),
            base=lab.model.identity,
            labels=lab.labels,
        )


class Majority(Words):
    def _skin(self, task: Any, lab: Any) -> Skin:
        return Skin(
            name=task.name,
            kind="classify",
            rung=self.name,
            method="floor",
            prompt=Prompt(task.instruction, tuple(task.fields.input)),
            labels=lab.labels,
            baseline="lead",
        )


class Absent(Words):
    def fits(self, task: Any, capabilities: Any) -> str | None:
        return "not for this model"


class Broken(Words):
    def propose(self, task: Any, lab: Any) -> list[Skin]:
        raise DataError("too few rows")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PANDO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Words]]:
    def use(*rungs: Words) -> dict[str, Words]:
        registry = {rung.name: rung for rung in rungs}
        monkeypatch.setattr(ladder, "RUNGS", registry)
        return registry

    return use


def lines(report: Report) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (report.folder / "items.jsonl").read_text().splitlines()]


def scored(report: Report) -> Counter[tuple[str, str]]:
    return Counter((line["skin"], record["id"]) for line in lines(report) for record in line["items"])


def openings() -> int:
    with open_ledger() as ledger:
        return sum(line["kind"] == "test_opening" for line in ledger.lines())


def test_a_sweep_measures_all_and_reports_as_promised(tmp_path, use):
    use(Majority("floor", 0.1), Words("zero"), Words("probe"))
    task = make_task(tmp_path, train=600, target={"quality": 0.8})
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data == report.data
    assert set(data) >= {"task", "base", "mode", "rungs", "chosen", "why", "test", "comparisons", "rows", "seconds"}
    assert data["base"] == {"name": "fake", "hash": FakeModel().identity.hash, "source": "fake:fake"} | {
        "revision": None,
        "licence": None,
    }
    assert report.chosen in ("zero", "probe")
    for rung in data["rungs"]:
        assert rung["status"] == "ok"
        assert set(rung) >= {"name", "skin", "dev", "p50_ms", "p95_ms", "cost_per_1k", "build_seconds", "status"}
        assert rung["dev"]["low"] <= rung["dev"]["quality"] <= rung["dev"]["high"]
    assert len(data["comparisons"]) == 3
    assert report.test["openings"] == 1
    assert report.test["target"] == "met"
    assert report.test["vs_floor"]["low"] > 0
    assert report.test["n"] == 120
    assert data["confusion"]["labels"] == ["bad", "good"]
    assert data["details_of"] == {"rung": report.chosen, "split": "test"}
    assert data["disagreements"]
    assert data["rows"]["used"]["test"] == 120
    assert set(scored(report).values()) == {1}


def test_the_chosen_skin_is_what_was_measured(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    model = FakeModel(HINTS)
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
    skin = report.skin(model)
    assert skin.version == report.rungs["zero"]["skin"]
    assert load_skin(tmp_path / "out" / "skins" / "zero").version == skin.version
    assert skin.card["split"] == "test"
    assert skin.card["quality"] == report.test["quality"]
    assert skin.card["dtype"] == "float32"
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    found = skin.predict([row["text"] for row in rows])
    assert sum(p.value == row["label"] for p, row in zip(found, rows, strict=True)) / 120 == report.test["quality"]


def test_a_climb_goes_by_cost_and_stops_at_the_first_that_passes(tmp_path, use):
    rungs = use(Majority("floor", 0.0), Words("zero", 5.0), Words("probe", 2.0))
    task = make_task(tmp_path, train=600, target={"quality": 0.7})
    report = adapt(task, out=tmp_path / "out", model=FakeModel(HINTS))
    assert [rung["name"] for rung in report.data["rungs"]] == ["floor", "probe", "zero"]
    assert report.chosen == "probe"
    assert report.rungs["zero"]["status"] == "skipped: probe passed before it"
    assert report.rungs["zero"]["dev"] is None
    assert rungs["zero"].built == 0


def test_a_climb_without_a_target_measures_all(tmp_path, use):
    use(Majority("floor", 0.0), Words("zero", 5.0), Words("probe", 2.0))
    report = adapt(make_task(tmp_path), out=tmp_path / "out", model=FakeModel(HINTS))
    assert {rung["status"] for rung in report.data["rungs"]} == {"ok"}


def test_rungs_that_do_not_fit_or_fail_do_not_stop_the_others(tmp_path, use):
    use(Broken("floor"), Absent("zero"), Words("probe"))
    report = adapt(make_task(tmp_path), out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    assert report.rungs["floor"]["status"] == "failed: too few rows"
    assert report.rungs["zero"]["status"] == "skipped: not for this model"
    assert report.chosen == "probe"
    assert report.test["vs_floor"] is None


def test_nothing_chosen_leaves_the_test_split_closed(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, target={"quality": 0.99}, rungs=["floor", "zero"])
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(DEAF))
    assert report.chosen is None
    assert report.test is None
    assert report.data["best"] == "zero"
    assert report.data["missing"]
    assert openings() == 0
    assert report.data["details_of"] == {"rung": "zero", "split": "confirm"}
    assert not (tmp_path / "out" / "skin").exists()
    with pytest.raises(PandoError, match="chose no skin"):
        report.skin()


def test_all_rungs_failing_is_still_a_report(tmp_path, use):
    use(Broken("floor"))
    report = adapt(make_task(tmp_path, rungs=["floor"]), out=tmp_path / "out", model=FakeModel())
    assert report.chosen is None
    assert report.why == "no rung could be measured"


def test_the_same_folder_again_does_nothing_twice(tmp_path, use):
    rungs = use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    model = FakeModel(HINTS)
    first = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
    asked, stored = len(model.asked), (tmp_path / "out" / "items.jsonl").read_bytes()
    again = adapt(task, out=tmp_path / "out", mode="sweep", model=model)
    assert len(model.asked) == asked
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == stored
    assert rungs["zero"].built == 1
    changed = {key for key in first.data if first.data[key] != again.data[key]}
    assert changed <= {"seconds"}
    assert openings() == 1


class Stop(BaseException):
    """A kill, as far as a test can make one."""


@pytest.mark.parametrize("after", [1, 3, 40, 100, 140])
def test_a_ladder_killed_at_any_batch_goes_on_to_the_same_report(tmp_path, use, monkeypatch, after):
    from pando.adapt import scorer

    ticks = itertools.count()
    monkeypatch.setattr(scorer.time, "perf_counter", lambda: float(next(ticks)))  # all calls cost the same
    use(Majority("floor"), Words("zero"), Words("probe"))
    task = make_task(tmp_path)
    whole = adapt(task, out=tmp_path / "whole", mode="sweep", model=FakeModel(HINTS))
    total = len(lines(whole))
    left = after

    real = scorer.append_line

    def append(path: Path, text: str) -> None:
        nonlocal left
        if left == 0:
            path.open("a").write(text[: len(text) // 2])  # torn
            raise Stop
        left -= 1
        real(path, text)

    monkeypatch.setattr(scorer, "append_line", append)
    if after < total:
        with pytest.raises(Stop):
            adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
        left = -1
    again = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    assert (again.chosen, again.why) == (whole.chosen, whole.why)
    for name, rung in whole.rungs.items():
        assert again.rungs[name]["dev"] == rung["dev"]
        assert again.rungs[name]["skin"] == rung["skin"]
    assert again.test["quality"] == whole.test["quality"]
    assert scored(again) == scored(whole)
    assert set(scored(again).values()) == {1}


def test_killed_between_the_opening_and_its_scores_opens_once(tmp_path, use, monkeypatch):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    real = ladder.Ladder._ship

    def ship(*_: Any) -> None:
        raise Stop

    monkeypatch.setattr(ladder.Ladder, "_ship", ship)
    with pytest.raises(Stop):
        adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    monkeypatch.setattr(ladder.Ladder, "_ship", real)
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    assert report.test["openings"] == openings() == 1


def test_another_run_on_the_same_test_rows_is_counted(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    for count in (1, 2, 3):
        report = adapt(task, out=tmp_path / f"out{count}", mode="sweep", model=FakeModel(HINTS))
        assert report.test["openings"] == count


def test_seconds_of_an_interrupted_build_count(tmp_path, use):
    interrupted: list[int] = []

    def hook(lab: Any) -> None:
        if not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt

    use(Majority("floor"), Words("zero", hook=hook))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    with pytest.raises(KeyboardInterrupt):
        adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    before = json.loads((tmp_path / "out" / "rungs" / "zero" / "state.json").read_text())["seconds"]
    assert before > 0
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    assert report.rungs["zero"]["build_seconds"] > before


def test_another_task_base_or_dtype_in_the_same_folder_is_refused(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, rungs=["floor", "zero"])
    adapt(task, out=tmp_path / "out", model=FakeModel(HINTS))
    for model, what in ((FakeModel(HINTS, name="other"), "base"), (FakeModel(HINTS, dtype="bfloat16"), "dtype")):
        with pytest.raises(PandoError, match=f"another {what}"):
            adapt(task, out=tmp_path / "out", model=model)
    with pytest.raises(PandoError, match="another mode"):
        adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(HINTS))
    changed = make_task(tmp_path, rungs=["floor", "zero"], instruction="Other?")
    with pytest.raises(PandoError, match="another task"):
        adapt(changed, out=tmp_path / "out", model=FakeModel(HINTS))
    write_rows(tmp_path / "train.jsonl", 300, 9)
    with pytest.raises(PandoError, match="rows have changed"):
        adapt(task, out=tmp_path / "out", model=FakeModel(HINTS))
    assert adapt(changed, out=tmp_path / "out", model=FakeModel(HINTS), fresh=True).chosen


def test_a_spent_budget_skips_the_rest(tmp_path, use, monkeypatch):
    def hook(lab: Any) -> None:
        monkeypatch.setattr("pando.adapt.folder.Folder.seconds", 61.0)

    use(Majority("floor", 0.0), Words("zero", 1.0, hook), Words("probe", 2.0))
    report = adapt(make_task(tmp_path, budget={"minutes": 1}), out=tmp_path / "out", model=FakeModel(HINTS))
    assert report.rungs["zero"]["status"] == "ok"
    assert report.rungs["probe"]["status"] == "skipped: the budget of 1 minutes is spent"
    assert report.chosen
    again = adapt(make_task(tmp_path, budget={"minutes": 1}), out=tmp_path / "out", model=FakeModel(HINTS))
    assert again.chosen == report.chosen and (tmp_path / "out" / "skin").is_dir()
    assert {n: r["status"] for n, r in again.rungs.items()} == {n: r["status"] for n, r in report.rungs.items()}


def test_a_run_that_could_not_begin_can_be_mended(tmp_path, use):
    use(Majority("floor"))
    task = make_task(tmp_path, rungs=["floor"])
    with pytest.raises(PandoError):
        adapt(task, base=tmp_path / "nowhere", out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    mended = make_task(tmp_path, rungs=["floor"], instruction="Another one.")
    assert adapt(mended, out=tmp_path / "out", model=FakeModel(HINTS)).chosen


def test_the_ledger_adds_up(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    report = adapt(make_task(tmp_path, rungs=["floor", "zero"]), out=tmp_path / "out", model=FakeModel(HINTS))
    with open_ledger() as ledger:
        found = ledger.lines()
    evaluated = sum(line["compute_seconds"] for line in found if line["kind"] == "eval")
    assert evaluated == pytest.approx(sum(line["seconds"] for line in lines(report)))
    builds = [line for line in found if line["kind"] == "build"]
    assert [line["detail"]["rung"] for line in builds] == ["floor", "zero"]
    spent = sum(line["compute_seconds"] for line in found)
    assert spent <= report.data["seconds"]
    assert spent >= sum(rung["build_seconds"] for rung in report.data["rungs"]) * 0.9


def test_abstaining_is_chosen_on_confirmation_rows_and_shown_on_test(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    task = make_task(tmp_path, train=1800, rungs=["floor", "zero"], abstain={"precision": 0.9})
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(DEAF))
    found = report.data["abstain"]
    assert 0 < found["below"] < 1
    assert found["test"]["quality"] > report.test["quality"]
    skin = report.skin(FakeModel(DEAF))
    assert skin.abstain == found["below"]
    assert skin.predict(["a dull line with nothing else"])[0].abstained


def test_rows_of_a_group_count_as_one_cluster(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    fields = {"input": "text", "output": "label", "group": "who"}
    task = make_task(tmp_path, train=600, rungs=["floor", "zero"], fields=fields)
    report = adapt(task, out=tmp_path / "out", mode="sweep", model=FakeModel(DEAF))
    assert report.test["method"].endswith("by group")
    assert report.rungs["zero"]["dev"]["method"].endswith("by group")


def test_a_mode_that_is_none_is_refused(tmp_path):
    with pytest.raises(PandoError, match="use climb or sweep"):
        adapt(make_task(tmp_path), out=tmp_path / "out", mode="race", model=FakeModel())  # type: ignore[arg-type]


def test_the_package_is_callable_and_takes_a_path(tmp_path, use):
    use(Majority("floor"), Words("zero"))
    make_task(tmp_path, rungs=["floor", "zero"])
    assert pando.adapt(tmp_path / "task.yaml", out=tmp_path / "out", model=FakeModel(HINTS)).chosen
