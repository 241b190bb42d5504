"""Metrics of generated text, with the counts of their own libraries: ROUGE-L, chrF and BLEU.

`Chrf` and `Bleu` over many items are the corpus scores of sacrebleu (default settings), never means of sentence
scores: the sentences' counts are summed first.
"""

from __future__ import annotations

import numpy as np

from pando.task.metrics import ItemScore, MeanMetric, Metric, ratio
from pando.task.rows import Example, Output

_ORDERS = 4  # BLEU's n-grams of words
_CHAR_ORDERS = 6  # chrF's n-grams of characters
_BETA_SQUARED = 4  # chrF weighs recall twice


class RougeL(MeanMetric):
    """Mean ROUGE-L F1 (Lin 2004), by rouge_score without stemming; it sees only the letters a-z and digits."""

    name = "rouge_l"

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(["rougeL"])

    def _value(self, prediction: Output, example: Example) -> float:
        return float(self._scorer.score(str(example.output), str(prediction))["rougeL"].fmeasure)


class Chrf(Metric):
    """chrF2 (Popović 2015); `stats` are n-grams answered, wanted and shared, by length 1 to 6."""

    name = "chrf"
    kind = "corpus"

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        from sacrebleu.metrics.helpers import extract_all_char_ngrams

        stats: list[int] = []
        answered = extract_all_char_ngrams("" if prediction is None else str(prediction), _CHAR_ORDERS)
        wanted = extract_all_char_ngrams(str(example.output), _CHAR_ORDERS)
        for have, want in zip(answered, wanted, strict=True):
            # as sacrebleu: an order that the reference is too short for does not count against the answer
            stats += [have.total() if want else 0, want.total(), (have & want).total()]
        return {"value": float(self._score(np.array([stats], dtype=np.float64), np.ones(1))[0]), "stats": stats}

    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        have, want, shared = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
        both = (have > 0) & (want > 0)
        orders = both.sum(axis=1)
        precision = ratio((ratio(shared, have) * both).sum(axis=1), orders)
        recall = ratio((ratio(shared, want) * both).sum(axis=1), orders)
        return ratio((1 + _BETA_SQUARED) * precision * recall, _BETA_SQUARED * precision + recall)


class Bleu(Metric):
    """BLEU (Papineni et al. 2002; 13a tokens, exponential smoothing).

    `stats` are the right and all n-grams by length 1 to 4, then the answer's and the reference's words.
    """

    name = "bleu"
    kind = "corpus"

    def __init__(self) -> None:
        from sacrebleu.metrics.bleu import BLEU

        self._bleu = BLEU(effective_order=True)  # concerns only the value of a sentence taken alone

    def _item(self, prediction: Output | None, example: Example) -> ItemScore:
        text = "" if prediction is None else str(prediction)
        score = self._bleu.sentence_score(text, [str(example.output)])
        return {"value": score.score / 100, "stats": [*score.counts, *score.totals, score.sys_len, score.ref_len]}

    def _score(self, sums: np.ndarray, n: np.ndarray) -> np.ndarray:
        right, total = sums[:, :_ORDERS], sums[:, _ORDERS : 2 * _ORDERS]
        words, wanted = sums[:, -2], sums[:, -1]
        # each order without a hit halves once more what stands in for its one hit
        misses = np.cumsum(right == 0, axis=1)
        precision = ratio(np.where(right > 0, right, 0.5**misses), total)
        with np.errstate(divide="ignore"):
            mean_log = np.log(precision).mean(axis=1)
        brevity = np.exp(np.minimum(0.0, 1 - ratio(wanted, words)))
        return np.where(right.any(axis=1), brevity * np.exp(mean_log), 0.0)
