"""Scoring multiple choice with ten fixed shots: our engine through lm-eval's interface against lm-eval's `hf`.

    python bench/scoring.py [--quick] [--repeats 3] [--record]

The same lm-eval requests (HellaSwag rows, the same ten shots before each, four choices) go through both models'
`loglikelihood`, both in float32 on the CPU with the base already loaded. The peer runs at its fastest batch size out of
1, 4, 8 and 16, found by a short probe. Our engine is loaded afresh for each repeat, so that nothing is cached from the
one before.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import _hellaswag
from _common import Ratio, alternate, arguments, machine, need, report, spread, start, today, versions

SHOTS, ROWS, PROBE = 10, 24, 3
BATCHES = (1, 4, 8, 16)
TARGET = 4.0
FURTHEST = 1e-3  # nats

Found = list[tuple[float, bool]]


def timed(model: Any, requests: list[Any]) -> tuple[float, Found]:
    """Seconds and answers."""
    start = time.perf_counter()
    found = model.loglikelihood(requests, disable_tqdm=True)
    return time.perf_counter() - start, found


def choices(found: Found) -> list[int]:
    """The likeliest of each row's four choices."""
    rows = [[total for total, _ in found[at : at + 4]] for at in range(0, len(found), 4)]
    return [row.index(max(row)) for row in rows]


class Ours:
    """Our engine, loaded afresh for each run."""

    def __init__(self, folder: Path, requests: list[Any]) -> None:
        self.folder, self.requests = folder, requests
        self.found: Found = []

    def __call__(self) -> float:
        import pando
        from pando.evaluate.lm_eval import PandoLM

        with pando.load(self.folder, device="cpu", dtype="float32") as engine:
            seconds, self.found = timed(PandoLM(engine), self.requests)
        return seconds


class Theirs:
    """lm-eval's `hf`, loaded once, at its best batch size."""

    def __init__(self, folder: Path, requests: list[Any], probe: list[Any]) -> None:
        from lm_eval.models.huggingface import HFLM

        self.model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
        self.requests = requests
        self.found: Found = []
        self.probes = {}
        for size in BATCHES:
            self.model.batch_size_per_gpu = size
            self.probes[size] = timed(self.model, probe)[0]
            print(f"   lm-eval hf, batches of {size}: {self.probes[size]:.1f} s for {len(probe)} requests", flush=True)
        self.batch = min(self.probes, key=self.probes.__getitem__)
        self.model.batch_size_per_gpu = self.batch

    def __call__(self) -> float:
        seconds, self.found = timed(self.model, self.requests)
        return seconds


def main() -> int:
    asked = arguments(__doc__)
    need("lm_eval", "transformers")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    count, shots = (3, 2) if asked.quick else (ROWS, SHOTS)
    rows = _hellaswag.rows(shots + count)
    if rows is None:
        sys.exit("HellaSwag is not here (set PANDO_DATA)")
    from pando.model.base import open_base

    base = open_base()
    task = _hellaswag.task(rows[:shots], rows[shots:])
    task.build_all_requests()
    requests = task.instances
    longest = max(len(base.tokenizer.encode(context + choice)) for context, choice in (r.args for r in requests))
    theirs = Theirs(base.folder, requests, requests[: 4 * min(PROBE, count)])
    ours = Ours(base.folder, requests)
    seconds = alternate({"pando": ours, "lm-eval hf": theirs}, asked.repeats)
    ratio = Ratio.of(seconds["lm-eval hf"], seconds["pando"])
    furthest = max(abs(a[0] - b[0]) for a, b in zip(ours.found, theirs.found, strict=True))
    same = sum(a == b for a, b in zip(choices(ours.found), choices(theirs.found), strict=True))
    holds = ratio.median >= TARGET and same >= 0.995 * count and furthest <= FURTHEST
    probes = ", ".join(f"{size}: {taken:.1f} s" for size, taken in theirs.probes.items())
    lines = [
        f"{count} HellaSwag rows with {shots} fixed shots ({len(requests)} requests of up to {longest} tokens), "
        f"{base.identity.name}, float32. Median of {asked.repeats} alternating runs:",
        "",
        "| | seconds |",
        "| --- | --- |",
        f"| pando, through its lm-eval adapter, nothing cached | {spread(seconds['pando'], 's')} |",
        f"| lm-eval `hf`, batches of {theirs.batch} | {spread(seconds['lm-eval hf'], 's')} |",
        f"| **ratio** (target {TARGET:g}x) | **{ratio}** |",
        "",
        f"Same choice in {same} of {count} rows; furthest log-probability {furthest:.1e}. Probe of the peer's batch "
        f"sizes on {4 * min(PROBE, count)} requests: {probes}.",
        "",
        f"{machine()}; {versions('torch', 'lm_eval', 'transformers')}; {today()}.",
    ]
    raw = {"seconds": seconds, "ratio": ratio.median, "same": same, "rows": count, "furthest": furthest}
    raw |= {"batch": theirs.batch, "probes": theirs.probes, "holds": holds, "target": TARGET}
    raw["median"] = {name: statistics.median(values) for name, values in seconds.items()}
    report("scoring", "Scoring with ten fixed shots", lines, raw, asked.record)
    return int(not holds)


if __name__ == "__main__":
    start(main)
