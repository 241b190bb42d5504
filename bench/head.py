"""The output head in training: peak memory and time of a step against torch's cross-entropy over the full logits.

    python bench/head.py [--quick] [--repeats 3] [--record]

A qwen3 of 6 layers of 256 with a vocabulary of 32,768 makes forward and backward passes over packed rows of 512, once
with `batch_loss` and once with `F.cross_entropy(model.head(hidden), targets)`, all else alike. Every run is a process
of its own, and its peak memory is that of the process, torch and model included.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

from _common import ROOT, Ratio, alternate, arguments, machine, report, spread, start, today, versions

VOCAB, WIDTH, LAYERS, LENGTH = 32_768, 256, 6, 512
TARGET = 2.0


def step_once(side: str, rows: int, steps: int) -> dict[str, float]:
    """In the process of one run: peak MiB, median seconds of a step, mean loss in nats of the last one."""
    import torch
    import torch.nn.functional as F

    from pando.model.config import AttentionConfig, InitConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig
    from pando.model.transformer import Transformer
    from pando.train.batch import Batch
    from pando.train.loss import batch_loss

    layer = LayerConfig(AttentionConfig(4, 4, 64, RopeConfig(64), qk_norm="head"), MlpConfig(3 * WIDTH))
    model = Transformer(ModelConfig("qwen3", VOCAB, WIDTH, (layer,) * LAYERS, LENGTH, tied=True, init=InitConfig()))
    model.initialise(0)
    drawn = torch.randint(0, VOCAB, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(LENGTH).expand(rows, -1) // 128
    zeros = torch.zeros(rows, LENGTH, dtype=torch.int64)
    places = torch.arange(rows * LENGTH)
    positions = torch.arange(LENGTH).expand(rows, -1) % 128
    batch = Batch(drawn[:, :-1], drawn[:, 1:], documents, positions, zeros.bool(), zeros, ("causal",), places)
    seconds, mean = [], 0.0
    for _ in range(steps):
        began = time.perf_counter()
        if side == "pando":
            loss = batch_loss(model, batch).total
        else:
            logits = model.head(model(batch.tokens, batch.inputs(model.config).context))
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        (loss / batch.weight).backward()
        seconds.append(time.perf_counter() - began)
        mean = float(loss.detach()) / batch.weight
        model.zero_grad()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak": peak, "seconds": statistics.median(seconds[1:]), "loss": mean}


def run(side: str, rows: int, steps: int) -> dict[str, float]:
    """`step_once` in a process of its own."""
    command = [sys.executable, str(ROOT / "bench" / "head.py"), "--run", side, str(rows), str(steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    asked = arguments(__doc__)
    rows, steps = (2, 2) if asked.quick else (16, 4)
    runs = alternate({side: partial(run, side, rows, steps) for side in ("pando", "full")}, asked.repeats)
    peaks, seconds = (
        Ratio.of(*([one[what] for one in runs[s]] for s in ("full", "pando"))) for what in ("peak", "seconds")
    )
    same = math.isclose(runs["pando"][0]["loss"], runs["full"][0]["loss"], rel_tol=1e-5)
    raw: dict[str, Any] = {"memory": peaks.median, "time": seconds.median, "target": TARGET, "runs": runs}
    raw["holds"] = holds = peaks.median >= TARGET and same
    names = {"pando": "`batch_loss`", "full": "full logits, `F.cross_entropy`"}
    lines = [
        f"Forward and backward pass over {rows * LENGTH:,} tokens ({rows} rows of {LENGTH}, four documents each), "
        f"qwen3 of {LAYERS} layers of {WIDTH}, tied vocabulary of {VOCAB:,}, float32. Median of {asked.repeats} "
        "alternating runs:",
        "",
        "| | peak memory of the process | seconds a step |",
        "| --- | --- | --- |",
        *(
            f"| {names[side]} | {spread([one['peak'] for one in found], 'MiB', 0)} | "
            f"{spread([one['seconds'] for one in found], 's', 2)} |"
            for side, found in runs.items()
        ),
        f"| **ratio** (target {TARGET:g}x less memory) | **{peaks}** | {seconds} |",
        "",
        f"The losses are the same to 1e-5: {'yes' if same else 'NO'}.",
        "",
        f"{machine()}; {versions('torch')}; {today()}.",
    ]
    report("head", "Output head", lines, raw, asked.record)
    return int(not holds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(step_once(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        start(main)
