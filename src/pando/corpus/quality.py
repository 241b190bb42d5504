"""A classifier of one's own: hashed words and word pairs, logistic regression, weights in safetensors.

Trained by `pando corpus train-quality` on texts that are wanted and texts that are not; its score is the probability
that a text is wanted, kept for every document so that another threshold needs no second reading.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pando.errors import DataError
from pando.files import atomic_write, check_format

FORMAT_VERSION = 1
_FEATURES = 2**18
_MOST = 20_000  # characters of a document that are looked at


def train(good: Sequence[str], bad: Sequence[str], out: Path, seed: int = 0) -> dict[str, float]:
    """Trains a classifier and writes its file.

    Args:
        good, bad: texts that are wanted and not; a tenth of each, by position, is held out to measure it.
        out: a `.safetensors` file.

    Returns:
        Documents trained on, and accuracy and area under the ROC curve on those held out.

    Raises:
        DataError: fewer than 20 texts on a side.
    """
    from safetensors.numpy import save
    from sklearn.linear_model import SGDClassifier
    from sklearn.metrics import accuracy_score, roc_auc_score

    if min(len(good), len(bad)) < 20:
        raise DataError(f"a classifier needs at least 20 texts on each side, and has {len(good)} and {len(bad)}")
    texts, wanted = [*good, *bad], np.array([1] * len(good) + [0] * len(bad))
    held = np.concatenate([np.arange(len(good)), np.arange(len(bad))]) % 10 == 9
    features = _features(texts)
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=20, random_state=seed, class_weight="balanced")
    model.fit(features[~held], wanted[~held])
    sure = model.predict_proba(features[held])[:, 1]
    weights = {"weights": model.coef_[0].astype(np.float32), "bias": model.intercept_.astype(np.float32)}
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, save(weights, {"pando_quality": str(FORMAT_VERSION)}))
    return {
        "documents": len(texts),
        "held_out": int(held.sum()),
        "accuracy": float(accuracy_score(wanted[held], sure > 0.5)),
        "auc": float(roc_auc_score(wanted[held], sure)),
    }


def scores(text: pa.Array, classifier: str) -> pa.Table:
    """The probability that each document is wanted."""
    weights, bias = _load(classifier)
    raw = np.asarray(_features(text.to_pylist()) @ weights, np.float64) + float(bias)
    return pa.table({"quality": pa.array((1 / (1 + np.exp(-raw))).astype(np.float32))})


def _features(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(n_features=_FEATURES, ngram_range=(1, 2), alternate_sign=False)
    return hashing.transform(text[:_MOST] for text in texts)


@functools.lru_cache(2)
def _load(path: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            found = file.metadata() or {}
            if "pando_quality" not in found:
                raise DataError(f"{path} is no quality classifier: make one with `pando corpus train-quality`")
            check_format(f"the classifier {path}", int(found["pando_quality"]), FORMAT_VERSION)
            return file.get_tensor("weights"), file.get_tensor("bias")[0]
    except FileNotFoundError:
        raise DataError(f"the classifier {path} is not there: make it with `pando corpus train-quality`") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"the classifier {path} is damaged: {error}") from None
