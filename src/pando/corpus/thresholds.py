"""The published thresholds of the quality rules: which score, on which side of which number, and from which paper.

- gopher, gopher_repetition: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training
  Gopher" (arXiv 2112.11446), section A1.1 and Table A1.
- c4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (JMLR 21),
  section 2.2: the rules that drop a page (its rules for single lines are not applied).
- fineweb: Penedo et al. 2024, "The FineWeb Datasets" (arXiv 2406.17557), section 3.6, with datatrove's fourth rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """A document is dropped if its score lies beyond the limit.

    Attributes:
        family: the set that the rule belongs to.
        score: the column of the score.
        side: "min" drops scores below the limit, "max" those above.
        limit: the published number.
        inclusive: whether a score equal to the limit is dropped too.
    """

    family: str
    score: str
    side: Literal["min", "max"]
    limit: float
    inclusive: bool = False


RULES: dict[str, Rule] = {
    "gopher_min_words": Rule("gopher", "words", "min", 50),
    "gopher_max_words": Rule("gopher", "words", "max", 100_000),
    "gopher_min_word_length": Rule("gopher", "word_length", "min", 3),
    "gopher_max_word_length": Rule("gopher", "word_length", "max", 10),
    "gopher_hashes": Rule("gopher", "hashes", "max", 0.1),
    "gopher_ellipses": Rule("gopher", "ellipses", "max", 0.1),
    "gopher_bullet_lines": Rule("gopher", "bullet_lines", "max", 0.9),
    "gopher_ellipsis_lines": Rule("gopher", "ellipsis_lines", "max", 0.3),
    "gopher_alphabetic_words": Rule("gopher", "alphabetic_words", "min", 0.8),
    "gopher_stop_words": Rule("gopher", "stop_words", "min", 2),
    "repetition_paragraphs": Rule("gopher_repetition", "duplicate_paragraphs", "max", 0.3),
    "repetition_paragraph_chars": Rule("gopher_repetition", "duplicate_paragraph_chars", "max", 0.2),
    "repetition_lines": Rule("gopher_repetition", "duplicate_lines", "max", 0.3),
    "repetition_line_chars": Rule("gopher_repetition", "duplicate_line_chars", "max", 0.2),
    "repetition_top_2": Rule("gopher_repetition", "top_2_gram", "max", 0.2),
    "repetition_top_3": Rule("gopher_repetition", "top_3_gram", "max", 0.18),
    "repetition_top_4": Rule("gopher_repetition", "top_4_gram", "max", 0.16),
    "repetition_5": Rule("gopher_repetition", "duplicate_5_grams", "max", 0.15),
    "repetition_6": Rule("gopher_repetition", "duplicate_6_grams", "max", 0.14),
    "repetition_7": Rule("gopher_repetition", "duplicate_7_grams", "max", 0.13),
    "repetition_8": Rule("gopher_repetition", "duplicate_8_grams", "max", 0.12),
    "repetition_9": Rule("gopher_repetition", "duplicate_9_grams", "max", 0.11),
    "repetition_10": Rule("gopher_repetition", "duplicate_10_grams", "max", 0.10),
    "c4_sentences": Rule("c4", "sentences", "min", 5),
    "c4_curly_brackets": Rule("c4", "curly_brackets", "max", 0),
    "c4_lorem_ipsum": Rule("c4", "lorem_ipsum", "max", 0),
    "fineweb_punctuated_lines": Rule("fineweb", "punctuated_lines", "min", 0.12, inclusive=True),
    "fineweb_short_lines": Rule("fineweb", "short_lines", "max", 0.67, inclusive=True),
    "fineweb_duplicate_chars": Rule("fineweb", "duplicate_chars", "max", 0.01, inclusive=True),
    "fineweb_line_breaks": Rule("fineweb", "line_breaks", "max", 0.3),
}
