"""What curation finds in messy text: copies, near-copies, other languages, leaked test items, personal data.

A table of recall and precision for each kind. raw_messy says in its `source` what a row is (a copy of which row, a leak
of a benchmark, a text in another language); what it cannot say is planted: near-copies of known Jaccard similarity,
test items verbatim and with one word in ten changed inside books, addresses, keys and numbers beside things that only
look like them.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from _corpus import DATA, STAGES, need_data, write_config

from pando.cli.corpus import protected
from pando.corpus import contamination, engine, near, rewrite
from pando.corpus.build import Build
from pando.corpus.config import load_config
from pando.corpus.decide import column, numbers
from pando.corpus.words import normal

PAIRS = 3000
ITEMS = 1000


def rows(name: str) -> list[dict[str, Any]]:
    with (DATA / "pretrain" / f"{name}.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line) for line in lines]


class Table:
    """Lines of the table; remembers whether every one meets what it must."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def line(self, kind: str, of: int, recall: float, precision: float, least: tuple[float, float], note: str) -> None:
        good = recall >= least[0] and precision >= least[1]
        if not good:
            self.failed.append(kind)
        print(f"{kind:34} {of:6,} {recall:8.4f} {precision:10.4f}   {'' if good else 'TOO LOW '}{note}", flush=True)


def natural(home: Path, table: Table) -> None:
    """Copies, languages and leaks as raw_messy has them, after the stages ran on it and on textbooks."""
    order = ("normalise", "pii", "exact", "near", "decontaminate", "language")
    config = load_config(
        write_config(home / "corpus.yaml", ["textbooks", "raw_messy"], stages={name: STAGES[name] for name in order})
    )
    build = Build(config, home / "work", protected(config))
    parts = build.parts()
    made = build.decide(parts)
    found = [*rows("textbooks"), *rows("raw_messy")]
    texts, kinds = [row["text"] for row in found], [row["source"] for row in found]
    group = np.where(made.other >= 0, made.other, np.arange(len(found)))
    group = group[group]

    original = {}
    for place, kind in enumerate(kinds):
        if not kind.startswith(("repost-of:", "mirror-of:")):
            original.setdefault(kind, []).append(place)
    copies = [place for place, kind in enumerate(kinds) if kind.startswith(("repost-of:", "mirror-of:"))]
    right = sum(
        any(group[place] == group[one] for one in original.get(kinds[place].split(":", 1)[1], [])) for place in copies
    )
    names = {name: place for place, name in enumerate(made.names)}
    dropped = np.flatnonzero(made.rule == names["exact", "copy"])
    masked = [
        rewrite.masked(pa.array(texts[at : at + 500], pa.large_string()), tuple(rewrite.MASKS))[0].to_pylist()
        for at in range(0, len(texts), 500)
    ]
    flat = ["".join(text.split()) for piece in masked for text in piece]
    same = sum(flat[place] == flat[made.other[place]] for place in dropped.tolist())
    table.line("exact copies (raw_messy)", len(copies), right / len(copies), same / len(dropped), (1.0, 0.99), "")

    alike = [
        jaccard(*grams([texts[place], texts[made.other[place]]]))
        for place in np.flatnonzero(made.rule == names["near", "near_copy"]).tolist()
    ]
    print(
        f"  near-copies of raw_messy and textbooks: {len(alike)}, median Jaccard similarity with the kept one "
        f"{np.median(alike):.2f}, {np.mean(np.array(alike) >= 0.5):.3f} of them at least 0.5"
    )

    foreign = np.array([kind.startswith(("african-storybook", "pratham-books")) for kind in kinds])
    english = np.array([kind.startswith(("raw-md", "raw-txt", "txt", "web", "openstax")) for kind in kinds])
    language, sure = column(parts, "language", "language"), numbers(parts, "language", "language_score")
    flagged = np.array([one != "en" for one in language.to_pylist()]) | (sure < 0.65)
    hits, wrong = int((flagged & foreign).sum()), int((flagged & english).sum())
    note = f"{wrong} of {int(english.sum()):,} English texts flagged"
    table.line(
        "other languages (raw_messy)",
        int(foreign.sum()),
        hits / foreign.sum(),
        hits / (hits + wrong),
        (0.99, 0.97),
        note,
    )

    score = numbers(parts, "decontaminate", "contamination")
    leaks = np.array([kind.startswith("benchmark-leak") for kind in kinds])
    named = column(parts, "decontaminate", "contamination_item")
    other = [(kinds[n], round(float(score[n]), 2), named[n].as_py()) for n in np.flatnonzero((score >= 0.5) & ~leaks)]
    print(f"  held to be leaks besides those marked as such: {len(other)} of {int((~leaks).sum()):,}, as {other[:3]}")
    table.line(
        "leaked rows (raw_messy)",
        int(leaks.sum()),
        float((score[leaks] >= 0.5).mean()),
        float((score[leaks] >= 0.5).sum() / (score >= 0.5).sum()),
        (0.99, 0.0),
        "the others found hold such items too: quoted speeches, textbook exercises",
    )
    if len(other) > 0.005 * len(found):
        table.failed.append("too many rows held to be leaks")


