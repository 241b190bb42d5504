"""`pando pretrain`: a base model from a corpus, or what it will take."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pando.model.transformer import Transformer
    from pando.train.config import PretrainConfig
    from pando.train.configfile import Given
    from pando.train.loop import Outcome
    from pando.train.plan import Forecast
    from pando.train.shards import Shards


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run, pretrain.yaml.", show_default=False)],
    corpus: Annotated[Path, typer.Option(help="What `pando corpus build` wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run. [default: runs/<name of the config's folder or file>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what the run will take: time, memory, money, loss.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Train a base model on a corpus. With torchrun it runs on all ranks that torchrun starts."""
    import torch

    from pando.settings import load_settings
    from pando.train.configfile import read_config
    from pando.train.loop import pretrain
    from pando.train.parallel import joined
    from pando.train.prepare import Money, foresee, prepare
    from pando.train.record import note_billed
    from pando.train.shards import open_shards

    given = read_config(config)
    shards = open_shards(corpus)
    settings = load_settings()
    threads = given.values.get("machine.threads") or settings.threads
    if threads:
        torch.set_num_threads(threads)
    answers = _answers(given)
    with joined(given.values.get("machine.device", "auto")) as place:
        money = Money(settings.machine_usd_per_hour, place.machines)
        if plan:
            resolved = prepare(given, shards, place, money)
            said = foresee(resolved.config, shards, place, money)
            if place.first:
                _print_plan(said, resolved.notes, as_json)
            return
        folder = out or Path("runs") / (config.stem if config.stem != "pretrain" else config.absolute().parent.name)
        hooks = _Hooks(shards, answers)
        outcome = pretrain(config, shards, folder, place, money, resume=resume, hooks=hooks, quiet=as_json)
        if place.first:
            if not outcome.closed:
                _bill(outcome, shards)
                note_billed(outcome)
            _print_outcome(outcome, as_json)
    if not outcome.finished:
        raise typer.Exit(130)


@dataclass(frozen=True)
class _Hooks:
    """Samples and small evaluations, by the engine on the weights in training.

    Attributes:
        answers: (question, answer) texts; empty where the config names none.
    """

    shards: Shards
    answers: list[tuple[str, str]]

    def samples(self, model: Transformer, config: PretrainConfig) -> list[str]:
        from pando.interface import GenerateRequest

        engine = self._engine(model)
        try:
            if not engine.capabilities.generate:
                return []
            raw = engine.base.tokenizer.raw
            requests = [
                GenerateRequest(
                    prompt=self._prompt(raw.encode(prompt, add_special_tokens=False).ids, model, config),
                    max_tokens=config.watch.sample_tokens,
                    temperature=0.8,
                    top_p=0.95,
                    seed=config.seed + i,
                )
                for i, prompt in enumerate(config.watch.prompts)
            ]
            answers = engine.generate(requests)
            return [p + one.text for p, one in zip(config.watch.prompts, answers, strict=True)]
        finally:
            engine.close()

    def evaluate(self, model: Transformer, config: PretrainConfig) -> Mapping[str, float]:
        """The share of minimal pairs that it tells apart, for each kind and in all; bits per byte of right answers."""
        from pando.evaluate.small import gold_bits, pair_shares
        from pando.train.trainer import beginning

        engine = self._engine(model)
        try:
            if not engine.capabilities.score:
                return {}
            pairs = pair_shares(engine, context=[beginning(config, self.shards)]) if model.config.causal else {}
            found = {kind: one.share for kind, one in pairs.items()}
            if self.answers:
                found["answer_bits_per_byte"] = gold_bits(engine, self.answers).per_byte
            return found
        finally:
            engine.close()

    def _prompt(self, tokens: list[int], model: Transformer, config: PretrainConfig) -> list[int]:
        """A prompt as documents are read in training: after the end of another one, or by an encoder to its own."""
        from pando.train.trainer import beginning

        return [beginning(config, self.shards), *tokens] if model.config.causal else [*tokens, self.shards.end]

    def _engine(self, model: Transformer) -> Any:
        import torch

        from pando.engine.engine import Engine
        from pando.interface import Identity
        from pando.model.base import BaseModel

        identity = Identity("in training", "sha256:none", str(self.shards.folder))
        base = BaseModel(self.shards.folder, identity, model.config)
        return Engine(base, model, torch.device("cpu"), "float32", model.config.context_length)


def _answers(given: Given) -> list[tuple[str, str]]:
    """Questions and answers of `watch.answers`, before anything is spent."""
    named = given.values.get("watch.answers")
    if named is None:
        return []
    path = given.path.parent / named
    found: list[tuple[str, str]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise given.wrong("watch.answers", f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = {}
        if row is None:
            continue
        question, answer = (row.get(key) if isinstance(row, dict) else None for key in ("question", "answer"))
        if not (isinstance(question, str) and isinstance(answer, str) and question and answer):
            raise given.wrong("watch.answers", f"{path}:{number}: expected an object with `question` and `answer`")
        found.append((question, answer))
    if not found:
        raise given.wrong("watch.answers", f"{path} holds nothing")
    return found


def _bill(outcome: Outcome, shards: Shards) -> None:
    """One line of the ledger for this session; the last one holds forecast and actual figures side by side."""
    from pando.interface import Identity, Usage
    from pando.ledger import open_ledger

    base = None
    if outcome.finished:
        from pando.model.base import open_base

        found = open_base(outcome.folder / "model").identity
        base = Identity(outcome.folder.name, found.hash, str(outcome.folder / "model"))
    detail = {
        "run": str(outcome.folder),
        "corpus": shards.hash,
        "finished": outcome.finished,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        **({"forecast": outcome.forecast, "actual": outcome.actual} if outcome.finished else {}),
    }
    with open_ledger() as ledger:
        ledger.record(
            "pretrain",
            base=base,
            usage=Usage(prompt_tokens=outcome.unbilled_tokens),
            seconds={"compute": outcome.unbilled},
            usd=outcome.unbilled_usd,
            detail=detail,
        )


def _print_plan(said: Forecast, notes: tuple[str, ...], as_json: bool) -> None:
    from pando.report.runs import forecast_lines

    if as_json:
        print(json.dumps({**said.as_dict(), "notes": list(notes)}, indent=1))
        return
    for note in notes:
        print(note)
    for name, value in forecast_lines(said.as_dict()):
        print(f"{name:<14}{value}")


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    from pando.report.runs import compared_lines

    if as_json:
        print(json.dumps({**vars(outcome), "folder": str(outcome.folder)}, indent=1))
        return
    if not outcome.finished:
        print(f"stopped after {outcome.steps:,} steps; go on with --resume", file=sys.stderr)
        return
    for line in compared_lines(outcome.forecast, outcome.actual):
        print(line)
    print(f"Written: {outcome.folder / 'model'} (pando adapt --base {outcome.folder / 'model'})", file=sys.stderr)
