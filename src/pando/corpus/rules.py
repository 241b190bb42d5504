"""Scores that the published quality rules compare with their thresholds (`thresholds.RULES`), and the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pando.corpus.repeats import repeated_ngrams, repeated_pieces
from pando.corpus.thresholds import RULES
from pando.corpus.words import I64, Words, pieces, spaced

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
SHORT_LINE = 30
# the ends of lines that end a sentence
_END = r"""[.'"!?]$"""
_SENTENCE = r"[.!?][\"'\x{201d}\x{2019})\]]*(\s|$)"
_PUNCTUATION = r"^[\p{P}\p{S}]+$"


def scores(text: pa.Array, families: tuple[str, ...], words: Words | None = None) -> pa.Table:
    """The scores that these families of rules need, one row a document; null where a ratio has no denominator.

    Args:
        text: [D] large strings.
        families: of `thresholds.RULES`.
        words: the words by another word function than white space.
    """
    if words is None:
        return pa.concat_tables([scores(piece, families, spaced(piece)) for piece in pieces(text)]).combine_chunks()
    found: dict[str, Any] = {}
    if "gopher" in families:
        found |= _gopher(text, words)
    if "gopher_repetition" in families:
        found |= _repetition(text, words)
    if "c4" in families:
        found |= _c4(text)
    if "fineweb" in families:
        found |= _fineweb(text, words)
    return pa.table({name: pa.array(np.asarray(values, np.float32)) for name, values in found.items()})


def decide(table: pa.Table, limits: Mapping[str, float]) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The first rule that drops each document.

    Args:
        table: scores, with a column for each rule in `limits`.
        limits: threshold by rule, in the order of `thresholds.RULES`.

    Returns:
        [D] place of the rule in the list of names, -1 where none drops it; and the names.
    """
    names = [name for name in RULES if name in limits]
    which = np.full(table.num_rows, -1, np.int32)
    for place, name in reversed(list(enumerate(names))):
        which[dropped(name, np.asarray(table.column(RULES[name].score)), limits[name])] = place
    return which, names


def dropped(name: str, score: npt.NDArray[Any], limit: float) -> npt.NDArray[np.bool_]:
    """[D] whether a rule with this limit drops a document of this score."""
    rule = RULES[name]
    limit = float(np.float32(limit))  # as the scores are kept
    if rule.side == "min":
        beyond = score <= limit if rule.inclusive else score < limit
    else:
        beyond = score >= limit if rule.inclusive else score > limit
    return np.asarray(beyond, bool)


def limits_of(use: tuple[str, ...], changed: Mapping[str, float]) -> dict[str, float]:
    """Threshold of every rule of these families, the published one unless changed."""
    return {name: changed.get(name, rule.limit) for name, rule in RULES.items() if rule.family in use}


def _gopher(text: pa.Array, words: Words) -> dict[str, Any]:
    symbol = words.of_distinct(pc.match_substring_regex(words.distinct, _PUNCTUATION))
    alphabetic = words.of_distinct(pc.match_substring_regex(words.distinct, r"\p{L}"))
    length = words.of_distinct(pc.utf8_length(words.distinct)).astype(np.float64)
    stop = words.of_distinct(pc.index_in(words.distinct, pa.array(STOP_WORDS, words.distinct.type)).fill_null(-1))
    real = _sum(words, ~symbol)
    every = words.count
    ends = pc.ends_with(text, "\n")  # a line break at the very end begins no line
    text_lines = pc.if_else(ends, pc.replace_substring_regex(text, r"\n\z", ""), text)
    lines, owner = _lines(text_lines, r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x{85}\x{2028}\x{2029}]")
    bullets = pc.match_substring_regex(lines, r"^\s*[•-]")
    dots = pc.match_substring_regex(lines, r"(\.\.\.|…)\s*$")
    many = np.bincount(owner, minlength=len(text))
    stops = sum((_sum(words, stop == place) > 0).astype(np.int64) for place in range(len(STOP_WORDS)))
    return {
        "words": real,
        "word_length": _ratio(_sum(words, length * ~symbol), real),
        "hashes": _ratio(_counted(text, "#"), every),
        "ellipses": _ratio(_counted(text, "...") + _counted(text, "…"), every),
        "bullet_lines": _ratio(np.bincount(owner, np.asarray(bullets), len(text)), many),
        "ellipsis_lines": _ratio(np.bincount(owner, np.asarray(dots), len(text)), many),
        "alphabetic_words": _ratio(_sum(words, alphabetic), every),
        "stop_words": stops,
    }


def _repetition(text: pa.Array, words: Words) -> dict[str, Any]:
    size = pc.utf8_length(text).to_numpy(zero_copy_only=False)
    paragraphs, owner = _lines(pc.utf8_trim_whitespace(text), r"\n{2,}")
    found: dict[str, Any] = {}
    for parted, whose, name in (
        (paragraphs, owner, "paragraph"),
        (*_lines(text, r"\n+"), "line"),
    ):
        again, chars = repeated_pieces(parted, whose, len(text))
        found[f"duplicate_{name}s"] = _ratio(again, np.bincount(whose, minlength=len(text)))
        found[f"duplicate_{name}_chars"] = _ratio(chars, size)
    return found | {name: _ratio(chars, size) for name, chars in repeated_ngrams(words).items()}


def _c4(text: pa.Array) -> dict[str, Any]:
    lower = pc.utf8_lower(text)
    return {
        "sentences": pc.count_substring_regex(text, _SENTENCE).to_numpy(zero_copy_only=False),
        "curly_brackets": _counted(text, "{"),
        "lorem_ipsum": _counted(lower, "lorem ipsum"),
    }


def _fineweb(text: pa.Array, words: Words) -> dict[str, Any]:
    lines, owner = _lines(text, r"\n")
    filled = np.asarray(pc.match_substring_regex(lines, r"\S"))
    lines, owner = lines.filter(pa.array(filled)), owner[filled]
    many = np.bincount(owner, minlength=len(text))
    ends = np.asarray(pc.match_substring_regex(lines, _END))
    short = pc.utf8_length(lines).to_numpy(zero_copy_only=False) <= SHORT_LINE
    _, chars = repeated_pieces(lines, owner, len(text))
    breaks = _counted(text, "\n")
    return {
        "punctuated_lines": _ratio(np.bincount(owner, ends, len(text)), many),
        "short_lines": _ratio(np.bincount(owner, short, len(text)), many),
        "duplicate_chars": _ratio(chars, pc.utf8_length(text).to_numpy(zero_copy_only=False) - breaks),
        "line_breaks": _ratio(breaks, words.count),
    }


def _lines(text: pa.Array, parting: str) -> tuple[pa.Array, I64]:
    """Pieces of the texts, and the document of each."""
    if parting == r"\n":
        lists = pc.split_pattern(text, "\n")
    else:
        lists = pc.split_pattern(pc.replace_substring_regex(text, parting, "\x00"), "\x00")
    return lists.flatten(), np.repeat(np.arange(len(text)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))


def _sum(words: Words, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[D] sums of a value of each word."""
    ends = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.asarray(ends[words.start[1:]] - ends[words.start[:-1]])


def _counted(text: pa.Array, what: str) -> npt.NDArray[Any]:
    return np.asarray(pc.count_substring(text, what).to_numpy(zero_copy_only=False))


def _ratio(above: Any, below: Any) -> npt.NDArray[np.float64]:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0))
