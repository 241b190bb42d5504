"""Scores of skins on items: each computed once, kept for good, billed.

The store is a file of lines that is only appended to; a line holds one batch, so a killed process leaves whole batches
or none. Batches follow from the items' hashes alone. What is kept is found again by skin version and item.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pando.errors import ContextLengthError, PandoError
from pando.files import append_line, check_format, progress, read_lines
from pando.interface import LanguageModel, Usage
from pando.ledger import Ledger
from pando.settings import load_settings
from pando.skin import Prediction, Skin
from pando.skin.predict import predict_each
from pando.task.metrics import ItemScore, Metric
from pando.task.rows import Example

FORMAT_VERSION = 1
BATCH = 64
TIMED = 40  # items that are asked one at a time, for latency
_WARM_UP = 2

Progress = Callable[[float | None, str], AbstractContextManager[Callable[..., None]]]


@dataclass(frozen=True)
class Evaluation:
    """A skin on a list of items, in their order.

    Attributes:
        items: scores.
        predictions: answers; value None where the item does not fit the base's context.
        quality: the metric over the items.
        seconds: the machine's time, over all items, as first measured.
        usage: tokens, likewise.
        too_long: ids of items that do not fit the base's context; they count as wrong.
    """

    items: list[ItemScore]
    predictions: list[Prediction]
    quality: float
    seconds: float
    usage: Usage
    too_long: list[str]


@dataclass(frozen=True)
class Speed:
    """What calls of a skin take.

    Attributes:
        p50_ms, p95_ms: one call at a time, in milliseconds.
        seconds: the machine's time for a call among others.
    """

    p50_ms: float
    p95_ms: float
    seconds: float


@dataclass(frozen=True)
class _Scored:
    """One item as the store keeps it. `alone`: seconds of a call made by itself, else None."""

    score: ItemScore
    prediction: Prediction
    seconds: float
    alone: float | None
    too_long: bool


class Scorer:
    """Scores skins with one model and one metric. `billed`: seconds that this process wrote to the ledger.

    Args:
        store: the file of scored items; made when the first are there.
        seed: part of what a score is found by.

    Raises:
        PandoError: the store is damaged, or a newer Pando wrote it.
    """

    def __init__(self, model: LanguageModel | None, metric: Metric, store: Path, ledger: Ledger, seed: int = 0) -> None:
        self.model, self.metric, self.seed = model, metric, seed
        self.billed = 0.0
        self._store, self._ledger = store, ledger
        self._known: dict[tuple[str, str], _Scored] = {}
        for line in read_lines(store):
            self._remember(_read(line, store))

    def evaluate(self, skin: Skin, examples: Sequence[Example], show: Progress = progress) -> Evaluation:
        """Scores what is not scored yet, in batches, and returns all.

        Raises:
            PandoError: the model cannot answer for a reason other than an item's length.
        """
        batches = ([e for e in batch if not self._has(skin, e)] for batch in _batches(examples))
        missing = [batch for batch in batches if batch]
        if missing:
            with show(sum(map(len, missing)), f"{skin.rung}: scoring") as advance:
                for batch in missing:
                    self._score(skin, batch, alone=False)
                    advance(len(batch))
        return self._collect(skin, examples)

    def measure(self, skin: Skin, examples: Sequence[Example], warm_up: Sequence[Example], show: Progress) -> Speed:
        """What calls take: the first items (by id; half of them if there are few) are asked one at a time and scored
        with it, the others in batches. What has been measured before is not measured again.

        Args:
            warm_up: other items, asked before and forgotten, so that what all prompts share is computed.
        """
        ordered = sorted(examples, key=lambda e: e.id)
        timed = ordered[: max(1, min(TIMED, len(ordered) // 2))]
        missing = [e for e in timed if not self._has(skin, e)]
        if missing:
            predict_each(skin, list(warm_up[:_WARM_UP]), self._model(skin))
            with show(len(missing), f"{skin.rung}: timing") as advance:
                for example in missing:
                    self._score(skin, [example], alone=True)
                    advance(1)
        rest = ordered[len(timed) :]
        if rest:
            self.evaluate(skin, rest, show)
        alone = [self._known[skin.version, e.id].alone for e in timed]
        seconds = np.array([s for s in alone if s is not None])
        shared = [self._known[skin.version, e.id].seconds for e in rest] or list(seconds)
        return Speed(
            1000 * float(np.quantile(seconds, 0.5)), 1000 * float(np.quantile(seconds, 0.95)), float(np.mean(shared))
        )

    def _model(self, skin: Skin) -> LanguageModel | None:
        return None if skin.base is None else self.model

    def _has(self, skin: Skin, example: Example) -> bool:
        return (skin.version, example.id) in self._known

    def _score(self, skin: Skin, batch: Sequence[Example], alone: bool) -> None:
        """Computes one batch, writes its line, bills it."""
        start = time.perf_counter()
        answers = predict_each(skin, list(batch), self._model(skin))
        seconds = time.perf_counter() - start
        predictions = [_prediction(answer) for answer in answers]
        scores = self.metric.items([p.value for p in predictions], batch)
        records = [
            {"id": e.id, "score": s, **_record(p), "too_long": not isinstance(a, Prediction)}
            for e, s, p, a in zip(batch, scores, predictions, answers, strict=True)
        ]
        line = {
            "format_version": FORMAT_VERSION,
            "skin": skin.version,
            "rung": skin.rung,
            "seed": self.seed,
            "split": batch[0].split,
            "seconds": seconds,
            "alone": alone,
            "items": records,
        }
        append_line(self._store, json.dumps(line, ensure_ascii=False))
        self._remember(line)
        self._bill(skin, batch, predictions, seconds)

    def _bill(self, skin: Skin, batch: Sequence[Example], predictions: Sequence[Prediction], seconds: float) -> None:
        self.billed += seconds
        self._ledger.record(
            "eval",
            skin=skin.name,
            skin_version=skin.version,
            base=skin.base,
            usage=sum((p.usage for p in predictions), Usage()),
            seconds={"compute": seconds},
            usd=load_settings().usd(seconds),
            detail={"rung": skin.rung, "split": batch[0].split, "items": len(batch)},
        )

    def _remember(self, line: dict[str, Any]) -> None:
        if line["seed"] != self.seed:
            return
        each = line["seconds"] / len(line["items"])
        for record in line["items"]:
            self._known[line["skin"], record["id"]] = _Scored(
                record["score"],
                Prediction(record["value"], record["confidence"], record["scores"], Usage(**record["usage"])),
                each,
                each if line["alone"] else None,
                record["too_long"],
            )

    def _collect(self, skin: Skin, examples: Sequence[Example]) -> Evaluation:
        found = [self._known[skin.version, e.id] for e in examples]
        items = [one.score for one in found]
        return Evaluation(
            items,
            [one.prediction for one in found],
            self.metric.aggregate(items),
            sum(one.seconds for one in found),
            sum((one.prediction.usage for one in found), Usage()),
            [e.id for e, one in zip(examples, found, strict=True) if one.too_long],
        )


def _batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Whatever the order of the examples, the same batches: by id."""
    ordered = sorted(examples, key=lambda e: e.id)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def _prediction(answer: Prediction | PandoError) -> Prediction:
    if isinstance(answer, Prediction):
        return answer
    if isinstance(answer, ContextLengthError):
        return Prediction(None)
    raise answer


def _record(prediction: Prediction) -> dict[str, Any]:
    return {
        "value": prediction.value,
        "confidence": prediction.confidence,
        "scores": prediction.scores,
        "usage": asdict(prediction.usage),
    }


def _read(line: str, store: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
        check_format(str(store), found["format_version"], FORMAT_VERSION)
    except (ValueError, KeyError, TypeError):
        raise PandoError(f"{store} is damaged: remove it, or start anew with another --out") from None
    return dict(found)
