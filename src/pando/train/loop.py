"""A whole run: resolve, train, look, keep, go on after whatever happened, and leave a base model behind.

DIR/config.yaml      every value, with where it comes from; a pretrain.yaml itself
DIR/run.json         what the run was made for, its forecast
DIR/billed.json      what of it the ledger has
DIR/log.jsonl        what happened (pando.train.log)
DIR/checkpoints/     where to go on (pando.train.checkpoint)
DIR/model/           the base model: a Hugging Face folder
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from pando.errors import PandoError
from pando.files import replaceable
from pando.model.config import ModelConfig
from pando.model.transformer import Transformer
from pando.train import checkpoint, plan
from pando.train.config import PretrainConfig, changes, flat
from pando.train.configfile import read_config, write_config
from pando.train.dial import model_config, train_flops
from pando.train.finish import leave_base
from pando.train.log import NAME, Log, Watcher, read_log
from pando.train.parallel import Place, gathered
from pando.train.prepare import Money, foresee, prepare
from pando.train.record import RUN, base_hash, billed, claim, read_run, same_run, was_kept, write_run
from pando.train.shards import Shards
from pando.train.trainer import Step, Trainer


class Hooks(Protocol):
    """What the floors above lend to a run. All are called on the first rank only, with whole weights on the CPU."""

    def samples(self, model: Transformer, config: PretrainConfig) -> list[str]:
        """Continuations of the config's prompts."""
        ...

    def evaluate(self, model: Transformer, config: PretrainConfig) -> Mapping[str, float]:
        """Small evaluations by name; none is fine."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a session of a run ended.

    Attributes:
        finished: every step was made and the base model is in `folder / "model"`.
        steps, tokens: made in all; `session_tokens` of them in this session, and `unbilled_tokens` that no ledger line
            has yet.
        seconds, usd: spent in all, and `unbilled` and `unbilled_usd` of them that no ledger line has yet.
        closed: whether the ledger has the run as a finished one.
        validation: the last one, or {}.
        forecast: what was said before, or {}.
    """

    folder: Path
    finished: bool
    steps: int
    tokens: int
    session_tokens: int
    unbilled_tokens: int
    seconds: float
    unbilled: float
    usd: float
    unbilled_usd: float
    closed: bool
    validation: dict[str, Any]
    forecast: dict[str, Any]
    actual: dict[str, Any]


def pretrain(
    file: Path,
    shards: Shards,
    folder: Path,
    place: Place,
    money: Money,
    *,
    resume: bool = False,
    hooks: Hooks | None = None,
    quiet: bool = False,
) -> Outcome:
    """Trains a base model, from the start or from the last checkpoint in `folder`.

    Raises:
        ConfigError: the file cannot be used.
        CheckpointError: a checkpoint is damaged or cannot be written.
        PandoError: there is a run in `folder` and `resume` is not asked for; corpus or config have changed.
    """
    run = _Run.open(file, shards, folder, place, money, resume, quiet)
    try:
        return run.to_the_end(hooks)
    finally:
        run.close()


