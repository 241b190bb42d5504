"""From scores of labels to probabilities: what a base says whatever the input is taken off, the rest is sharpened.

A label's prior starts from one of three: none; contextual, what the base gives to inputs without content (Zhao et al.
2021); batch, its mean over inputs (Zhou et al. 2023). One scale, and where it helps the priors, are fitted to labelled
select rows with a penalty that holds them where rows are few. Cross-validated log-probability picks among these.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pando.interface import Scores, Usage
from pando.skin import Prediction, Skin
from pando.skin.linear import softmax
from pando.skin.parts import Scoring
from pando.task.rows import Example

if TYPE_CHECKING:
    from pando.adapt.lab import Lab
    from pando.adapt.scorer import Evaluation

CONTENT_FREE = ("N/A", "", "[MASK]")
_FOLDS = 4
_PRIOR_SD = 1.0  # of a fitted logit around its start
_SCALE_SD = 2.0  # of the scale's logarithm
_MISSED = np.log(1e-3)  # what a label outside the shortlist is taken to be given


@dataclass(frozen=True)
class Calibrated:
    """A scoring, and the mean log-probability in nats that it gives to labels of held-out rows."""

    scoring: Scoring
    likelihood: float


def calibrate(
    skin: Skin, found: Evaluation, rows: Sequence[Example], contextual: np.ndarray | None = None
) -> Calibrated:
    """The best scoring for a skin that was evaluated with a plain one.

    Args:
        found: the evaluation, of `rows`.
        contextual: float64 [labels], as `content_free` gives it.
    """
    scores, truth = _scores(skin.labels, found.predictions, rows)
    weighed = np.isfinite(scores[np.arange(len(rows)), truth])
    missed = 1 - float(weighed.mean())
    scores, truth = scores[weighed], truth[weighed]
    everywhere = bool(np.isfinite(scores).all())
    if len(truth) < _FOLDS:
        return Calibrated(skin.scoring, -np.inf)
    starts = [np.zeros(len(skin.labels))]
    if contextual is not None:
        starts.append(contextual)
    if everywhere:  # the mean over a shortlist's inputs is no base rate: a label is there because it is likely
        starts.append(scores.mean(axis=0))
    options = list(product(starts, (True, False)))
    likelihoods = [_held_out(scores, truth, start, free) for start, free in options]
    best = int(np.argmax(likelihoods))
    prior, scale = _fit(scores, truth, *options[best])
    scoring = replace(skin.scoring, prior=dict(zip(skin.labels, prior.tolist(), strict=True)), scale=scale)
    return Calibrated(scoring, (1 - missed) * likelihoods[best] + missed * _MISSED)


def content_free(skin: Skin, lab: Lab) -> np.ndarray:
    """The mean score of every label over inputs without content, float64 [labels]. Billed."""
    everything = replace(skin, retrieval=None, scoring=replace(skin.scoring, prior={}, scale=1.0))
    start = time.perf_counter()
    means, usage = [], Usage()
    for text in CONTENT_FREE:
        inputs = dict.fromkeys(skin.prompt.inputs, text)
        answers = [lab.model.submit(request).result() for request in everything.ask(lab.model, inputs)]
        means.append(_log(everything.labels, everything.answer(inputs, answers)))
        usage += sum((a.usage for a in answers if isinstance(a, Scores)), Usage())
    lab.bill("build", time.perf_counter() - start, usage)
    found: np.ndarray = np.mean(means, axis=0)
    return found


def _scores(
    labels: Sequence[str], predictions: Sequence[Prediction], rows: Sequence[Example]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores up to a constant in each row, float64 [rows, labels], -inf where a label was not weighed; true labels."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([_log(labels, p) for p in predictions]), np.array([index[str(row.output)] for row in rows])


def _log(labels: Sequence[str], prediction: Prediction) -> np.ndarray:
    scores = prediction.scores or {}
    return np.array([np.log(max(scores[label], 1e-300)) if label in scores else -np.inf for label in labels])


def _held_out(scores: np.ndarray, truth: np.ndarray, start: np.ndarray, free: bool) -> float:
    """Mean log-probability of labels by fits that did not see them."""
    fold = np.arange(len(truth)) % _FOLDS
    said = np.zeros(len(truth))
    for i in range(_FOLDS):
        new = fold == i
        prior, scale = _fit(scores[~new], truth[~new], start, free)
        p = softmax(scale * (scores[new] - prior))
        said[new] = np.log(np.maximum(p[np.arange(new.sum()), truth[new]], 1e-6))
    return float(said.mean())


def _fit(scores: np.ndarray, truth: np.ndarray, start: np.ndarray, free: bool) -> tuple[np.ndarray, float]:
    """Prior and scale of highest penalised likelihood; the prior stays at its start unless it is free."""
    from scipy.optimize import minimize

    away = np.where(np.isfinite(scores), 0.0, -np.inf)
    evidence = np.where(np.isfinite(scores), scores - start, 0.0)
    wanted = np.eye(scores.shape[1])[truth]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        shift, log_scale = x[:-1], x[-1]
        p = softmax(np.exp(log_scale) * evidence - shift + away)
        value = -np.log(np.maximum(p[wanted > 0], 1e-300)).sum()
        value += (shift**2).sum() / (2 * _PRIOR_SD**2) + log_scale**2 / (2 * _SCALE_SD**2)
        error = p - wanted
        slope = np.exp(log_scale) * (error * evidence).sum() + log_scale / _SCALE_SD**2
        shifts = (shift / _PRIOR_SD**2 - error.sum(axis=0)) if free else np.zeros_like(shift)
        return value, np.append(shifts, slope)

    found = minimize(loss, np.zeros(scores.shape[1] + 1), jac=True, method="L-BFGS-B").x
    scale = float(np.exp(found[-1]))
    return start + found[:-1] / scale, scale
