from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pando.corpus import near
from pando.corpus.parts import write_table
from tests.corpus.texts import document

pytest.importorskip("daft")


def linked(texts: list[str], folder: Path, alive: list[bool] | None = None, ranges: int = 1) -> list[int]:
    table = near.bands(pa.array(texts, pa.large_string()), 14, 8, 5, 1)
    half = len(texts) // 2
    write_table(folder / "a.parquet", table.slice(0, half))
    write_table(folder / "b.parquet", table.slice(half))
    near.save_array(folder / "alive.npy", np.array(alive if alive is not None else [True] * len(texts)))
    parts = [[str(folder / "a.parquet"), half], [str(folder / "b.parquet"), len(texts) - half]]
    links = []
    for band in range(14):
        for place in range(ranges):
            out = folder / f"{band}-{place}.npy"
            task = {"band": band, "range": place, "ranges": ranges, "parts": parts}
            near.link({**task, "alive": str(folder / "alive.npy"), "out": str(out)})
            links.append(np.load(out))
    return near.groups(links, len(texts)).tolist()


def test_copies_with_small_changes_are_one_group_and_others_none(tmp_path: Path) -> None:
    texts = [document(seed, 24) for seed in range(40)]
    copies = []
    for seed in (3, 7, 11):
        words = texts[seed].split(" ")
        words[random.Random(seed).randrange(len(words))] = "changed"
        copies.append(" ".join(words).upper())
    found = linked(texts + copies, tmp_path)
    assert found == [*range(40), 3, 7, 11]


def test_documents_without_words_are_like_their_copies_alone(tmp_path: Path) -> None:
    assert linked(["...", "* * *", "---", "* * *", "-- -"], tmp_path) == [0, 1, 2, 1, 4]


def test_ranges_of_hashes_change_nothing(tmp_path: Path) -> None:
    texts = [document(seed % 9, 24) for seed in range(30)]
    assert linked(texts, tmp_path) == linked(texts, tmp_path, ranges=5) == [seed % 9 for seed in range(30)]


def test_what_was_dropped_before_takes_no_part(tmp_path: Path) -> None:
    texts = [document(1, 24)] * 4
    assert linked(texts, tmp_path, [False, True, True, True]) == [0, 1, 1, 1]


def test_chains_are_one_group() -> None:
    links = [np.array([[0, 4], [2, 3]]), np.array([[4, 5]])]
    assert near.groups(links, 7).tolist() == [0, 1, 2, 2, 0, 0, 6]
    assert near.groups([], 0).tolist() == []


def test_recall_follows_the_curve(tmp_path: Path) -> None:
    """Of pairs with Jaccard similarity s, 1 - (1 - s^8)^14 share a band."""
    draw = random.Random(9)
    base = [document(seed, 40) for seed in range(200)]
    copies, expected = [], []
    for text in base:
        words = text.lower().replace(".", "").split()
        other = list(words)
        for place in draw.sample(range(len(words)), len(words) // 25):
            other[place] = f"w{place}"
        grams = [{" ".join(one[at : at + 5]) for at in range(len(one) - 4)} for one in (words, other)]
        expected.append(1 - (1 - (len(grams[0] & grams[1]) / len(grams[0] | grams[1])) ** 8) ** 14)
        copies.append(" ".join(other))
    found = linked(base + copies, tmp_path)
    recall = sum(found[200 + place] == place for place in range(200)) / 200
    wanted = sum(expected) / 200
    assert 0.3 < wanted < 0.98 and abs(recall - wanted) < 0.1


def test_scripts_without_spaces_and_other_punctuation_compare_too(tmp_path: Path) -> None:
    chinese = "山楊樹林是一個有著四萬七千個樹幹的單一生物體\uff0c它們共享同一個根系。" * 4
    quoted = document(5, 24)
    texts = [chinese, quoted, chinese.replace("\uff0c", "、"), quoted.replace(" ", " — “", 3)]
    assert linked(texts, tmp_path)[2] == 0
