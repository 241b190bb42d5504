"""Small tasks whose labels follow from words, for a model that knows these words or some of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pando.task import Task

HINTS = {"good": ["great", "lovely", "fine"], "bad": ["awful", "dull", "broken"]}
_FILLER = (
    *("the", "a", "film", "phone", "meal", "hotel", "battery", "story", "plot", "staff"),
    *("room", "screen", "price", "taste", "scene", "line", "week", "day"),
)


def write_rows(path: Path, n: int, seed: int, *, shuffled: bool = False) -> None:
    """`n` rows of text and label; one in ten has no word that tells."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        label = draw.choice(list(HINTS))
        words = draw.sample(_FILLER, 6) + ([draw.choice(HINTS[label])] if draw.random() < 0.9 else [])
        draw.shuffle(words)
        rows.append({"text": f"{' '.join(words)} {seed}-{i}", "label": label, "who": f"w{i // 4}"})
    if shuffled:
        labels = [row["label"] for row in rows]
        draw.shuffle(labels)
        rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_task(folder: Path, train: int = 300, test: int = 120, **keys: Any) -> Task:
    """A task with its rows in `folder`, and as `folder/task.yaml`."""
    import yaml

    write_rows(folder / "train.jsonl", train, 1)
    write_rows(folder / "test.jsonl", test, 2)
    values = {
        "name": "moods",
        "kind": "classify",
        "instruction": "Is the mood good or bad?",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "text", "output": "label"},
        "rungs": ["floor", "zero", "probe"],
        **keys,
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(values))
    return Task.load(folder / "task.yaml")
