"""The floor: what one gets without a language model. classify: the majority, or TF-IDF and logistic regression; extract
and generate: an empty, a typical, a copied or a leading answer, whichever scores best on training rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pando.adapt.rungs.common import draft
from pando.adapt.rungs.fitting import classes_of, cross_validate, fit_linear
from pando.interface import Capabilities
from pando.skin import Skin
from pando.skin.linear import Linear
from pando.skin.methods import lead
from pando.skin.parts import Baseline
from pando.skin.search import Bm25, DocumentIndex, Searching
from pando.skin.tfidf import TfIdf
from pando.task.file import Task
from pando.task.rows import Example, Output

if TYPE_CHECKING:
    from pando.adapt.lab import Lab

STRENGTHS = (1.0, 10.0, 100.0)  # inverse regularisation, C
_SEEN = 1000  # training rows that baselines are compared on


class Floor:
    """See `Rung`."""

    name = "floor"

    def fits(self, task: Task, capabilities: Capabilities) -> str | None:
        """None: it always fits."""
        return None

    def cost(self, task: Task, lab: Lab) -> float:
        """Nothing is forwarded."""
        return 0.0

    def propose(self, task: Task, lab: Lab) -> list[Skin]:
        """The better one, by cross-validation on training rows."""
        if task.kind == "retrieve":
            return [_words(task, lab)]
        return [_classifier(task, lab) if task.kind == "classify" else _baseline(task, lab)]


def _classifier(task: Task, lab: Lab) -> Skin:
    texts, y = [e.text for e in lab.train], classes_of(lab.train, lab.labels)
    words = TfIdf.fit(texts)
    x = words(texts)
    share = np.bincount(y, minlength=len(lab.labels)) / len(y)
    right = cross_validate(x, y, STRENGTHS, lab.seed)[:, 1]
    if right.max() > share.max():
        linear = fit_linear(x, y, len(lab.labels), STRENGTHS[int(right.argmax())])
        return _floor(task, lab, baseline="tfidf", words=words, linear=linear)
    nothing = TfIdf((), (), np.zeros(0, dtype=np.float32))
    constant = Linear(np.zeros((len(share), 0), dtype=np.float32), np.log(share).astype(np.float32))
    return _floor(task, lab, baseline="majority", words=nothing, linear=constant)


def _words(task: Task, lab: Lab) -> Skin:
    documents = DocumentIndex(lab.documents.ids, Bm25.fit(lab.documents.texts))
    return draft(task, lab, "floor", base=None, searching=Searching(), documents=documents)


def _baseline(task: Task, lab: Lab) -> Skin:
    rows = lab.train[:_SEEN]
    empty: Output = {} if task.kind == "extract" else ""
    answers: list[tuple[Baseline, Output | None, list[Output]]] = [("constant", empty, [empty] * len(rows))]
    if task.kind == "extract":
        typical = _typical(lab.train)
        answers.append(("constant", typical, [typical] * len(rows)))
    else:
        answers.append(("copy", None, [e.text for e in rows]))
        answers.append(("lead", None, [lead(e.text) for e in rows]))
    scores = [lab.metric.aggregate(lab.metric.items(given, rows)) for _, _, given in answers]
    kind, constant, _ = answers[int(np.argmax(scores))]
    return _floor(task, lab, baseline=kind, constant=constant)


def _typical(rows: Sequence[Example]) -> Output:
    """The most frequent value of each field that most rows have."""
    values: dict[str, Counter[str]] = {}
    decoded: dict[str, Any] = {}
    for row in rows:
        for name, value in row.output.items() if isinstance(row.output, dict) else ():
            key = repr(value)
            decoded[key] = value
            values.setdefault(name, Counter())[key] += 1
    common = {name: counts for name, counts in values.items() if 2 * counts.total() > len(rows)}
    return {name: decoded[max(sorted(counts), key=counts.__getitem__)] for name, counts in common.items()}


def _floor(task: Task, lab: Lab, **parts: Any) -> Skin:
    return draft(task, lab, "floor", method="floor", base=None, **parts)
