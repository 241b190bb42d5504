"""lm-eval through our adapter and through its own `hf`, 200 HellaSwag rows: the same choices and log-probabilities.

Without shots and with two, driven by lm-eval itself (`simple_evaluate`), in float32. `--quick` takes 8 rows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
os.environ.setdefault("TQDM_DISABLE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import _hellaswag  # noqa: E402

ROWS, SHOTS, PART = 200, (0, 2), 25
SAME_CHOICE = 0.995
FURTHEST = 5e-5  # of the total, at least a nat: totals of two hundred nats are sums of many rounded numbers

Row = dict[str, Any]
Found = list[list[tuple[float, bool]]]  # by row and choice: log-probability, greedy


@cache
def ours(folder: Path) -> Any:
    import pando
    from pando.evaluate.lm_eval import PandoLM

    return PandoLM(pando.load(folder, device="cpu", dtype="float32"))


@cache
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8)


@cache
def task_manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def evaluated(model: Callable[[], Any], shots: list[Row], asked: list[Row], kept: Path) -> Found:
    """What the model answered, kept on disk so that an interrupted check goes on."""
    if not kept.is_file():
        from lm_eval import simple_evaluate

        task = _hellaswag.task(shots, asked)
        results = simple_evaluate(model=model(), tasks=[task], bootstrap_iters=0, task_manager=task_manager())
        assert results
        samples = sorted(results["samples"][task.config.task], key=lambda sample: sample["doc_id"])
        found = [[(float(total), bool(greedy)) for ((total, greedy),) in sample["resps"]] for sample in samples]
        aside = kept.with_suffix(".tmp")
        aside.write_text(json.dumps(found))
        aside.replace(kept)
    return [[(total, greedy) for total, greedy in row] for row in json.loads(kept.read_text())]


def choices(found: Found, asked: list[Row]) -> list[tuple[int, int]]:
    """The likeliest choice of each row, and the likeliest per character (lm-eval's acc and acc_norm)."""
    picked = []
    for row, scores in zip(asked, found, strict=True):
        totals = [total for total, _ in scores]
        normed = [total / len(choice) for total, choice in zip(totals, row["choices"], strict=True)]
        picked.append((totals.index(max(totals)), normed.index(max(normed))))
    return picked


def compare(rows: list[Row], folder: Path, work: Path) -> int:
    """Asks both, part by part, and says where they differ; the exit code."""
    asked = rows[max(SHOTS) :]
    same, compared, flags = 0, 0, 0
    nats, share = 0.0, 0.0  # how far apart log-probabilities are at most, and of their size
    for shots in SHOTS:
        for at in range(0, len(asked), PART):
            part = asked[at : at + PART]
            mine, reference = (
                evaluated(partial(model, folder), rows[:shots], part, work / f"{shots}-{at}-{model.__name__}.json")
                for model in (ours, theirs)
            )
            compared += len(part)
            same += sum(a == b for a, b in zip(choices(mine, part), choices(reference, part), strict=True))
            for a, b in ((a, b) for x, y in zip(mine, reference, strict=True) for a, b in zip(x, y, strict=True)):
                apart = abs(a[0] - b[0])
                nats, share = max(nats, apart), max(share, apart / max(1.0, abs(b[0])))
                flags += a[1] != b[1]
            found = f"log-probabilities at most {nats:.1e} nats apart, and {share:.1e} of their size"
            print(f"{shots} shots, {at + len(part)} rows: {found}", flush=True)
    print(f"same choice in {same} of {compared}, {found}, greedy differs in {flags}")
    return int(same / compared < SAME_CHOICE or share > FURTHEST)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 rows, nothing kept")
    quick = parser.parse_args().quick
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows = _hellaswag.rows(max(SHOTS) + (8 if quick else ROWS))
    if rows is None:
        print("HellaSwag is not here (set PANDO_DATA)")
        return 77
    from pando.model.base import open_base

    base = open_base()
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            return compare(rows, base.folder, Path(folder))
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "lm_eval.work")
    work /= base.identity.hash.removeprefix("sha256:")[:16]
    work.mkdir(parents=True, exist_ok=True)
    return compare(rows, base.folder, work)


if __name__ == "__main__":
    sys.exit(main())
