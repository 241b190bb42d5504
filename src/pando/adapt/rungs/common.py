"""What several rungs need: a skin to start from, retrieval, races on select rows."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pando.adapt.rungs.calibration import calibrate
from pando.adapt.rungs.schema import infer_schema
from pando.adapt.rungs.tokens import MANY_LABELS, SHORTLIST, answer_room
from pando.files import atomic_write
from pando.interface import Features, Usage
from pando.skin import Skin
from pando.skin.parts import Decoding, Demonstration, Prompt
from pando.skin.retrieval import Retrieval
from pando.skin.tfidf import TfIdf
from pando.task.file import Task
from pando.task.rows import Example

if TYPE_CHECKING:
    from pando.adapt.lab import Lab
    from pando.adapt.scorer import Evaluation

FIRST_HEAT = 32  # select rows of a race's first heat; each further one has twice as many and half the candidates
LAST_HEAT = {"classify": 256, "extract": 64, "generate": 64}  # most rows of the last; what is written takes longer

Judge = Callable[[Skin, "Evaluation", Sequence[Example]], float]


def draft(task: Task, lab: Lab, rung: str, **parts: Any) -> Skin:
    """The task's bare skin for a rung: it scores labels, or writes answers, after the instruction alone.

    Args:
        parts: fields that differ.
    """
    bare: dict[str, Any] = {
        "name": task.name,
        "kind": task.kind,
        "rung": rung,
        "method": {"classify": "score", "retrieve": "search"}.get(task.kind, "generate"),
        "prompt": Prompt(task.instruction, tuple(task.fields.input)),
        "base": lab.model.identity,
        "labels": tuple(lab.labels),
    } | parts
    if bare["method"] == "generate":
        bare["decoding"] = Decoding(max_tokens=answer_room(lab))
        if task.kind == "extract":
            bare["grammar"] = task.fields.json_schema or infer_schema([row.output for row in lab.train])
    return Skin(**bare)


def demonstration(row: Example) -> Demonstration:
    """A training row as it is shown."""
    assert row.output is not None
    return Demonstration(row.inputs, row.output)


def kept(path: Path, lab: Lab, layers: int, ask: Callable[[], Sequence[Features | None]]) -> np.ndarray:
    """Vectors that a rung asks for, float32 [answers, layers, d]: read if they are there, else asked for, billed and
    written, for a run that goes on. They are not a number where an answer is None, and d is 1 where all are."""
    if path.exists():
        known: np.ndarray = np.load(path)
        return known
    start = time.perf_counter()
    answers = ask()
    lab.bill("build", time.perf_counter() - start, sum((one.usage for one in answers if one), Usage()))
    width = next((one.vectors.shape[1] for one in answers if one), 1)
    missing = np.full((layers, width), np.nan, dtype=np.float32)
    vectors = np.stack([one.vectors if one else missing for one in answers])
    file = io.BytesIO()
    np.save(file, vectors)
    atomic_write(path, file.getvalue())
    return vectors


def index(rows: Sequence[Example], labels: Sequence[str], *, shots: int = 0) -> Retrieval:
    """An index of rows to shortlist labels with, where they are many; with the rows if `shots` of them are shown."""
    texts = [row.text for row in rows]
    words = TfIdf.fit(texts)
    place = {label: i for i, label in enumerate(labels)}
    return Retrieval(
        words,
        words(texts).astype(np.float32),
        np.array([place[str(row.output)] for row in rows] if place else [], dtype=np.int32),
        tuple(map(demonstration, rows)) if shots else None,
        shots,
        SHORTLIST if len(labels) > MANY_LABELS else 0,
    )


def shortlist(lab: Lab) -> Retrieval | None:
    """An index for a shortlist where labels are many, else None."""
    return index(lab.train, lab.labels) if len(lab.labels) > MANY_LABELS else None


def race(task: Task, lab: Lab, candidates: Sequence[Skin]) -> Skin:
    """The best candidate, by successive halving (Karnin et al. 2013) over heats of 32, 64, ... select rows that each
    hold the ones before; the last two run the last heat.
    """
    rows, judge = sorted(lab.select, key=lambda row: row.id)[: LAST_HEAT[task.kind]], _judge(task)
    left, heat = list(candidates), FIRST_HEAT
    while len(left) > 1:
        if len(left) == 2 or heat > len(rows):
            heat = len(rows)
        part = rows[:heat]
        worth = {id(skin): judge(skin, lab.evaluate(skin, part), part) for skin in left}
        left.sort(key=lambda skin: -worth[id(skin)])
        left = left[: 1 if heat == len(rows) else (len(left) + 1) // 2]
        heat *= 2
    return left[0]


def _judge(task: Task) -> Judge:
    """What a race is decided by: how likely calibrated true labels are (finer than counting hits), or the metric."""
    if task.kind == "classify":
        return lambda skin, found, rows: calibrate(skin, found, rows).likelihood
    return lambda skin, found, rows: found.quality
