"""Near-duplicates: all that are, none that are not, whatever the order."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pando.task.near import THRESHOLD, find_alike, fold

WORDS = [
    "card",
    "lost",
    "my",
    "please",
    "transfer",
    "money",
    "when",
    "does",
    "it",
    "arrive",
    "bank",
    "new",
    "top",
    "up",
]


def jaccard(a: str, b: str) -> float:
    sets = [{text[i : i + 5] for i in range(max(1, len(text) - 4))} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def alike(texts: list[str]) -> set[tuple[str, str]]:
    found = find_alike(texts)
    name = dict(zip(found.classes, map(fold, texts), strict=True))
    return {(min(name[a], name[b]), max(name[a], name[b])) for a, b in found.pairs}


def sentences(n: int, words: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(n)]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Where is my card?", "  where is my CARD!!", True),
        ("ﬁne “quoted” text", "fine 'quoted' text", True),
        ("Straße", "STRASSE", True),
        ("pay 12", "pay 21", False),
        ("a < b", "a > b", False),
        (":-)", ":-(", False),
        ("कि", "का", False),
        ("猫が好き", "犬が好き", False),
    ],
)
def test_folding_forgives_case_and_punctuation_only(a: str, b: str, same: bool) -> None:
    assert (fold(a) == fold(b)) is same


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=2, max_size=30))
def test_few_texts_agree_with_comparing_all_pairs(texts: list[str]) -> None:
    folded = sorted(set(map(fold, texts)))
    exact = {(a, b) for a in folded for b in folded if a < b and jaccard(a, b) >= THRESHOLD}
    found = alike(texts)
    assert found <= exact
    certain = {pair for pair in exact if jaccard(*pair) >= 0.9}  # 0.99998 of those are candidates
    assert certain <= found


def test_nearly_all_pairs_above_the_threshold_are_found() -> None:
    rng = np.random.default_rng(1)
    many = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(3000)]
    drawn = [rng.choice(many, 40).tolist() for _ in range(400)]
    base = [" ".join(words) for words in drawn]
    edited = [" ".join([*words[:20], "another", *words[21:]]) for words in drawn]
    wanted = {(min(a, b), max(a, b)) for a, b in zip(base, edited, strict=True) if jaccard(a, b) >= THRESHOLD}
    assert len(wanted) > 300
    assert len(wanted - alike(base + edited)) <= 3


@given(st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_order_does_not_matter(random: object) -> None:
    texts = sentences(60, 6) + [text + " now" for text in sentences(60, 6)]
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert alike(shuffled) == alike(texts)


def test_a_preamble_that_all_texts_share_does_not_make_them_alike() -> None:
    preamble = "Read the message of the customer below with care and then decide what it is about. "
    texts = [preamble * 5 + text for text in sentences(300, 12)]
    assert not find_alike(texts).pairs
    close = f"{texts[0]} {texts[0][-20:]}"
    assert len(find_alike([*texts, close]).pairs) == 1


def test_twenty_thousand_texts_take_seconds() -> None:
    start = time.process_time()
    find_alike([f"{text} {i}" for i, text in enumerate(sentences(20_000, 12))])
    assert time.process_time() - start < 10


def test_a_flood_of_look_alikes_stays_fast() -> None:
    newsletter = " ".join(f"item {i * i} of this week's news" for i in range(40))
    texts = sentences(1000, 12) + [f"{newsletter} {i:05d}" for i in range(200)]
    assert len({pair for pair in alike(texts) if "news" in pair[0]}) > 199
    start = time.process_time()
    find_alike([f"{newsletter} {i:05d}" for i in range(20_000)])
    assert time.process_time() - start < 20


def test_no_texts_and_one_text() -> None:
    assert find_alike([]).pairs == [] and find_alike(["a"]).classes == [0]
    assert find_alike(["", " ", "?"]).classes in ([0, 0, 1], [1, 1, 0])
