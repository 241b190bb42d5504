"""The vectorised rules against the same rules written out for one document."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from pando.corpus import rules
from pando.corpus.thresholds import RULES
from tests.corpus.texts import document

FAMILIES = ("gopher", "gopher_repetition", "c4", "fineweb")
STOP = set(rules.STOP_WORDS)


def slow(text: str) -> dict[str, float]:
    words = text.split()
    real = [word for word in words if not all(unicodedata.category(one)[0] in "PS" for one in word)]
    lines = text.splitlines()
    found = {
        "words": len(real),
        "word_length": sum(map(len, real)) / len(real),
        "hashes": text.count("#") / len(words),
        "ellipses": (text.count("...") + text.count("…")) / len(words),
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / len(words),
        "stop_words": len(STOP & set(words)),
    }
    import re

    for name, parting in (("paragraph", r"\n{2,}"), ("line", r"\n+")):
        pieces, seen, count, chars = re.split(parting, text.strip() if name == "paragraph" else text), set(), 0, 0
        for piece in pieces:
            if piece in seen:
                count, chars = count + 1, chars + len(piece)
            seen.add(piece)
        found[f"duplicate_{name}s"] = count / len(pieces)
        found[f"duplicate_{name}_chars"] = chars / len(text)
    for n in (2, 3, 4):
        grams = [" ".join(words[at : at + n]) for at in range(len(words) - n + 1)]
        top, times = Counter(grams).most_common(1)[0] if grams else ("", 0)
        found[f"top_{n}_gram"] = len(top) * times / len(text)
    for n in range(5, 11):
        seen, chars, at = set(), 0, 0
        while at < len(words) - n + 1:
            gram = "".join(words[at : at + n])
            if gram in seen:
                chars, at = chars + len(gram), at + n
            else:
                seen.add(gram)
                at += 1
        found[f"duplicate_{n}_grams"] = chars / len(text)
    return found


def samples() -> list[str]:
    draw = random.Random(5)
    made = [document(seed, draw.randint(1, 30)) for seed in range(60)]
    made += [f"{text}\n{text}" for text in made[:8]]
    made += ["\n".join(f"- item {draw.randint(0, 9)} ..." for _ in range(30)) for _ in range(4)]
    made += [document(77, 9) + "\n\n"]
    made += ["one two three four five six " * 40, "# " * 60 + "word", "ünïcödé wörds … " * 30, "a\n\n\nb\n\nb a the b"]
    made += [" ".join(draw.choice("ab") for _ in range(draw.randint(12, 400))) for _ in range(20)]
    return made


def test_scores_are_those_of_the_rules_written_out() -> None:
    texts = samples()
    table = rules.scores(pa.array(texts, pa.large_string()), FAMILIES)
    for row, text in enumerate(texts):
        for name, value in slow(text).items():
            assert table.column(name)[row].as_py() == pytest.approx(value, abs=1e-6), (name, text[:80])


def test_each_rule_drops_on_its_side_of_the_published_number() -> None:
    for name, rule in RULES.items():
        step = max(0.001, rule.limit * 1e-5)
        beyond = np.array([rule.limit - step, rule.limit, rule.limit + step], np.float32)
        found = rules.dropped(name, beyond, rule.limit).tolist()
        outside = [True, rule.inclusive, False] if rule.side == "min" else [False, rule.inclusive, True]
        assert found == outside, name


def test_prose_stays_and_noise_goes() -> None:
    prose, short, noise = document(1, 20), "Too short a text to be kept.", "buy now! " * 100
    table = rules.scores(pa.array([prose, short, noise], pa.large_string()), FAMILIES)
    limits = rules.limits_of(("gopher", "gopher_repetition"), {})
    which, names = rules.decide(table, limits)
    assert which[0] == -1 and names[which[1]] == "gopher_min_words" and which[2] >= 0
    changed = rules.limits_of(("gopher",), {"gopher_min_words": 3.0})
    assert changed["gopher_min_words"] == 3.0 and "repetition_5" not in changed


def test_no_documents_and_empty_ones_are_no_trouble() -> None:
    assert rules.scores(pa.array([], pa.large_string()), FAMILIES).num_rows == 0
    table = rules.scores(pa.array(["", "  \n "], pa.large_string()), FAMILIES)
    assert table.num_rows == 2 and table.column("words").to_pylist() == [0, 0]