class _Run:
    """One session of a run."""

    def __init__(
        self, folder: Path, config: PretrainConfig, shards: Shards, place: Place, money: Money, facts: dict[str, Any]
    ) -> None:
        self.folder, self.config, self.place, self.money, self.facts = folder, config, place, money, facts
        self.shards = shards
        self.model_config: ModelConfig = model_config(config, shards.vocab_size, shards.end)
        self.seconds, self.billed = 0.0, billed(folder)
        self._before = (0.0, 0.0)  # seconds and US dollars of the sessions before, on whatever machines
        self.validation: dict[str, Any] = {}
        self.log: Log | None = None
        self.watcher: Watcher | None = None
        self.stopping = False
        self._claim: IO[str] | None = None

    @classmethod
    def open(
        cls, file: Path, shards: Shards, folder: Path, place: Place, money: Money, resume: bool, quiet: bool
    ) -> _Run:
        given = read_config(file)
        found = read_run(folder) if (folder / "config.yaml").exists() else {}  # else it never began
        start = checkpoint.newest(folder / "checkpoints") if found else None
        if found and not resume and (start or (folder / "model").exists()):
            raise PandoError(f"{folder} holds a run already: add --resume to go on with it, or name another --out")
        if found and resume and start is None and was_kept(folder):
            raise PandoError(f"the checkpoints of the run in {folder} are gone: put them back, or name another --out")
        if found and resume:
            config = same_run(given, found, folder, shards)
            run = cls(folder, config, shards, place, money, found)
        else:
            start = None
            replaceable(folder, RUN, "*")  # what stands in a folder that is no run is somebody's
            resolved = prepare(given, shards, place, money)
            said = foresee(resolved.config, shards, place, money)
            facts = {"given": given.values, "corpus": shards.hash, "forecast": said.as_dict(), "started": time.time()}
            facts |= {"base": base_hash(resolved.config)}
            run = cls(folder, resolved.config, shards, place, money, facts)
            if place.first:
                folder.mkdir(parents=True, exist_ok=True)
                write_run(folder, facts)
                write_config(resolved.config, folder / "config.yaml", resolved.notes)
        try:
            run._begin(start, quiet)
        except BaseException:
            run.close()
            raise
        return run

    def _begin(self, start: Path | None, quiet: bool) -> None:
        taken: PandoError | None = None
        if self.place.first:
            try:
                self._claim = claim(self.folder)
            except PandoError as error:
                taken = error
        if self.place.agree(float(taken is not None)):
            raise taken or PandoError(f"{self.folder} is taken")
        plan.choose_compile(self.config.machine.compile, self.place.device, 0.0)  # the device may have changed since
        self.trainer = Trainer(self.config, self.model_config, self.shards, self.place)
        if start is not None:
            found = checkpoint.facts(start)
            changed = changes(found["config"], json.loads(json.dumps(flat(self.config))))
            if changed:
                raise PandoError(f"the config has changed since {start.name}: {'; '.join(changed)}; set it back")
            self.trainer.load_state_dict(found["trainer"])
            checkpoint.load(start, self.trainer.tensors(), self.place)
            checkpoint.restore_random_state(found["random"])
            self.seconds, self.validation = found["seconds"], found["validation"]
            self._before = (self.seconds, found.get("usd", self.money.usd(self.seconds)))
        self.billed = billed(self.folder)
        self.first_step = self.trainer.steps_made
        self._saved = self._clock = time.perf_counter()
        self._ends = plan.peak(self.place.device, self.trainer.number) if self.place.first else None
        if self.place.first:
            self.log = Log(self.folder / NAME, self.trainer.steps_made)
            self.seconds += self.log.dropped
            self.log.write("start", self.trainer.steps_made, world=self.place.world, device=str(self.place.device))
        price = self.money.usd(1.0)
        made = self.trainer.steps_made
        self.watcher = Watcher(self.config.steps, made, price, quiet or not self.place.first)
        if start is not None:
            self.watcher.say(f"going on from {start.name}")

    @property
    def usd(self) -> float:
        """What was spent in all."""
        seconds, usd = self._before
        return usd + self.money.usd(self.seconds - seconds)

    def to_the_end(self, hooks: Hooks | None) -> Outcome:
        """Makes the remaining steps; Ctrl-C ends after the step under way, with a checkpoint."""
        waiting: Step | None = None  # read once the next step has been given to a GPU, which then never idles
        prompt = self.place.device.type == "cpu"
        with self._stoppable():
            if self.config.base is not None and self.trainer.steps_made == 0:
                started = time.perf_counter()
                self._validate(0)  # what it is gone on from
                self.seconds += time.perf_counter() - started
            self._clock = time.perf_counter()
            while self.trainer.steps_made < self.config.steps:
                step = self.trainer.step()
                if waiting is not None:
                    self._note(waiting)
                waiting = step
                made = self.trainer.steps_made
                last = made == self.config.steps
                stopping, due = self._asked(made)
                look = last or self._looks(made)
                if not (prompt or look or stopping or due):
                    continue
                self._note(step)
                waiting = None
                if look:
                    self._judge(made, last)
                if last or stopping or due:
                    self._save(made)
                if look and hooks is not None:  # behind the checkpoint: nothing that goes wrong there costs a step
                    self._show(made, last, hooks)
                if stopping and not last:
                    return self._outcome(False)
                self._clock = time.perf_counter()
        self._finish()
        return self._outcome(True)

    def _asked(self, made: int) -> tuple[bool, bool]:
        """Whether somebody wants the session to end, and whether a checkpoint is due: by the first rank's word."""
        keep = self.config.keep
        due = bool(keep.minutes) and time.perf_counter() - self._saved >= 60 * keep.minutes
        due = due or any(every and made % every == 0 for every in (keep.steps, keep.every))
        said = int(self.place.agree(2 * self.stopping + due))
        return said >= 2, bool(said % 2)

    def _note(self, step: Step) -> None:
        """Logs a step; its seconds are those since the one before was read."""
        found = step.read()
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        self.seconds += seconds
        if self.log is None or self.watcher is None:
            return
        self.log.write("step", step.step, **found, seconds=seconds)
        speed = step.slots / seconds
        mfu = speed * train_flops(self.model_config) / (self._ends * self.place.world) if self._ends else None
        memory = plan.peak_memory(self.place.device)
        self.watcher.step(step.step + 1, found["loss"], speed, mfu, memory)
        if not found["kept"]:
            self.watcher.say(f"step {step.step} was skipped: loss {found['loss']:.3f}, norm {found['norm']:.3g}")

    def _looks(self, made: int) -> bool:
        watch = self.config.watch
        return any(every and made % every == 0 for every in (watch.validate, watch.sample, watch.evaluate))

    def _judge(self, made: int, last: bool) -> None:
        """A validation, where one is due. Its time is the run's too."""
        every, started = self.config.watch.validate, time.perf_counter()
        if last or (every and made % every == 0):
            self._validate(made)
        self.seconds += time.perf_counter() - started

    def _show(self, made: int, last: bool, hooks: Hooks) -> None:
        """Samples and evaluations, where they are due. Their time is the run's too."""
        watch, started = self.config.watch, time.perf_counter()
        sample = last or (watch.sample and made % watch.sample == 0)
        evaluate = last or (watch.evaluate and made % watch.evaluate == 0)
        if sample or evaluate:
            model = gathered(self.trainer.model, self.place)
            if model is not None and sample:
                with self._forgiven(made, "samples"):
                    if texts := hooks.samples(model, self.config):
                        self._tell("sample", made, {"texts": texts})
            if model is not None and evaluate:
                with self._forgiven(made, "evaluations"):
                    if scores := dict(hooks.evaluate(model, self.config)):
                        self._tell("evaluation", made, {"scores": scores})
            self.place.meet()
        self.seconds += time.perf_counter() - started

    @contextmanager
    def _forgiven(self, made: int, what: str) -> Iterator[None]:
        """A prompt that is too long, say, is no reason to end the run."""
        try:
            yield
        except PandoError as error:
            if self.watcher is not None:
                self.watcher.say(f"step {made:,}: no {what}: {error}")

    def _validate(self, made: int) -> None:
        self.validation = self.trainer.validate(self.config.watch.validation_tokens)
        self._tell("validation", made, self.validation)
        if self.watcher and self.validation["bits_per_byte"] is not None:
            self.watcher.say(f"step {made:,}: {self.validation['bits_per_byte']:.4f} bits per byte held back")

    def _tell(self, kind: str, made: int, values: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(kind, made, **values)

    def _save(self, made: int) -> None:
        """Writes a checkpoint."""
        started = time.perf_counter()
        self._saved = started
        facts = {
            "config": flat(self.config),
            "trainer": self.trainer.state_dict(),
            "random": checkpoint.random_state(),
            "seconds": self.seconds,
            "usd": self.usd,
            "validation": self.validation,
            "world": self.place.world,
            "torch": torch.__version__,
        }
        folder = self.folder / "checkpoints"
        checkpoint.save(folder, made, self.trainer.tensors(), facts, self.place)
        if self.place.first:
            checkpoint.retire(folder, self.config.keep)
        taken = time.perf_counter() - started
        self.seconds += taken
        self._tell("checkpoint", made, {"seconds": taken})

    def _finish(self) -> None:
        model = gathered(self.trainer.model, self.place)
        if model is not None:
            leave_base(self.folder / "model", model, self.shards, self.config, self._actual())
        self._tell("end", self.trainer.steps_made, {"total_seconds": self.seconds, "usd": self.usd})
        self.place.meet()

    def _actual(self) -> dict[str, Any]:
        steps = [r["seconds"] for r in read_log(self.folder / NAME) if r["kind"] == "step"]
        return {
            "steps": self.trainer.steps_made,
            "tokens": self.trainer.steps_made * self.config.rows * self.config.sequence,
            "step_seconds": sorted(steps)[len(steps) // 2] if steps else None,
            "memory": plan.peak_memory(self.place.device),
            "hours": self.seconds / 3600,
            "usd": self.usd,
            "bits_per_byte": self.validation.get("bits_per_byte"),
            "validation": self.validation,
        }

    def _outcome(self, finished: bool) -> Outcome:
        made = self.trainer.steps_made
        actual = self._actual() if self.place.first else {}
        forecast = self.facts.get("forecast", {})
        tokens = made * self.config.rows * self.config.sequence
        return Outcome(
            folder=self.folder,
            finished=finished,
            steps=made,
            tokens=tokens,
            session_tokens=(made - self.first_step) * self.config.rows * self.config.sequence,
            unbilled_tokens=max(0, tokens - self.billed["tokens"]),
            seconds=self.seconds,
            unbilled=max(0.0, self.seconds - self.billed["seconds"]),
            usd=self.usd,
            unbilled_usd=max(0.0, self.usd - self.billed.get("usd", self.money.usd(self.billed["seconds"]))),
            closed=self.billed["finished"],
            validation=self.validation,
            forecast=forecast,
            actual=actual,
        )

    def close(self) -> None:
        """Lets go of the folder, the files and the bar."""
        if self._claim is not None:
            self._claim.close()
        if self.log is not None:
            self.log.close()
        if self.watcher is not None:
            self.watcher.close()

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the session after a step; a second one ends it at once."""

        def stop(number: int, _: Any) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        try:
            old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs it has signals of their own
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
