"""Makes `replays.npz`: what six classifiers answer on public data. Labels are numbers; no row of any data is kept.

    PANDO_DATA=... python verify/make_pools.py

The classifiers stand for rungs: majority, naive Bayes on 60 rows, nearest neighbours on 300, and logistic regression on
150, 500 and 1,500. They are weak on purpose, so that their errors overlap as those of rungs do. The turns of a dialogue
(label: what the speaker is after) are a group.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

SETS = ("sms_spam", "sst2", "snips", "banking77", "uci_sentiment", "sgd_dialogues")
MOST = 2500


def rows(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.jsonl*")):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [json.loads(line) for line in text.splitlines()]
    return found


def turns(dialogues: list[dict[str, Any]], most: int = 8) -> list[dict[str, Any]]:
    """What a user says and is after at that moment, for the commonest intents."""
    found = []
    for dialogue in dialogues:
        for message in dialogue.get("messages", ()):  # services.jsonl lies beside
            for state in list(message.get("state", {}).values())[:1]:
                found.append({"text": message["content"], "label": state["intent"], "group": dialogue["id"]})
    common = {label for label, _ in Counter(row["label"] for row in found).most_common(most)}
    return [row for row in found if row["label"] in common]


def answers(texts: list[str], truth: np.ndarray, train: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """uint8 [6, len(pool)]"""
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline

    words = {"ngram_range": (1, 2), "sublinear_tf": True}
    models = [
        (DummyClassifier(), 1500),
        (make_pipeline(TfidfVectorizer(), MultinomialNB()), 60),
        (make_pipeline(TfidfVectorizer(**words), LogisticRegression(C=10, max_iter=500)), 150),
        (make_pipeline(TfidfVectorizer(), KNeighborsClassifier(3)), 300),
        (make_pipeline(TfidfVectorizer(**words), LogisticRegression(C=10, max_iter=500)), 500),
        (make_pipeline(TfidfVectorizer(**words), LogisticRegression(C=10, max_iter=500)), 1500),
    ]
    text = np.array(texts, dtype=object)
    fitted = [model.fit(text[train[:count]], truth[train[:count]]) for model, count in models]
    return np.array([model.predict(text[pool]) for model in fitted]).astype(np.uint8)


def main() -> None:
    data = Path(os.environ.get("PANDO_DATA", "../shared/data"))
    arrays: dict[str, np.ndarray] = {}
    for name in SETS:
        found = rows(data / name)
        found = turns(found) if name == "sgd_dialogues" else found
        labels = {label: code for code, label in enumerate(sorted({row["label"] for row in found}))}
        truth = np.array([labels[row["label"]] for row in found])
        # whole groups on one side, so that the pool's items are as dependent as they come
        groups = np.unique([str(row.get("group", i)) for i, row in enumerate(found)], return_inverse=True)[1]
        order = np.argsort(np.random.default_rng(0).permutation(groups.max() + 1)[groups], kind="stable")
        most = min(1500, len(found) // 4)
        train, pool = np.random.default_rng(1).permutation(order[:most]), order[most : most + MOST]
        arrays[f"{name}.truth"] = truth[pool].astype(np.uint8)
        arrays[f"{name}.answers"] = answers([row["text"] for row in found], truth, train, pool)
        if groups.max() + 1 < len(found):
            arrays[f"{name}.groups"] = np.unique(groups[pool], return_inverse=True)[1].astype(np.uint16)
        right = (arrays[f"{name}.answers"] == arrays[f"{name}.truth"]).mean(axis=1)
        print(f"{name}: {len(pool)} items, {len(labels)} labels, right {np.round(right, 3).tolist()}")
    np.savez_compressed(Path(__file__).with_name("replays.npz"), **arrays)


if __name__ == "__main__":
    main()
