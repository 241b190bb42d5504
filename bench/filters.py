"""The Gopher rules (quality and repetition) on public text: Pando against datatrove, decisions compared one by one.

Claim: at least 20 times datatrove's throughput on one core as it comes (words by spaCy), and under the same word
function (white space) decisions equal for at least 99.5 % of documents. The ratio under the same word function is
stated too.
"""

from __future__ import annotations

import random

from _common import CACHE, Ratio, alternate, arguments, machine, report, spread, start, today
from _corpus import PEER, ours, peer, texts, write_inputs


def main() -> int:
    asked = arguments(__doc__)
    draw = random.Random(0)
    names = ["books", "textbooks", "docs_peps", "raw_messy", "stories", "tinystories", "code"]
    documents = [text for text in texts(names) if text.strip()]
    draw.shuffle(documents)
    most = 3e5 if asked.quick else 12e6
    size, chosen = 0, []
    for text in documents:
        if size > most:
            break
        chosen.append(text)
        size += len(text)
    folder = CACHE / "filters"
    megabytes = write_inputs(folder, chosen, 1)
    spacy = peer("filters", folder, "spacy")["seconds"]
    sides = {
        "Pando": lambda: ours("filters", folder)["seconds"],
        "datatrove": lambda: peer("filters", folder, "spaces")["seconds"],
    }
    found = alternate(sides, 1 if asked.quick else asked.repeats)
    mine, theirs = ours("filters", folder)["decisions"], peer("filters", folder, "spaces")["decisions"]
    equal = [sum(mine[name][rule] == theirs[name][rule] for name in mine) / len(mine) for rule in (0, 1)]
    both = sum(all(mine[name]) == all(theirs[name]) for name in mine) / len(mine)
    speed = {name: [megabytes / seconds for seconds in listed] for name, listed in found.items()}
    as_it_comes = Ratio.of(speed["Pando"], [megabytes / spacy] * len(speed["Pando"]))
    same_words = Ratio.of(speed["Pando"], speed["datatrove"])
    passed = as_it_comes.median >= 20 and min(*equal, both) >= 0.995
    lines = [
        f"{machine()}; {PEER}; {today()}. {len(chosen):,} documents, {megabytes:.1f} MB, one process each.",
        "",
        "| side | MB/s |",
        "| --- | --- |",
        f"| Pando | {spread(speed['Pando'], 'MB/s')} |",
        f"| datatrove, words by spaCy (its default) | {megabytes / spacy:.2f} MB/s (one run) |",
        f"| datatrove, words by white space | {spread(speed['datatrove'], 'MB/s', 2)} |",
        "",
        f"**{as_it_comes}** its default; {same_words} under the same word function. Decisions equal under the same "
        f"word function: quality {equal[0]:.4f}, repetition {equal[1]:.4f}, both {both:.4f} "
        f"(asked: 20x and 0.995: {'met' if passed else 'NOT met'}).",
    ]
    raw = {"seconds": found, "spacy": spacy, "equal": [*equal, both], "megabytes": megabytes}
    report("filters", "Gopher rules", lines, raw, asked.record)
    return 0 if passed or asked.quick else 1


if __name__ == "__main__":
    start(main)
