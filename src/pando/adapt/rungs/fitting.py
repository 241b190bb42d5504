"""Logistic regression for floors and probes, by scikit-learn; what it finds is kept as plain numbers (`Linear`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pando.skin.linear import Linear
from pando.task.rows import Example

FOLDS = 5
JUDGED = 2000  # rows that settings are compared on
_ITERATIONS = 1000
_PENALTIES = (0.1, 1.0, 10.0)  # on standardised columns, each row's share


def classes_of(rows: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """Index of each row's label, int [n]."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[str(row.output)] for row in rows])


def fit_linear(x: Any, y: np.ndarray, classes: int, strength: float) -> Linear:
    """Multinomial logistic regression with an L2 penalty, of sparse `x` or of dense columns of like scale.

    Args:
        y: int [n] below `classes`; a class without rows is never answered.
        strength: C, the inverse of the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(x, y)
    weight = np.zeros((classes, x.shape[1]), dtype=np.float32)
    bias = np.full(classes, -1e9, dtype=np.float32)
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row of coefficients tells the second class from the first
        coefficients, intercept = np.vstack([0 * coefficients, coefficients]), np.array([0.0, intercept[0]])
    weight[model.classes_], bias[model.classes_] = coefficients, intercept
    return Linear(weight, bias)


def cross_validate(x: Any, y: np.ndarray, strengths: Sequence[float], seed: int) -> np.ndarray:
    """Log-probability in nats that classifiers fitted without a row give to its label, and whether they get it right:
    float64 [strengths, 2], means over (at most `JUDGED`) rows.
    """
    kept = np.random.default_rng(seed).permutation(len(y))[:JUDGED]
    x, y = x[kept], y[kept]
    found: list[np.ndarray] = []
    for fit, judge in _folds(y):
        known, new = _compact(x[fit], x[judge])
        rows = []
        for strength in strengths:
            p = fit_linear(known, y[fit], int(y.max()) + 1, strength).probabilities(new)
            said = np.log(np.maximum(p[np.arange(len(judge)), y[judge]], 1e-6))
            rows.append([said, p.argmax(axis=1) == y[judge]])
        found.append(np.array(rows, dtype=np.float64))
    return np.concatenate(found, axis=2).mean(axis=2) if found else np.zeros((len(strengths), 2))


def left_out_error(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error of ridge regression onto labels for rows left out one at a time, at the best of several
    penalties: one decomposition gives all of them, so that many inputs can be compared.

    Args:
        x: float64 [n, d], standardised.
    """
    wanted = np.eye(int(y.max()) + 1)[y]
    centre = wanted.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    turned = x @ vectors
    target = turned.T @ (wanted - centre)
    errors = []
    for penalty in _PENALTIES:
        shrunk = turned / (values + penalty * len(y))
        leverage = (shrunk * turned).sum(axis=1) + 1 / len(y)
        missed = (wanted - centre - shrunk @ target) / (1 - leverage)[:, None]
        errors.append(float((missed**2).sum(axis=1).mean()))
    return min(errors)


def _folds(y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to judge by. Every label is spread over the folds; one with a single row is fitted on."""
    fold = np.full(len(y), -1)
    start = 0
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        if len(rows) > 1:
            fold[rows] = (start + np.arange(len(rows))) % FOLDS
            start += len(rows)
    for i in range(FOLDS):
        if (fold == i).any() and len(np.unique(y[fold != i])) > 1:
            yield np.flatnonzero(fold != i), np.flatnonzero(fold == i)


def _compact(known: Any, new: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same inner products in as many columns as there are known rows, where there are more columns than that:
    all that a penalised linear fit sees (Kimeldorf and Wahba 1971), at a fraction of the time.
    """
    if known.shape[1] <= known.shape[0]:
        return known, new
    gram, cross = known @ known.T, new @ known.T
    if not isinstance(gram, np.ndarray):
        gram, cross = gram.toarray(), cross.toarray()
    values, vectors = np.linalg.eigh(gram)
    size = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
    return vectors * size, cross @ (vectors / size)
