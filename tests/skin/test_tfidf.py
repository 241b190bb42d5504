"""Our TF-IDF gives scikit-learn's numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pando.skin.tfidf import TfIdf

TEXTS = [
    "Good morning, London!",
    "bad  bad\tday",
    "a b c",
    "",
    "naïve café 東京 is fun",
    "Good bad GOOD",
    "x-ray of 2 cats",
]


def reference(train: list[str], texts: list[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    union = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
    )
    dense: np.ndarray = union.fit(train).transform(texts).toarray()
    return dense


def test_vocabulary_and_values_are_those_of_scikit_learn() -> None:
    ours = TfIdf.fit(TEXTS)(TEXTS)
    assert ours.shape[1] > 100
    np.testing.assert_allclose(ours.toarray(), reference(TEXTS, TEXTS), atol=1e-6)


@settings(max_examples=60)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
def test_any_text_has_the_values_of_scikit_learn(texts: list[str]) -> None:
    np.testing.assert_allclose(TfIdf.fit(TEXTS)(texts).toarray(), reference(TEXTS, texts), atol=1e-6)


def test_text_of_unknown_words_is_the_zero_vector() -> None:
    words = TfIdf.fit(["alpha beta"])
    assert words(["zzz"]).nnz == 0
    assert words([]).shape == (0, len(words.idf))
