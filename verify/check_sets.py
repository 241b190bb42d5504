"""The same command on four more kinds of data ends with a decision; shuffled labels give no rung that beats chance.

sms_spam (classify), snips (extract), scitldr (generate, 200 rows), a CSV of our own making, and uci_sentiment with its
training labels shuffled.
"""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ladders import ABSENT, DATA, climb, rows, work_folder, write
from scipy.stats import binomtest

from pando.evaluate.statistics import holm

KEYS = {"task", "base", "mode", "rungs", "chosen", "why", "test", "comparisons", "rows", "seconds"}


def spam(folder: Path) -> dict[str, Any]:
    write(folder / "train.jsonl", rows("sms_spam/train.jsonl.gz", 600))
    write(folder / "test.jsonl", rows("sms_spam/test.jsonl", 300))
    return {
        "kind": "classify",
        "instruction": "Is this text message spam or ham (a normal message)?",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "text", "output": "label"},
        "metric": "macro_f1",
        "target": {"quality": 0.8},
    }


def snips(folder: Path) -> dict[str, Any]:
    shuffled = rows("snips/train.jsonl.gz", 20_000)
    random.Random(0).shuffle(shuffled)
    write(folder / "train.jsonl", shuffled[:400])
    write(folder / "test.jsonl", random.Random(0).sample(rows("snips/test.jsonl.gz", 2000), 100))
    return {
        "kind": "extract",
        "instruction": "Extract the intent and the slots of this request as JSON.",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "text", "output": "json"},
    }


def scitldr(folder: Path) -> dict[str, Any]:
    write(folder / "rows.jsonl", rows("scitldr/train.jsonl.gz", 200))
    return {
        "kind": "generate",
        "instruction": "Summarise this abstract in one sentence.",
        "data": {"file": "rows.jsonl"},
        "fields": {"input": "text", "output": "summary"},
    }


def shop(folder: Path) -> dict[str, Any]:
    """Customers' messages to a shop, several of each customer, as a spreadsheet would save them."""
    draw = random.Random(3)
    said = {
        "refund": ["I want my money back", "please refund order {n}", "the {thing} came broken, refund me"],
        "delivery": ["where is my {thing}?", "order {n} has not arrived", "the parcel is late again"],
        "other": ["do you sell a {thing} in blue?", "how do I change my password", "thanks for the {thing}!"],
    }
    with (folder / "messages.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["customer", "Subject", "message", "team"])
        for i in range(600):
            team = draw.choice(list(said))
            thing = draw.choice(["lamp", "chair", "kettle", "desk", "mirror"])
            text = draw.choice(said[team]).format(n=draw.randrange(10_000), thing=thing)
            table.writerow(
                [f"c{i // 3}", f"message {i}", f'{text}; "{draw.choice(["hello", "hi", "dear shop"])}"', team]
            )
    return {
        "kind": "classify",
        "instruction": "Which team answers this message: refund, delivery or other?",
        "data": {"file": "messages.csv"},
        "fields": {"input": ["Subject", "message"], "output": "team", "group": "customer"},
        "target": {"quality": 0.7},
    }


def shuffled(folder: Path) -> dict[str, Any]:
    found = rows("uci_sentiment/train.jsonl.gz", 800)
    labels = [row["label"] for row in found]
    random.Random(5).shuffle(labels)
    write(folder / "train.jsonl", [{**row, "label": label} for row, label in zip(found, labels, strict=True)])
    write(folder / "test.jsonl", rows("uci_sentiment/test.jsonl", 200))
    return {
        "kind": "classify",
        "instruction": "Is the sentiment of this sentence positive or negative?",
        "data": {"train": "train.jsonl", "test": "test.jsonl"},
        "fields": {"input": "text", "output": "label"},
        "target": {"quality": 0.6},
    }


SETS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "sms_spam": spam,
    "snips": snips,
    "scitldr": scitldr,
    "shop": shop,
    "shuffled": shuffled,
}


def faults_of(report: dict[str, Any], out: Path) -> list[str]:
    """What is missing in a report that ought to hold a decision."""
    found = []
    if missing := KEYS - set(report):
        found.append(f"the report lacks {', '.join(sorted(missing))}")
    if failed := [r["name"] for r in report["rungs"] if r["status"].startswith("failed")]:
        found.append(f"failed: {', '.join(failed)}")
    if report["chosen"] and not (report["test"] and (out / "skin" / "skin.yaml").is_file()):
        found.append("chosen, but not tested or not kept")
    if not report["chosen"] and not report["missing"]:
        found.append("nothing chosen, and not said what is missing")
    if json.loads((out / "report.json").read_text()) != report:
        found.append("--json is not the report")
    if "<html" not in (out / "report.html").read_text()[:200]:
        found.append("no page")
    return found


def beats_chance(report: dict[str, Any], folder: Path) -> list[str]:
    """Rungs whose confirmed accuracy is above the commonest label's share, by an exact test and Holm."""
    used = json.loads((folder / "out" / "splits.json").read_text())["confirm"]
    labels = Counter(report["rows"]["labels"])
    chance = max(labels.values()) / labels.total()
    rungs = [rung for rung in report["rungs"] if rung["dev"] and rung["name"] != "floor"]
    right = [round(rung["dev"]["quality"] * rung["dev"]["n"]) for rung in rungs]
    p_values = [binomtest(k, len(used), chance, alternative="greater").pvalue for k in right]
    return [rung["name"] for rung, p in zip(rungs, holm(p_values), strict=True) if p < 0.05]


def main() -> int:
    if not (DATA / "README.md").exists():
        print(ABSENT)
        return 77
    work = work_folder("sets")
    faults, said = [], []
    for name in sys.argv[1:] or SETS:
        folder = work / name
        folder.mkdir(exist_ok=True)
        report = climb({"name": name, **SETS[name](folder)}, folder)
        faults += [f"{name}: {fault}" for fault in faults_of(report, folder / "out")]
        if name == "shuffled":
            winners = beats_chance(report, folder)
            faults += [f"shuffled labels: {winner} beats chance" for winner in winners]
            faults += [f"shuffled labels: {report['chosen']} passes"] * bool(report["chosen"])
        said.append(f"{name} {report['chosen']}")
    print("; ".join([", ".join(said), *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
