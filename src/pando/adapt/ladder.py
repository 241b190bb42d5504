"""The ladder: every rung built and measured, one chosen, the test split opened for it once.

All that is finished is kept in the working folder, so a run that was interrupted goes on where it was and comes to the
same decision: built skins are loaded, scored items are not scored again, timings are those first measured.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pando
from pando.adapt.abstain import Answers, above_threshold, choose_threshold
from pando.adapt.decide import Candidate, Mode, climb_passes, compare, decide
from pando.adapt.folder import Folder
from pando.adapt.lab import Lab
from pando.adapt.rungs import RUNGS, Rung
from pando.adapt.scorer import Evaluation, Scorer
from pando.adapt.summary import Climbed, Tested, summarise
from pando.errors import BaseModelError, PandoError
from pando.evaluate.paired import difference
from pando.evaluate.sample import Sample
from pando.evaluate.statistics import interval
from pando.files import atomic_write, progress
from pando.interface import LanguageModel
from pando.ledger import Ledger, open_ledger
from pando.settings import load_settings
from pando.skin import Skin, load_skin
from pando.task import Example, Task
from pando.task.metrics import load_metric
from pando.task.splits import Splits, groups_of, make_splits

DEFAULT_BASE = "smollm2-135m"


@dataclass(frozen=True)
class Report:
    """What a ladder found. `data` is `report.json`; `folder` is where it and the skins are."""

    data: dict[str, Any]
    folder: Path

    @property
    def chosen(self) -> str | None:
        """The rung that ships, or None."""
        return cast("str | None", self.data["chosen"])

    @property
    def why(self) -> str:
        """The decision in words."""
        return str(self.data["why"])

    @property
    def rungs(self) -> dict[str, dict[str, Any]]:
        """What was measured of each rung, by name."""
        return {rung["name"]: rung for rung in self.data["rungs"]}

    @property
    def test(self) -> dict[str, Any] | None:
        """The chosen skin on the test split; None where nothing was chosen."""
        return cast("dict[str, Any] | None", self.data["test"])

    def skin(self, model: LanguageModel | None = None) -> Skin:
        """The chosen skin.

        Raises:
            SkinError: nothing was chosen.
        """
        return load_skin(self.folder, model)


def adapt(
    task: Task | str | Path,
    base: str | Path = DEFAULT_BASE,
    out: str | Path | None = None,
    *,
    mode: Mode = "climb",
    model: LanguageModel | None = None,
    device: str = "auto",
    dtype: str = "auto",
    fresh: bool = False,
) -> Report:
    """Adapts a base model to a task: measures the rungs, decides, and keeps the chosen skin.

    Args:
        task: a task or the path of a task file.
        base: name of a pulled base, Hugging Face folder or `.gguf` file.
        out: the working folder; by default `ladders/<task name>`. The same folder again goes on where it was.
        mode: "climb" stops at the first rung that meets the quality target (without one there is nothing to stop at),
            "sweep" measures all rungs.
        model: a base that is already loaded; then `base`, `device` and `dtype` are not used.
        device, dtype: as for `pando.load`.
        fresh: throw away what an earlier run left in `out`.

    Raises:
        PandoError: the task, its rows, the base or the folder cannot be used.
    """
    if mode not in ("climb", "sweep"):
        raise PandoError(f"mode {mode!r} is unknown; use climb or sweep")
    task = task if isinstance(task, Task) else Task.load(task)
    with ExitStack() as stack:
        folder = Folder(out or Path("ladders") / task.name, fresh=fresh)
        stack.callback(folder.close)
        folder.claim(task=task.hash, mode=mode, version=pando.__version__)
        splits = make_splits(task, folder.splits)
        folder.claim(rows=splits.hash)
        _say(
            f"{task.name}: " + ", ".join(f"{count:,} {split}" for split, count in splits.report.used.items()) + " rows"
        )
        for note in splits.report.notes:
            _say(f"note: {note}")
        if model is None:
            from pando.engine import load

            model = load(base, device=device, dtype=dtype)
            stack.callback(model.close)
        folder.claim(base=model.identity.hash, dtype=model.dtype)
        folder.beat()  # nothing is kept of a run that could not begin
        splits.keep(folder.splits)
        ledger = stack.enter_context(open_ledger())
        return Ladder(task, splits, model, folder, ledger, mode).run()


class Ladder:
    """One run over the rungs of a task."""

    def __init__(
        self, task: Task, splits: Splits, model: LanguageModel, folder: Folder, ledger: Ledger, mode: Mode
    ) -> None:
        self.task, self.splits, self.model = task, splits, model
        self.folder, self.ledger, self.mode = folder, ledger, mode
        self.scorer = Scorer(model, load_metric(task), folder.items, ledger, task.seed)
        self.lab = Lab(task, splits, model, self.scorer, folder, ledger)

    def run(self) -> Report:
        climbed = self._climb()
        done = [one.candidate for one in climbed if one.candidate]
        decision = decide(self.mode, done, self.task.target, len(self.task.rungs))
        chosen = next((one for one in climbed if one.name == decision.chosen), None)
        tested = self._test(chosen, climbed) if chosen else None
        data = summarise(
            self.task, self.model.identity, self.mode, self.splits, climbed, decision, compare(done), tested
        )
        self._ship(chosen, tested, data)
        data["seconds"] = self.folder.seconds
        atomic_write(self.folder.path / "report.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        self.folder.beat()
        return Report(data, self.folder.path)

    def _climb(self) -> list[Climbed]:
        """Builds and measures the rungs, in the task's order for a sweep, by predicted cost for a climb."""
        climbed: list[Climbed] = []
        passed: str | None = None
        for rung, reason in self._ordered():
            reason = reason or (f"{passed} passed before it" if passed else None) or self._over_budget(rung)
            if reason:
                climbed.append(Climbed(rung.name, f"skipped: {reason}"))
                continue
            _say(f"{rung.name}: building")
            try:
                one = self._measure(rung)
            except BaseModelError:
                raise  # no rung can do with a broken base
            except PandoError as error:
                climbed.append(Climbed(rung.name, f"failed: {error}"))
                _say(f"{rung.name}: failed: {error}")
                continue
            climbed.append(one)
            assert one.candidate
            found = interval(one.candidate.confirm)
            _say(f"{rung.name}: {found.value:.3f} [{found.low:.2f}, {found.high:.2f}] on {found.n} confirmation rows")
            if self.mode == "climb" and climb_passes(one.candidate, self.task.target, len(self.task.rungs)):
                passed = rung.name
        return climbed

    def _ordered(self) -> list[tuple[Rung, str | None]]:
        """The task's rungs with why each cannot be tried, if so; those that cannot come last."""
        rungs = [RUNGS[name] for name in self.task.rungs]
        reasons = {rung.name: rung.fits(self.task, self.model.capabilities) for rung in rungs}
        fit = [rung for rung in rungs if reasons[rung.name] is None]
        if self.mode == "climb":
            fit.sort(key=lambda rung: rung.cost(self.task, self.lab))
        return [(rung, None) for rung in fit] + [(r, reasons[r.name]) for r in rungs if reasons[r.name] is not None]

    def _over_budget(self, rung: Rung) -> str | None:
        """Why there is no time for a rung; one that was begun in time is finished, in a run that goes on too."""
        minutes = self.task.budget.minutes
        if minutes is None or self.folder.seconds < 60 * minutes or self.folder.state(rung.name):
            return None
        return f"the budget of {minutes:g} minutes is spent"

    def _measure(self, rung: Rung) -> Climbed:
        """Builds a rung (or loads what was built) and measures its skin on select and confirmation rows."""
        skin, seconds = self._built(rung)
        select, rows = self.lab.evaluate(skin), self.splits.confirm
        speed = self.scorer.measure(skin, rows, self.splits.select, progress)
        confirm = self.scorer.evaluate(skin, rows)
        sample = self._sample(confirm, groups_of(rows))
        cost = 1000 * load_settings().usd(speed.seconds)
        candidate = Candidate(rung.name, select.quality, sample, speed.p95_ms, cost)
        if not skin.card:
            skin = replace(skin, card=self._card(skin, sample, "confirm")).save(self.folder.skin(rung.name))
        too_long = self.folder.state(rung.name).get("too_long", [])
        return Climbed(rung.name, "ok", seconds, skin, select, confirm, speed, candidate, too_long)

    def _built(self, rung: Rung) -> tuple[Skin, float]:
        """The rung's best skin and the seconds that building it took, over all interruptions."""
        state = self.folder.state(rung.name)
        seconds = float(state.get("seconds", 0.0))
        if "skin" not in state:
            start, billed = time.perf_counter(), self.lab.billed
            self.lab.too_long.clear()
            with self._timed(rung.name, seconds):
                skin = rung.propose(self.task, self.lab)[0].save(self.folder.skin(rung.name))
            spent = time.perf_counter() - start
            seconds += spent
            self.lab.bill_build(rung.name, max(0.0, spent - (self.lab.billed - billed)), skin)
            built = {"seconds": seconds, "skin": skin.version, "too_long": sorted(self.lab.too_long)}
            self.folder.keep(rung.name, built)
        return load_skin(self.folder.skin(rung.name), self.model), seconds

    @contextmanager
    def _timed(self, rung: str, before: float) -> Iterator[None]:
        """Keeps the seconds of a build that is cut short."""
        start = time.perf_counter()
        self.folder.keep(rung, {"seconds": before})
        try:
            yield
        except BaseException:
            self.folder.keep(rung, {"seconds": before + time.perf_counter() - start})
            raise

    def _sample(self, found: Evaluation, groups: Sequence[str] | None) -> Sample:
        return Sample(found.items, self.scorer.metric, groups, self.task.seed)

    def _card(self, skin: Skin, sample: Sample, split: str) -> dict[str, Any]:
        return {
            "metric": self.task.metric,
            **interval(sample).as_dict(),
            "split": split,
            "dtype": self.model.dtype if skin.base else None,
            "engine": f"pando {pando.__version__}",
        }

    def _test(self, chosen: Climbed, climbed: Sequence[Climbed]) -> Tested:
        """Opens the test split for the chosen skin and the floor; an opening is recorded once, before it is read."""
        assert chosen.skin
        openings = self.ledger.openings(self.splits.test_hash)
        mine = (self.folder.id, chosen.skin.version)
        if mine not in [(line["detail"]["run"], line["skin_version"]) for line in openings]:
            self.ledger.record(
                "test_opening",
                skin=self.task.name,
                skin_version=chosen.skin.version,
                base=self.model.identity,
                detail={"test_hash": self.splits.test_hash, "run": self.folder.id, "rung": chosen.name},
            )
            openings = self.ledger.openings(self.splits.test_hash)
        rows = self.splits.open_test()
        groups = groups_of(rows)
        found = self.scorer.evaluate(chosen.skin, rows)
        sample, gap = self._sample(found, groups), None
        floor = next((one.skin for one in climbed if one.name == "floor"), None)
        if floor and chosen.name != "floor":
            gap = difference(sample, self._sample(self.scorer.evaluate(floor, rows), groups))
        return Tested(chosen.name, rows, found, sample, gap, len(openings))

    def _ship(self, chosen: Climbed | None, tested: Tested | None, data: dict[str, Any]) -> None:
        """Puts the chosen skin, with its threshold and test card, where `load_skin(out)` finds it."""
        if chosen is None or tested is None:
            shutil.rmtree(self.folder.chosen, ignore_errors=True)  # left by an earlier decision
            return
        assert chosen.skin and chosen.confirm
        skin = replace(chosen.skin, card=self._card(chosen.skin, tested.sample, "test"))
        if self.task.abstain:
            # not on select rows, which the skin's own parts were chosen by
            below, why = choose_threshold(self.task.abstain, _answers(self.splits.confirm, chosen.confirm))
            test = above_threshold(_answers(tested.rows, tested.found), below)
            data["abstain"] = {"below": below, "why": why, "test": test}
            skin = replace(skin, abstain=below)
        skin.save(self.folder.chosen)


def _answers(rows: Sequence[Example], found: Evaluation) -> Answers:
    return Answers(found.predictions, found.items, groups_of(rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
