"""LoRA on the short prompt: what the instruction and demonstrations tell moves into the weights.

All linear layers, loss on the answer and its end token only. A base that writes nothing learns to tell labels by a
linear layer on its hidden states, and documents are found by vectors that learn which query wants which. The learning
rate follows a rule by the base's width; the rule, a third and three times of it run the first part of the schedule side
by side, and the one with the lowest loss on select rows goes on. Of the checkpoints along the way, the one with the
best select quality ships.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pando.adapt.rungs.common import draft
from pando.adapt.rungs.embed import Embed, document_vectors, own_way
from pando.adapt.rungs.tokens import call_tokens, query_tokens
from pando.errors import DataError
from pando.files import atomic_dir, atomic_write
from pando.interface import Capabilities, Usage
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.parts import Reading, Scoring
from pando.skin.render import training_example
from pando.skin.search import DocumentIndex, unit
from pando.task.file import Task
from pando.task.rows import Example

if TYPE_CHECKING:
    import torch

    from pando.adapt.lab import Lab
    from pando.engine import Engine
    from pando.model.tokenizer import Tokenizer
    from pando.model.transformer import Transformer
    from pando.train.learning import Learning
    from pando.train.lora import LoraTrainer

RANK, ALPHA = 16, 32.0
BATCH = 16
EPOCHS, MIN_STEPS, MAX_EPOCHS = 3, 100, 10
RACE = (1.0, 1 / 3, 3.0)  # multiples of the rule's learning rate
RACE_SHARE = 0.12  # of the steps
RACE_ROWS = 64  # select rows whose loss decides it
RACE_EXAMPLES = 256  # of theirs at most: a query may want thousands of documents
CHECKPOINTS = 4  # evaluations on select rows along the schedule
PATIENCE = 2  # of them without a gain end the training
MIN_ROWS = 8
LEARNT_TOKENS = 128  # of a document, in training


class Lora:
    """See `Rung`."""

    name = "lora"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """Why it cannot be tried with this task and model, or None."""
        if not (capabilities.train and capabilities.adapters):
            return "this model's weights cannot be trained here"
        if task.kind not in ("classify", "retrieve") and not capabilities.generate:
            return "this model reads texts and writes none"
        return None

    def cost(self, task: Task, lab: Lab) -> float:
        """Tokens forwarded: a step is worth three passes, and each checkpoint scores the select rows; of documents, the
        only one reads the corpus."""
        race = 1 + (len(RACE) - 1) * RACE_SHARE
        if task.kind == "retrieve":
            pairs = sum(len(_wanted(row)) for row in lab.train)
            trained = 3 * _Finding.batch * planned_steps(pairs, _Finding.batch) * race
            return trained * (LEARNT_TOKENS + query_tokens(lab)) + Embed().cost(task, lab)
        trained = 3 * BATCH * planned_steps(len(lab.train)) * race
        return call_tokens(task, lab, 0) * (trained + CHECKPOINTS * len(lab.select))

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """One skin: the adapter of the best checkpoint.

        Raises:
            DataError: too few rows fit the base's context.
        """
        engine = cast("Engine", lab.model)
        kind = _Writing if engine.capabilities.generate else _Telling
        way: _Way = (_Finding if task.kind == "retrieve" else kind)(task, lab, engine)
        examples = way.examples(lab.train)
        lab.unread(row for row, made in zip(lab.train, examples, strict=True) if not made)
        rows = list(chain(*examples))
        if len(rows) < MIN_ROWS:
            raise DataError(f"only {len(rows)} training rows fit the base's {engine.context_length} tokens of context")
        folder = lab.workdir(self.name)
        model = _training_model(engine, folder)
        held_out = list(islice(chain(*way.examples(lab.select[:RACE_ROWS])), RACE_EXAMPLES))
        steps = planned_steps(len(rows), way.batch)
        started, billed = time.perf_counter(), lab.billed
        with lab.progress(steps + (len(RACE) - 1) * _race_steps(steps), "lora: training") as advance:
            trainer, raced = _race(model, way, rows, held_out, steps, task.seed, advance)
            skin = _train(trainer, way, lab, folder, advance)
        spent = time.perf_counter() - started - (lab.billed - billed)
        lab.bill("build", spent, Usage(prompt_tokens=raced + trainer.tokens))
        return [skin]


class _Way(Protocol):
    """How a base learns a task: what rows become, what they are learnt for, and the skin that comes of it.

    Attributes:
        batch: examples of a step. checkpoints: evaluations on select rows along the schedule.
    """

    batch: int
    checkpoints: int

    def examples(self, rows: Sequence[Example]) -> list[list[Any]]:
        """What each row gives to learn, as token ids that the very calls make that make requests; nothing where it is
        beyond the context."""
        ...

    def learning(self, model: Transformer) -> Learning[Any]: ...
    def skin(self, trainer: LoraTrainer[Any], adapter: Path) -> Skin: ...


class _Writing:
    """It writes, or scores, the answer after the prompt."""

    batch, checkpoints = BATCH, CHECKPOINTS

    def __init__(self, task: Task, lab: Lab, engine: Engine) -> None:
        # Summed log-probabilities, the end of the turn included: what the training loss is made of.
        self._bare = draft(task, lab, Lora.name, scoring=Scoring(per_token=False, end=True))
        self._engine = engine

    def examples(self, rows: Sequence[Example]) -> list[list[Any]]:
        """See `_Way`."""
        from pando.train.supervised import SupervisedExample

        tokenizer: Tokenizer = self._engine.base.tokenizer
        config = self._engine.base.config
        found: list[list[Any]] = []
        for row in rows:
            prompt, answer = training_example(self._bare, row, self._engine)
            ids = tokenizer.encode(prompt)
            (answer_ids,) = tokenizer.encode_continuations(prompt, ids, [answer])
            read, written = (len(ids), len(answer_ids)) if config.encoder else (0, len(ids) + len(answer_ids))
            fits = read <= config.stacks[0].context_length and written <= config.context_length
            found.append([SupervisedExample(tuple(ids), tuple(answer_ids))] if fits else [])
        return found

    def learning(self, model: Transformer) -> Learning[Any]:
        """See `_Way`."""
        from pando.train.learning import Answering

        return Answering()

    def skin(self, trainer: LoraTrainer[Any], adapter: Path) -> Skin:
        """See `_Way`."""
        return replace(self._bare, adapter=adapter)


class _Telling:
    """A linear layer, learnt with the adapter, tells the label from the hidden states of the input alone."""

    batch, checkpoints = BATCH, CHECKPOINTS

    def __init__(self, task: Task, lab: Lab, engine: Engine) -> None:
        self._pooling = engine.base.embedding.pooling
        reading = Reading((engine.capabilities.layers,), self._pooling)
        self._bare = draft(task, lab, Lora.name, method="probe", reading=reading)
        self._engine = engine

    def examples(self, rows: Sequence[Example]) -> list[list[Any]]:
        """See `_Way`."""
        from pando.train.learning import LabelledExample

        number = {label: i for i, label in enumerate(self._bare.labels)}
        texts = self._engine.base.tokenizer.encode_batch([row.text for row in rows])
        return [
            [LabelledExample(tuple(tokens), number[str(row.output)])]
            if 0 < len(tokens) <= self._engine.context_length
            else []
            for row, tokens in zip(rows, texts, strict=True)
        ]

    def learning(self, model: Transformer) -> Learning[Any]:
        """See `_Way`."""
        from pando.train.learning import Labelling

        return Labelling(model, len(self._bare.labels), self._pooling)

    def skin(self, trainer: LoraTrainer[Any], adapter: Path) -> Skin:
        """See `_Way`."""
        weight, bias = (p.detach().cpu().numpy().copy() for p in trainer.learning.parameters())
        return replace(self._bare, adapter=adapter, linear=Linear(weight, bias))


class _Finding:
    """Queries are brought near to the documents that they want, and away from those that others of the step want."""

    batch, checkpoints = 2 * BATCH, 1  # the corpus is read anew for each evaluation

    def __init__(self, task: Task, lab: Lab, engine: Engine) -> None:
        bare, _ = own_way(task, lab, Lora.name)
        assert bare.reading is not None
        self._bare = replace(bare, reading=replace(bare.reading, layers=(engine.capabilities.layers,)))
        self._lab, self._engine = lab, engine
        self._texts = dict(zip(lab.documents.ids, lab.documents.texts, strict=True))

    def examples(self, rows: Sequence[Example]) -> list[list[Any]]:
        """See `_Way`: one for each document that a query wants, read at its head."""
        from pando.train.learning import PairExample

        tokenizer, how = self._engine.base.tokenizer, self._bare.searching
        assert how is not None
        found: list[list[Any]] = []
        for row in rows:
            found.append([])
            query = tokenizer.cut(tokenizer.encode(how.read(row.text, "query")), how.max_tokens)
            wanted = _wanted(row)
            texts = tokenizer.encode_batch([how.read(self._texts[name], "document") for name in wanted])
            for name, ids in zip(wanted, texts, strict=True):
                document = tokenizer.cut(ids, min(how.max_tokens, LEARNT_TOKENS))
                if query and document:
                    found[-1].append(PairExample(tuple(query), tuple(document), name, frozenset(wanted)))
        return found

    def learning(self, model: Transformer) -> Learning[Any]:
        """See `_Way`."""
        from pando.train.learning import Matching

        return Matching(self._engine.base.embedding.pooling)

    def skin(self, trainer: LoraTrainer[Any], adapter: Path) -> Skin:
        """See `_Way`."""
        adapted = replace(self._bare, adapter=adapter)
        vectors = document_vectors(adapted, self._lab)[:, 0]
        return replace(adapted, documents=DocumentIndex(self._lab.documents.ids, None, unit(vectors, None)))


def _wanted(row: Example) -> list[str]:
    """The documents that a query wants."""
    return [name for name, grade in row.output.items() if grade > 0] if isinstance(row.output, dict) else []


def planned_steps(rows: int, batch: int = BATCH) -> int:
    """Optimiser steps for so many rows: some epochs, more where that would be too few steps."""
    per_epoch = math.ceil(rows / batch)
    return min(max(EPOCHS * per_epoch, MIN_STEPS), MAX_EPOCHS * per_epoch)


def _race_steps(steps: int) -> int:
    return max(1, round(RACE_SHARE * steps))


def _training_model(engine: Engine, folder: Path) -> Transformer:
    """The frozen base in the numbers that train fastest here; the choice is kept, so that a resumed run repeats it."""
    import torch

    from pando.train.lora import fastest_dtype, training_copy

    note = folder / "numbers.json"
    if not note.exists():
        name = str(fastest_dtype(engine.device)).removeprefix("torch.")
        atomic_write(note, json.dumps({"format_version": 1, "dtype": name}))
    number: torch.dtype = getattr(torch, json.loads(note.read_text(encoding="utf-8"))["dtype"])
    return training_copy(engine.module, number)


def _race(
    model: Transformer,
    way: _Way,
    rows: Sequence[Any],
    held_out: Sequence[Any],
    steps: int,
    seed: int,
    advance: Callable[[int], None],
) -> tuple[LoraTrainer[Any], int]:
    """The trainer whose learning rate has the lowest held-out loss after the first part of the schedule, and the tokens
    that the others were trained on."""
    from pando.model.lora import LoraConfig, all_linear
    from pando.train.lora import LoraSettings, LoraTrainer, rule_learning_rate

    config = LoraConfig(RANK, ALPHA, all_linear(model))
    best: tuple[float, LoraTrainer[Any]] | None = None
    tokens = 0
    for factor in RACE:
        rate = rule_learning_rate(model.config.d_model) * factor
        trainer = LoraTrainer(model, config, rows, LoraSettings(rate, steps, way.batch), seed, way.learning(model))
        for _ in trainer.train(_race_steps(steps)):
            advance(1)
        tokens += trainer.tokens
        loss = trainer.loss(held_out or rows[:RACE_ROWS])
        if best is None or math.isnan(best[0]) or loss < best[0]:  # a loss that is not a number never wins
            best = (loss, trainer)
    assert best is not None
    return best[1], tokens - best[1].tokens


def _train(trainer: LoraTrainer[Any], way: _Way, lab: Lab, folder: Path, advance: Callable[[int], None]) -> Skin:
    """Makes the remaining steps and returns the skin of the checkpoint with the best select quality."""
    total = trainer.settings.steps
    best: tuple[float, Skin] | None = None
    waited = 0
    for checkpoint in range(1, way.checkpoints + 1):
        goal = round(total * checkpoint / way.checkpoints)
        for _ in trainer.train(goal - trainer.step):
            advance(1)
        skin = _checkpoint(trainer, way, cast("Engine", lab.model), folder / f"step-{trainer.step}")
        quality = lab.evaluate(skin).quality
        if best is None or quality > best[0]:
            best, waited = (quality, skin), 0
        else:
            waited += 1
        if waited == PATIENCE:
            break
    assert best is not None
    return best[1]


def _checkpoint(trainer: LoraTrainer[Any], way: _Way, engine: Engine, folder: Path) -> Skin:
    from pando.model.peft import save_peft

    with atomic_dir(folder) as scratch:
        save_peft(scratch, engine.module, trainer.adapter.config, trainer.adapter.tensors(), engine.identity.name)
    return way.skin(trainer, folder)
