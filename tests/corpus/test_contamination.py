from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from pando.corpus import contamination
from tests.corpus.texts import WORDS, document


def item(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randint(0, 99)) for _ in range(words))


def changed(text: str, every: int, seed: int) -> str:
    draw = random.Random(seed)
    words = text.split()
    for place in draw.sample(range(len(words)), len(words) // every):
        words[place] = "elsewhere"
    return " ".join(words)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = contamination.index([(f"t:{n}", item(n, 20 + n % 40)) for n in range(100)] + [("t:short", "too few words")])
    assert len(made.names) == 100 and made.short == 1
    where = tmp_path_factory.mktemp("index") / "index.npz"
    made.save(where)
    return where


def scores(texts: list[str], path: Path) -> tuple[list[float], list[str | None]]:
    table = contamination.scores(pa.array(texts, pa.large_string()), str(path))
    return table.column("contamination").to_pylist(), table.column("contamination_item").to_pylist()


def test_verbatim_items_are_found_wherever_they_stand(path: Path) -> None:
    texts = [f"{document(n, 40)} {item(n, 20 + n % 40).upper()}! {document(n + 500, 40)}" for n in range(100)]
    found, names = scores(texts, path)
    assert found == [1.0] * 100 and names == [f"t:{n}" for n in range(100)]


def test_items_with_one_word_in_ten_changed_are_found(path: Path) -> None:
    found, _ = scores([changed(item(n, 20 + n % 40), 10, n) for n in range(100)], path)
    assert sum(score >= 0.45 for score in found) >= 95


def test_other_texts_have_nothing_of_them(path: Path) -> None:
    found, names = scores([document(n, 60) for n in range(1000, 1050)] + [""], path)
    assert found == [0.0] * 51 and names == [None] * 51


def test_an_item_spread_over_a_book_is_no_copy(path: Path) -> None:
    words = item(3, 23).split()
    pieces = [" ".join(words[at : at + 6]) + " " + document(at, 60) for at in range(0, 18, 6)]
    assert scores([" ".join(pieces)], path)[0][0] < 0.45


def test_the_hash_stands_for_the_items() -> None:
    one, two = contamination.index([("a", item(1, 20))]), contamination.index([("a", item(2, 20))])
    assert one.hash != two.hash and one.hash == contamination.index([("a", item(1, 20))]).hash
