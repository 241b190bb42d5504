"""Which documents stay: from the stages' scores, never from the text, so that another threshold costs seconds.

Documents are numbered in the order of sources, files and rows. The stages decide in the order of the corpus file; the
first that drops a document is its reason, and what is dropped takes no part in the duplicates of later stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pando.corpus import rules
from pando.corpus.config import Config
from pando.corpus.parts import read_table
from pando.corpus.thresholds import RULES
from pando.corpus.words import I64

Bools = npt.NDArray[np.bool_]
Grouping = Callable[[Bools], I64]  # which documents count -> the first of each one's group of near-duplicates


@dataclass(frozen=True)
class Part:
    """One part with the files of its stages.

    Attributes:
        source: number of its source.
        key: of the text as read.
        rows: documents.
        files: the file of each stage that ran on it.
        text: the file of its final text.
        text_key: stands for that text.
    """

    source: int
    key: str
    rows: int
    read: str
    files: dict[str, str]
    text: str
    text_key: str


@dataclass
class Decisions:
    """What became of N documents.

    Attributes:
        rule: [N] place in `names` of what dropped it, -1 where it is kept.
        names: (stage, rule) pairs.
        score, limit: [N] what the rule compared; nan where it compares nothing.
        other: [N] the document that it repeats, -1 where it repeats none.
        detail: words about single documents: the language found, the item of an evaluation.
    """

    rule: npt.NDArray[np.int16]
    score: npt.NDArray[np.float32]
    limit: npt.NDArray[np.float32]
    other: I64
    names: list[tuple[str, str]] = field(default_factory=list)
    detail: dict[int, str] = field(default_factory=dict)

    @property
    def kept(self) -> Bools:
        """[N] whether the document stays."""
        return self.rule < 0

    def drop(self, which: Bools, stage: str, rule: str, score: Any = np.nan, limit: float = np.nan) -> None:
        """Drops those of `which` that are still there."""
        which = which & self.kept
        if (stage, rule) not in self.names:
            self.names.append((stage, rule))
        self.rule[which] = self.names.index((stage, rule))
        self.score[which] = np.broadcast_to(np.asarray(score, np.float32), which.shape)[which]
        self.limit[which] = limit

    def hash(self) -> str:
        """Stands for which documents stay."""
        return hashlib.sha256(np.packbits(self.kept).tobytes()).hexdigest()[:24]


def decide(config: Config, parts: Sequence[Part], grouping: Grouping) -> Decisions:
    """Applies the stages' thresholds to their scores.

    Args:
        grouping: finds near-duplicates among the documents that are still there; called where the stage `near` stands.
    """
    size = sum(part.rows for part in parts)
    made = Decisions(
        np.full(size, -1, np.int16),
        np.full(size, np.nan, np.float32),
        np.full(size, np.nan, np.float32),
        np.full(size, -1),
    )
    problems = column(parts, "read", "problem")
    for problem in sorted(set(pc.unique(problems).to_pylist()) - {None}):
        made.drop(np.asarray(pc.equal(problems, problem).fill_null(False)), "read", problem)
    for stage in config.order:
        _STAGES[stage](made, config, parts, grouping)
    return made


def column(parts: Sequence[Part], stage: str, name: str) -> pa.Array:
    """[N] a column of a stage over all parts, null for those that the stage leaves alone."""
    found: dict[int, list[pa.Array]] = {}
    kind: pa.DataType = pa.null()
    for place, part in enumerate(parts):
        path = part.read if stage == "read" else part.files.get(stage)
        if path is not None:
            piece = read_table(path, [name]).column(0)
            kind, found[place] = piece.type, piece.chunks
    filled = [chunk for place, part in enumerate(parts) for chunk in found.get(place, [pa.nulls(part.rows, kind)])]
    return pa.concat_arrays(filled) if filled else pa.array([], kind)


def numbers(parts: Sequence[Part], stage: str, name: str) -> npt.NDArray[np.float32]:
    """[N] such a column as float32, nan for null."""
    return np.asarray(column(parts, stage, name).cast(pa.float32()).to_numpy(zero_copy_only=False), np.float32)


def _normalise(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    made.drop(numbers(parts, "normalise", "characters") == 0, "read", "empty")


def _language(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    wanted = config.stages.language
    assert wanted is not None
    found, sure = column(parts, "language", "language"), numbers(parts, "language", "language_score")
    if pa.types.is_null(found.type):  # every source leaves the stage out
        return
    foreign = np.asarray(pc.invert(pc.is_in(found, pa.array(wanted.keep))).fill_null(False)) & ~np.isnan(sure)
    before = made.kept
    made.drop(foreign, "language", "other_language", sure, wanted.min)
    made.drop(sure < np.float32(wanted.min), "language", "unsure_language", sure, wanted.min)
    for place in np.flatnonzero(foreign & before).tolist():
        made.detail[place] = found[place].as_py() or "no letters"


def _rules(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    wanted = config.stages.rules
    assert wanted is not None
    for name, limit in rules.limits_of(wanted.use, wanted.set).items():
        score = numbers(parts, "rules", RULES[name].score)
        made.drop(rules.dropped(name, score, limit), "rules", name, score, limit)


def _quality(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    wanted = config.stages.quality
    assert wanted is not None
    score = numbers(parts, "quality", "quality")
    made.drop(score < np.float32(wanted.min), "quality", "quality", score, wanted.min)


def _exact(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    content = column(parts, "exact", "content")
    present = np.flatnonzero(made.kept & np.asarray(content.is_valid()))
    raw = np.frombuffer(b"".join(content.take(pa.array(present)).to_pylist()), "V16")
    halves = raw.view("<u8").reshape(-1, 2)
    order = np.lexsort((present, halves[:, 1], halves[:, 0]))
    same = np.concatenate([[False], (halves[order][1:] == halves[order][:-1]).all(1)]) if len(order) else order > 0
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order)))) if len(order) else order
    again = np.zeros(len(made.rule), bool)
    again[present[order[same]]] = True
    made.other[present[order[same]]] = present[order[first[same]]]
    made.drop(again, "exact", "copy", 1.0, 1.0)


def _near(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    from pando.corpus.near import shared_bands

    wanted = config.stages.near
    assert wanted is not None
    has = np.concatenate([np.full(part.rows, "near" in part.files) for part in parts]) if parts else np.zeros(0, bool)
    counted = made.kept & has
    first = grouping(counted)
    again = counted & (first != np.arange(len(first)))
    which = np.flatnonzero(again)
    files = [(part.files.get("near"), part.rows) for part in parts]
    score = np.zeros(len(first), np.float32)
    score[which] = shared_bands(files, wanted.bands, which, first[which])
    made.other[which] = first[which]
    made.drop(again, "near", "near_copy", score, 1 / wanted.bands)


def _decontaminate(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    wanted = config.stages.decontaminate
    assert wanted is not None
    score = numbers(parts, "decontaminate", "contamination")
    found = (score >= np.float32(wanted.min)) & made.kept
    made.drop(found, "decontaminate", "contamination", score, wanted.min)
    names = column(parts, "decontaminate", "contamination_item")
    for place in np.flatnonzero(found).tolist():
        made.detail[place] = names[place].as_py()


def _pii(made: Decisions, config: Config, parts: Sequence[Part], grouping: Grouping) -> None:
    """Nothing is dropped for what was masked."""


_STAGES: dict[str, Callable[[Decisions, Config, Sequence[Part], Grouping], None]] = {
    "normalise": _normalise,
    "language": _language,
    "rules": _rules,
    "quality": _quality,
    "pii": _pii,
    "exact": _exact,
    "near": _near,
    "decontaminate": _decontaminate,
}
