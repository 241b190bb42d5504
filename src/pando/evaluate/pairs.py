"""Minimal pairs: two texts that differ in one place, of which a model should find the right one likelier.

In the manner of BLiMP (arXiv 1912.00582), the sentences are made from templates; words are short and common, so that
a model of a few million parameters shows what it has learnt. The last kind is Python code.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple


def _words(text: str) -> list[str]:
    return text.split()


_NOUNS = _words("dog cat boy girl horse teacher farmer doctor friend king")
_THINGS = _words("book chair letter stone table window basket ladder bottle picture")
_PLACES = _words("house tree river table door road bridge garden")
_STAY = _words("sleep run sing walk smile wait laugh fall")  # take no object
_ACT = _words("see want find follow carry watch remember paint")  # take one
_IRREGULAR: tuple[str, ...] = (
    "eat ate eaten",
    "take took taken",
    "write wrote written",
    "break broke broken",
    "steal stole stolen",
)
_IRREGULAR += ("choose chose chosen", "drive drove driven", "speak spoke spoken", "forget forgot forgotten")
_HE, _SHE = _words("king boy father brother uncle man"), _words("queen girl mother sister aunt woman")
_NAMES = _words("x y name value item line count total path result")


class Pair(NamedTuple):
    """Two texts of one kind; `good` is right."""

    kind: str
    good: str
    bad: str


def minimal_pairs(each: int = 40, seed: int = 0) -> list[Pair]:
    """`each` different pairs of every kind (fewer where a template has fewer), the same for a seed."""
    pairs = []
    for kind, make in _KINDS.items():
        draw, found = random.Random(f"{seed} {kind}"), dict[tuple[str, str], None]()
        for _ in range(20 * each):
            if len(found) == each:
                break
            found[make(draw)] = None
        pairs += [Pair(kind, good, bad) for good, bad in found]
    return pairs


def _plural(noun: str) -> str:
    return noun + "s"


def _verb(verb: str) -> str:
    """Third person singular."""
    return verb[:-1] + "ies" if verb.endswith("ry") else verb + ("es" if verb.endswith(("ch", "sh")) else "s")


def _agreement(draw: random.Random) -> tuple[str, str]:
    noun, verb = draw.choice(_NOUNS), draw.choice(_STAY)
    where = f"near the {draw.choice(_PLACES)}"
    if draw.random() < 0.5:
        return f"The {noun} {_verb(verb)} {where}.", f"The {noun} {verb} {where}."
    return f"The {_plural(noun)} {verb} {where}.", f"The {_plural(noun)} {_verb(verb)} {where}."


def _attraction(draw: random.Random) -> tuple[str, str]:
    noun, other, verb = draw.choice(_NOUNS), draw.choice(_THINGS), draw.choice(_STAY)
    if draw.random() < 0.5:
        head = f"The {noun} with the {_plural(other)}"
        return f"{head} {_verb(verb)}.", f"{head} {verb}."
    head = f"The {_plural(noun)} with the {other}"
    return f"{head} {verb}.", f"{head} {_verb(verb)}."


def _determiner(draw: random.Random) -> tuple[str, str]:
    noun, thing, verb = draw.choice(_NOUNS), draw.choice(_THINGS), draw.choice(_ACT)
    one, many = draw.choice((("this", "these"), ("that", "those"), ("a", "many"), ("each", "several")))
    right, wrong = (one, many) if draw.random() < 0.5 else (many, one)
    named = thing if right == one else _plural(thing)
    return f"The {noun} will {verb} {right} {named}.", f"The {noun} will {verb} {wrong} {named}."


def _reflexive(draw: random.Random) -> tuple[str, str]:
    noun, verb = draw.choice(_HE + _SHE), draw.choice(("hurt", "saw", "helped", "liked", "washed"))
    own, other = ("himself", "herself") if noun in _HE else ("herself", "himself")
    if draw.random() < 0.5:
        return f"The {noun} {verb} {own}.", f"The {noun} {verb} {other}."
    return f"The {noun} {verb} {own}.", f"The {noun} {verb} themselves."


def _participle(draw: random.Random) -> tuple[str, str]:
    _, past, participle = draw.choice(_IRREGULAR).split()
    noun, rest = draw.choice(_NOUNS), draw.choice(("it", "the other one", "them all", "the first one"))
    if draw.random() < 0.5:
        return f"The {noun} has {participle} {rest}.", f"The {noun} has {past} {rest}."
    return f"The {noun} {past} {rest}.", f"The {noun} {participle} {rest}."


def _auxiliary(draw: random.Random) -> tuple[str, str]:
    noun, verb, helper = draw.choice(_NOUNS), draw.choice(_STAY), draw.choice(("can", "will", "must", "did not"))
    return f"The {noun} {helper} {verb}.", f"The {noun} {helper} {_verb(verb)}."


def _question(draw: random.Random) -> tuple[str, str]:
    base, past, _ = draw.choice(_IRREGULAR).split()
    noun, word = draw.choice(_NOUNS), draw.choice(("What", "When", "Where", "Why"))
    return f"{word} did the {noun} {base}?", f"{word} did the {noun} {past}?"


def _order(draw: random.Random) -> tuple[str, str]:
    noun, verb, place = draw.choice(_NOUNS), draw.choice(_STAY), draw.choice(_PLACES)
    word = draw.choice(("in", "near", "behind", "under"))
    return f"The {noun} will {verb} {word} the {place}.", f"The {noun} will {verb} the {word} {place}."


def _negative(draw: random.Random) -> tuple[str, str]:
    noun, (_, _, participle) = draw.choice(_NOUNS), draw.choice(_IRREGULAR).split()
    return f"No {noun} has ever {participle} anything.", f"The {noun} has ever {participle} anything."


def _python(draw: random.Random) -> tuple[str, str]:
    a, b = draw.sample(_NAMES, 2)
    good, bad = draw.choice(
        (
            (f"for {a} in {b}:\n", f"for {a} on {b}:\n"),
            (f"def get_{a}(self):\n", f"def get_{a}(self:\n"),
            (f"if {a} is None:\n", f"if {a} are None:\n"),
            (f"    return {a}\n", f"    returns {a}\n"),
            (f"import {a}\n", f"imports {a}\n"),
            (f"class {a.title()}(object):\n", f"class {a.title()}(object)\n"),
            (f"{a} = [{b}, 1]\n", f"{a} = [{b}, 1)\n"),
            (f"try:\n    {a}()\nexcept ", f"try:\n    {a}()\nexpect "),
        )
    )
    return good, bad


_KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "subject and verb": _agreement,
    "subject and verb, apart": _attraction,
    "determiner and noun": _determiner,
    "reflexive": _reflexive,
    "participle": _participle,
    "auxiliary and verb": _auxiliary,
    "question": _question,
    "word order": _order,
    "negative polarity": _negative,
    "Python": _python,
}
KINDS = tuple(_KINDS)
