"""From what was measured to `report.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pando.adapt import findings
from pando.adapt.decide import Candidate, Decision, Mode
from pando.adapt.scorer import Evaluation, Speed
from pando.evaluate.paired import Difference
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import interval, lower_bound, upper_bound
from pando.interface import Identity
from pando.skin import Skin
from pando.task import Example, Task
from pando.task.splits import Splits, groups_of

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Climbed:
    """A rung of a ladder. `status` is "ok", "skipped: why" or "failed: why"; all else is there when it is "ok".
    `too_long` has the training rows that it could not read."""

    name: str
    status: str
    build_seconds: float | None = None
    skin: Skin | None = None
    select: Evaluation | None = None
    confirm: Evaluation | None = None
    speed: Speed | None = None
    candidate: Candidate | None = None
    too_long: Sequence[str] = ()


@dataclass(frozen=True)
class Tested:
    """The chosen rung on the test rows. `gap` is its lead over the floor on the same rows, None if it is the floor."""

    rung: str
    rows: Sequence[Example]
    found: Evaluation
    sample: Sample
    gap: Difference | None
    openings: int


def summarise(
    task: Task,
    base: Identity,
    mode: Mode,
    splits: Splits,
    climbed: Sequence[Climbed],
    decision: Decision,
    comparisons: list[dict[str, Any]],
    tested: Tested | None,
) -> dict[str, Any]:
    """The report as JSON, without its seconds."""
    splits.report.too_long = len(_too_long(climbed, tested))
    why = decision.why
    if tested and task.target.quality is not None and upper_bound(tested.sample) < task.target.quality:
        why += f". The test rows contradict it: {tested.sample.value:.3f} on {tested.sample.n} rows"
    return {
        "format_version": FORMAT_VERSION,
        "task": task.name,
        "kind": task.kind,
        "base": asdict(base),
        "mode": mode,
        "metric": task.metric,
        "target": task.target.model_dump(),
        "rungs": [_rung(one) for one in climbed],
        "chosen": decision.chosen,
        "best": decision.best,
        "why": why,
        "missing": decision.missing,
        "undecided": decision.undecided,
        "test": _test(tested, task.target.quality) if tested else None,
        "comparisons": comparisons,
        "power": _power(task, splits, comparisons, tested),
        "rows": splits.report.as_dict(),
        **_details(task, splits, climbed, decision, tested),
    }


def _power(task: Task, splits: Splits, comparisons: list[dict[str, Any]], tested: Tested | None) -> str:
    rows = [splits.confirm, *([tested.rows] if tested else [])]
    warnings = (findings.rare_labels(task.metric, each, groups_of(each)) for each in rows)
    return " ".join(filter(None, [findings.power(comparisons), *warnings]))


def _rung(one: Climbed) -> dict[str, Any]:
    record: dict[str, Any] = dict.fromkeys(
        ("skin", "dev", "select", "p50_ms", "p95_ms", "cost_per_1k", "build_seconds")
    )
    if one.candidate and one.skin and one.speed:
        record |= {
            "skin": one.skin.version,
            "dev": interval(one.candidate.confirm).as_dict(),
            "select": one.candidate.select,
            "p50_ms": one.speed.p50_ms,
            "p95_ms": one.speed.p95_ms,
            "cost_per_1k": one.candidate.cost_per_1k,
            "build_seconds": one.build_seconds,
        }
    return {"name": one.name, **record, "status": one.status}


def _test(tested: Tested, quality: float | None) -> dict[str, Any]:
    record = {
        **interval(tested.sample).as_dict(),
        "rung": tested.rung,
        "openings": tested.openings,
        "vs_floor": tested.gap.as_dict() if tested.gap else None,
    }
    if quality is not None:
        met, missed = lower_bound(tested.sample) >= quality, upper_bound(tested.sample) < quality
        record["target"] = "met" if met else "missed" if missed else "open"
    return record


def _details(
    task: Task, splits: Splits, climbed: Sequence[Climbed], decision: Decision, tested: Tested | None
) -> dict[str, Any]:
    """Plots and examples: of the chosen rung on test rows, else of the best on confirmation rows."""
    confirmed = {one.name: one.confirm for one in climbed if one.confirm}
    found = tested.found if tested else confirmed.get(decision.best or "")
    if found is None:
        return {}
    rows = tested.rows if tested else splits.confirm
    details: dict[str, Any] = {
        "details_of": {"rung": decision.chosen or decision.best, "split": "test" if tested else "confirm"},
        "coverage": findings.coverage(found),
        "calibration": findings.calibration(found),
        "disagreements": findings.disagreements(confirmed, splits.confirm, decision.chosen or decision.best),
    }
    if task.kind == "classify":
        details["confusion"] = findings.confusion(found, rows)
    elif task.kind == "extract":
        details["field_errors"] = findings.field_errors(found, rows)
    elif task.kind == "retrieve":
        details["also"] = findings.other_metrics(task, found, rows)
    return details


def _too_long(climbed: Sequence[Climbed], tested: Tested | None) -> set[str]:
    """Ids of rows that did not fit the base's context for some rung."""
    found: list[Evaluation | Climbed] = [*climbed]
    found += [e for one in climbed for e in (one.select, one.confirm) if e] + ([tested.found] if tested else [])
    return {name for one in found for name in one.too_long}
