from __future__ import annotations

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pando.corpus import words


def slow(text: str) -> str:
    """`normal` of a text without scripts that write no spaces, one character at a time."""
    kept = "".join(one if unicodedata.category(one)[0] in "LMN" else " " for one in text.lower())
    return re.sub(" +", " ", kept).strip(" ")


@given(
    st.lists(
        st.text(st.characters(max_codepoint=0x24F, exclude_characters="\u0130"))
        | st.sampled_from(["a\u2014b \u201cc\u201d", "", "  ", "\u00a0x"])
    )
)
def test_one_spelling_for_comparing(texts: list[str]) -> None:
    assert words.normal(pa.array(texts, pa.large_string())).to_pylist() == [slow(text) for text in texts]


def test_slices_and_characters_of_scripts_without_spaces() -> None:
    texts = pa.array(["drop", "One, TWO\u2014three", "\u5c71\u694a\u3002\u6a39", "x"], pa.large_string()).slice(1, 2)
    assert words.normal(texts).to_pylist() == ["one two three", "\u5c71 \u694a \u6a39"]
    assert words.plain(texts).count.tolist() == [3, 3] and words.spaced(texts).count.tolist() == [2, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_ngrams_are_equal_where_their_words_are_and_stay_in_their_document(n: int) -> None:
    texts = ["a b c a b c d", "", "c d", "a b c"]
    found = words.plain(pa.array(texts, pa.large_string()))
    made, within = words.ngrams(found.hashes(), found.start, n)
    flat = [word for text in texts for word in text.split()]
    seen: dict[tuple[str, ...], np.uint64] = {}
    for place in np.flatnonzero(within).tolist():
        gram = tuple(flat[place : place + n])
        assert seen.setdefault(gram, made[place]) == made[place]
    assert len(set(seen.values())) == len(seen)
    assert within.sum() == sum(max(0, len(text.split()) - n + 1) for text in texts)
