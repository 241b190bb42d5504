"""A language model wins by 6 points where it should; where it may not, the decision follows from right numbers.

Tweets (800 training rows) and uci_sentiment: the chosen skin's test accuracy is at least 6 points above the floor's,
fitted on the same rows, and the paired interval is above 0. banking77 with 2,000 and with 300 training rows, 1,000
tested: each rung's number is recomputed from its answers and the file's labels, the floor's from a pipeline of
scikit-learn alone, and the choice from both. Each ladder takes at most an hour. `check_lora_parity` has the PEFT arm.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ladders import ABSENT, DATA, ROOT, climb, rows, work_folder, write

POINTS, MINUTES = 0.06, 60
MARGIN = 0.02  # of a task without a target
SAME_FLOOR = 0.03  # accuracy between the floor and the plain pipeline, whose folds and strengths differ


def tweets(folder: Path) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "examples" / "tweets"))
    import tweets as source

    if not (folder / "test.jsonl").exists():
        source.build(folder / "made")
        for name in ("train.jsonl", "test.jsonl"):
            shutil.move(folder / "made" / name, folder / name)
    return classify("Is the mood of this tweet positive or negative?")


def uci_sentiment(folder: Path) -> dict[str, Any]:
    write(folder / "train.jsonl", rows("uci_sentiment/train.jsonl.gz", 5000))
    write(folder / "test.jsonl", rows("uci_sentiment/test.jsonl", 5000))
    return classify("Is the sentiment of this sentence positive or negative?")


def banking77(folder: Path, train: int = 2000) -> dict[str, Any]:
    for name, count in (("train", train), ("test", 1000)):
        found = rows(f"banking77/{name}.jsonl.gz", 20_000)
        random.Random(0).shuffle(found)
        write(folder / f"{name}.jsonl", found[:count])
    return classify("Which intent does this banking customer have?")


def banking77_300(folder: Path) -> dict[str, Any]:
    return banking77(folder, 300)


def classify(instruction: str) -> dict[str, Any]:
    return {
        "kind": "classify",
        "instruction": instruction,
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "text", "output": "label"},
    }


def wins(report: dict[str, Any], folder: Path) -> tuple[str, list[str]]:
    """The chosen skin is far above the floor."""
    test = report["test"]
    if not test or not test["vs_floor"]:
        return f"chosen {report['chosen']}", ["the floor was chosen, or nothing"]
    gap = test["vs_floor"]
    said = f"{report['chosen']} {test['quality']:.3f}, {gap['diff']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    faults = [f"under {POINTS} above the floor"] * (gap["diff"] < POINTS)
    return said, faults + ["the interval holds 0"] * (gap["low"] <= 0)


def follows(report: dict[str, Any], folder: Path) -> tuple[str, list[str]]:
    """The numbers are right, and the choice is the one that they give."""
    right = answered_right(folder)
    faults = []
    for rung in report["rungs"]:
        if rung["dev"] and abs(rung["dev"]["quality"] - right[rung["name"]].mean()) > 1e-9:
            faults.append(f"{rung['name']} has {right[rung['name']].mean():.4f} of its answers right")
    plain = plain_floor(folder)
    floor = next(rung["dev"]["quality"] for rung in report["rungs"] if rung["name"] == "floor")
    if floor < plain - SAME_FLOOR:
        faults.append(f"the floor has {floor:.3f}, a plain pipeline {plain:.3f}")
    costs = {rung["name"]: rung["cost_per_1k"] for rung in report["rungs"] if rung["dev"]}
    best = report["best"]
    ahead = [name for name in costs if right[name].mean() > right[best].mean() + 1e-9]
    if ahead:
        faults.append(f"{best} is called the best, but {ahead[0]} has more right")
    allowed = [name for name in costs if name == best or not_behind(right[name], right[best])]
    cheapest = min(allowed, key=costs.__getitem__)
    if report["chosen"] != cheapest:
        faults.append(f"chosen {report['chosen']}, but {cheapest} is the cheapest of {', '.join(allowed)}")
    test = report["test"]
    return (
        f"{report['chosen']} {test['quality']:.3f} [{test['low']:.3f}, {test['high']:.3f}], floor {floor:.3f}",
        faults,
    )


def answered_right(folder: Path) -> dict[str, np.ndarray]:
    """By rung, which confirmation rows its shipped skin answered with the label in the file; float [rows]."""
    from pando.task import Task
    from pando.task.splits import make_splits

    out = folder / "out"
    splits = make_splits(Task.load(folder / "task.yaml"), out / "splits.json")
    report = json.loads((out / "report.json").read_text())
    answers: dict[tuple[str, str], Any] = {}
    for line in (out / "items.jsonl").read_text().splitlines():
        batch = json.loads(line)
        answers |= {(batch["skin"], item["id"]): item["value"] for item in batch["items"]}
    return {
        rung["name"]: np.array([float(answers[rung["skin"], row.id] == row.output) for row in splits.confirm])
        for rung in report["rungs"]
        if rung["dev"]
    }


def plain_floor(folder: Path) -> float:
    """Confirmation accuracy of word and character TF-IDF with logistic regression, by scikit-learn alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    from pando.task import Task
    from pando.task.splits import make_splits

    splits = make_splits(Task.load(folder / "task.yaml"), folder / "out" / "splits.json")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LogisticRegression(C=10.0, max_iter=1000))
    model.fit([row.text for row in splits.train], [row.output for row in splits.train])
    return float(model.score([row.text for row in splits.confirm], [row.output for row in splits.confirm]))


def not_behind(mine: np.ndarray, best: np.ndarray) -> bool:
    """Whether the one-sided 95 % bound of the paired difference (Tango's score method) is above -MARGIN."""
    from pando.evaluate.paired import tango

    better, worse = int((mine > best).sum()), int((mine < best).sum())
    return tango(better, worse, len(mine), 0.05)[0] > -MARGIN


SETS: dict[str, tuple[Callable[[Path], dict[str, Any]], Callable[..., tuple[str, list[str]]]]] = {
    "tweets": (tweets, wins),
    "uci_sentiment": (uci_sentiment, wins),
    "banking77": (banking77, follows),
    "banking77_300": (banking77_300, follows),
}


def main() -> int:
    if not (DATA / "README.md").exists():
        print(ABSENT)
        return 77
    work = work_folder("quality")
    said, faults = [], []
    for name in sys.argv[1:] or SETS:
        make, judge = SETS[name]
        folder = work / name
        folder.mkdir(exist_ok=True)
        report = climb({"name": name, **make(folder)}, folder)
        words, wrong = judge(report, folder)
        wrong += [f"{report['seconds'] / 60:.0f} minutes"] * (report["seconds"] > 60 * MINUTES)
        said.append(f"{name}: {words} in {report['seconds'] / 60:.0f} min")
        faults += [f"{name}: {fault}" for fault in wrong]
    print("; ".join(said + faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
