"""Which rows are near, and which labels are worth scoring."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pando.skin.parts import Demonstration
from pando.skin.retrieval import Retrieval
from pando.skin.tfidf import TfIdf

ROWS = [
    ("my card was stolen", "stolen"),
    ("someone has stolen my new card", "stolen"),
    ("what is the exchange rate", "rate"),
    ("top up by cheque", "top_up"),
    ("the rate for euros today", "rate"),
]
LABELS = ["rate", "stolen", "top_up", "zero"]


def index(shots: int = 2, shortlist: int = 0) -> Retrieval:
    texts = [text for text, _ in ROWS]
    words = TfIdf.fit(texts)
    labels = np.array([LABELS.index(label) for _, label in ROWS], dtype=np.int32)
    rows = tuple(Demonstration({"text": text}, label) for text, label in ROWS)
    return Retrieval(words, words(texts).astype(np.float32), labels, rows, shots, shortlist)


def test_the_most_similar_row_is_shown_last() -> None:
    shown = [row.inputs["text"] for row in index(3).nearest("stolen card")]
    assert shown[2] == "my card was stolen"
    assert shown[1] == "someone has stolen my new card"
    assert len(shown) == 3


def test_shortlist_has_the_labels_of_near_rows_in_the_skins_order() -> None:
    assert index(shortlist=2).candidates("exchange rates for a stolen card", LABELS) == ["rate", "stolen"]
    assert index(shortlist=1).candidates("top up", LABELS) == ["top_up"]


def test_shortlist_of_an_input_like_no_row_has_the_most_frequent_labels() -> None:
    assert index(shortlist=2).candidates("qqq", LABELS) == ["rate", "stolen"]


def test_no_shortlist_where_it_would_not_shorten() -> None:
    assert index(shortlist=0).candidates("card", LABELS) == LABELS
    assert index(shortlist=4).candidates("card", LABELS) == LABELS


def test_ten_of_77_intents_hold_the_right_one(data: Path) -> None:
    import gzip

    def read(split: str, every: int) -> list[dict[str, str]]:
        with gzip.open(data / "banking77" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file][::every]

    train, test = read("train", 5), read("test", 15)
    labels = sorted({row["label"] for row in train})
    texts = [row["text"] for row in train]
    words = TfIdf.fit(texts)
    y = np.array([labels.index(row["label"]) for row in train], dtype=np.int32)
    found = Retrieval(words, words(texts).astype(np.float32), y, None, 0, 10)
    hits = [row["label"] in found.candidates(row["text"], labels) for row in test]
    assert np.mean(hits) > 0.95