def grams(texts: list[str]) -> list[set[str]]:
    made = []
    for text in normal(pa.array(texts, pa.large_string())).to_pylist():
        words = text.split(" ")
        made.append({" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))})
    return made


def jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def near_copies(table: Table) -> None:
    """Books with words exchanged: pairs by true similarity against the curve 1 - (1 - s^8)^14."""
    draw = random.Random(1)
    base = [row["text"] for row in rows("books")[:PAIRS]]
    copies = []
    for text in base:
        words = text.split(" ")
        for place in draw.sample(range(len(words)), int(len(words) * draw.choice([0.003, 0.01, 0.02, 0.03, 0.05]))):
            words[place] = draw.choice(words)
        copies.append(" ".join(words))
    bands = [near.bands(pa.array(texts, pa.large_string()), 14, 8, 5, 1) for texts in (base, copies)]
    one, two = (np.stack([table.column(name).to_numpy() for name in table.column_names], 1) for table in bands)
    found = (one == two).any(1)
    alike = np.array([jaccard(*grams([a, b])) for a, b in zip(base, copies, strict=True)])
    curve = 1 - (1 - alike**8) ** 14
    for low, high in ((0.4, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.01)):
        mine = (alike >= low) & (alike < high)
        if mine.any():
            print(
                f"  similarity {low:.1f} to {min(high, 1):.1f}: {mine.sum():5} pairs, found {found[mine].mean():.3f}, "
                f"curve {curve[mine].mean():.3f}"
            )
    strangers = int((one[:-1] == two[1:]).any(1).sum())
    off = abs(found.mean() - curve.mean())
    table.line(
        "near-copies (planted)",
        PAIRS,
        found.mean(),
        found.sum() / (found.sum() + strangers),
        (curve.mean() - 0.02, 0.99),
        f"curve {curve.mean():.4f}, off by {off:.4f}",
    )
    if off > 0.02:
        table.failed.append("near-copies off the curve")


def leaks(home: Path, table: Table) -> None:
    """Test items planted in books, verbatim and with one word in ten exchanged."""
    config = load_config(write_config(home / "leaks.yaml", ["books"]))
    items = list(protected(config))
    index = contamination.index(items)
    index.save(home / "leaks.npz")
    known = set(index.names)
    usable = sorted(
        {
            text: name
            for name, text in items
            if name in known and len(normal(pa.array([text], pa.large_string()))[0].as_py().split()) >= 10
        }.items()
    )
    draw = random.Random(2)
    chosen = draw.sample(usable, ITEMS)
    hosts = [row["text"] for row in rows("books")[:ITEMS]]
    path = str(home / "leaks.npz")

    def found(texts: list[str]) -> np.ndarray[Any, Any]:
        return contamination.scores(pa.array(texts, pa.large_string()), path).column("contamination").to_numpy() >= 0.5

    alone = found(hosts)
    for kind, change, least in (
        ("leaks, verbatim (planted)", False, 0.99),
        ("leaks, 1 word in 10 changed", True, 0.90),
    ):
        texts = []
        for host, (text, _) in zip(hosts, chosen, strict=True):
            words = text.split()
            if change:
                for place in draw.sample(range(len(words)), max(1, round(len(words) / 10))):
                    words[place] = "something"
            half = len(host) // 2
            texts.append(f"{host[:half]}\n{' '.join(words)}\n{host[half:]}")
        hit = found(texts)
        table.line(kind, ITEMS, hit.mean(), hit.sum() / (hit.sum() + alone.sum()), (least, 0.99), "")
    print(
        f"  {index.short:,} of {len({text for _, text in items}):,} texts have under 10 words, or stock phrases only, "
        "and are not protected"
    )


def personal() -> Iterator[tuple[str, str, bool]]:
    """(kind, text, whether it is personal)."""
    draw = random.Random(3)
    word = lambda: "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(3, 9)))  # noqa: E731
    key = lambda n: "".join(draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") for _ in range(n))  # noqa: E731
    digits = lambda n: "".join(draw.choice("23456789") for _ in range(n))  # noqa: E731
    for _ in range(200):
        yield (
            "email",
            draw.choice(
                [
                    f"{word()}.{word()}@{word()}.com",
                    f"{word()}{digits(2)}@{word()}.{word()}.org",
                    f"<{word()}+{word()}@{word()}-{word()}.co.uk>",
                ]
            ),
            True,
        )
        yield "email", draw.choice([f"@{word()}", f"{word()} @ {word()}", f"{word()}@{digits(2)}:"]), False
        groups = [f"{draw.randint(1, 65535):x}" for _ in range(draw.randint(2, 5))]
        compressed = f"2001:db8::{':'.join(groups)}"
        whole = ":".join(f"{draw.randint(1, 65535):x}" for _ in range(8))
        dotted = ".".join(str(draw.randint(1, 254)) for _ in range(4))
        yield "ip", draw.choice([dotted, dotted, whole, compressed]), True
        yield (
            "ip",
            draw.choice(
                [
                    f"{digits(1)}.{digits(1)}.{digits(2)}",
                    f"{digits(2)}:{digits(2)}:{digits(2)}",
                    f"{digits(3)}.{digits(2)}",
                    f"3{digits(2)}.4{digits(2)}.{digits(3)}.{digits(4)}",
                    f"std::{word()}",
                    f"{word()}::{word()}::{word()}",
                    f"{digits(2)}:{digits(2)}",
                ]
            ),
            False,
        )
        yield (
            "phone",
            draw.choice(
                [
                    f"+1 {digits(3)} {digits(3)} {digits(4)}",
                    f"({digits(3)}) {digits(3)}-{digits(4)}",
                    f"{digits(3)}-{digits(3)}-{digits(4)}",
                    f"+49 {digits(3)} {digits(7)}",
                ]
            ),
            True,
        )
        yield (
            "phone",
            draw.choice(
                [
                    f"{digits(4)}-{digits(2)}-{digits(2)}",
                    f"{digits(3)}-{digits(3)}",
                    f"{digits(2)},{digits(3)},{digits(3)}",
                    f"+{digits(2)} %",
                ]
            ),
            False,
        )
        yield (
            "secret",
            draw.choice([f"AKIA{key(16)}", f"ghp_{key(36)}", f"sk-{key(32)}", f"AIza{key(35)}", private(key)]),
            True,
        )
        yield "secret", draw.choice([f"AKIA{key(5)}", f"sk-{key(6)}", key(20), word() * 3]), False


def private(key: Callable[[int], str]) -> str:
    """A private key as files hold it."""
    kind = "RSA PRIVATE KEY"
    return "\n".join([f"-----BEGIN {kind}-----", *(key(64) for _ in range(4)), key(30), f"-----END {kind}-----"])


def pii(table: Table) -> None:
    """Planted personal data beside lookalikes, in sentences."""
    planted = list(personal())
    texts = [f"Please note {text} before Friday, as agreed." for _, text, _ in planted]
    _, counts = rewrite.masked(pa.array(texts, pa.large_string()), tuple(rewrite.MASKS))
    for kind in ("email", "ip", "phone", "secret"):
        hit = counts[kind].to_numpy() > 0
        real = np.array([one == kind and is_one for one, _, is_one in planted])
        table.line(
            f"{kind} (planted)",
            int(real.sum()),
            hit[real].mean(),
            (hit & real).sum() / max(1, hit.sum()),
            (0.98, 0.98),
            "",
        )


def main() -> int:
    need_data()
    home = Path(os.environ.get("VERIFY_WORK") or tempfile.mkdtemp())
    engine.start(1)
    table = Table()
    print(f"{'kind':34} {'of':>6} {'recall':>8} {'precision':>10}")
    natural(home, table)
    near_copies(table)
    leaks(home, table)
    pii(table)
    print(
        f"{len(table.failed)} kinds below what was promised" + (f": {', '.join(table.failed)}" if table.failed else "")
    )
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
