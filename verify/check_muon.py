"""Muon reaches AdamW's bits per byte in at least 25 % fewer steps: seven rates each, best of each over 5 seeds.

Each run has a whole schedule of its own. AdamW makes STEPS steps, Muon three quarters of them; paired by seed, Muon's
bits per byte of held-back text must be lower still (one-sided paired t-test, p < 0.01).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
STEPS = int(os.environ.get("PANDO_MUON_STEPS", "240"))
FEWER = 0.75
SEEDS = range(5)
RATES = {
    "adamw": (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
    "muon": (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
}
SHAPE = {
    "model.family": "qwen3", "model.depth": 3, "model.width": 128, "model.hidden": 320, "model.heads": 2,
    "model.kv_heads": 1, "model.head_dim": 64, "model.context": 256, "sequence": 256, "batch": 4096,
    "machine.number": "float32", "machine.compile": "off", "optim.warmup": 0.03, "optim.decay": 0.5,
}  # fmt: skip


def trained(shards: Any, kind: str, rate: float, steps: int, seed: int) -> float:
    """Bits per byte of held-back text after a whole run."""
    import torch

    from pando.train.config import build
    from pando.train.dial import model_config
    from pando.train.parallel import Place
    from pando.train.trainer import Trainer

    own = {"optim.rate": rate, "optim.clip": 1.0, "optim.weight_decay": 0.1, "optim.epsilon": 1e-8}
    if kind == "muon":
        own = {"optim.matrix_rate": rate, "optim.rate": 0.004, "optim.momentum_steps": steps // 3}
    config = build({**SHAPE, **own, "optim.kind": kind, "seed": seed, "tokens": SHAPE["batch"] * steps})
    trainer = Trainer(config, model_config(config, shards.vocab_size), shards, Place(0, 1, torch.device("cpu")))
    for _ in range(config.steps):
        trainer.step()
    found: float = trainer.validate(150_000)["bits_per_byte"]
    return found


def main() -> int:
    from _shards import build as build_shards
    from _shards import data
    from scipy.stats import ttest_rel

    from pando.files import append_line, read_lines
    from pando.train.shards import open_shards

    if data() is None:
        print("cannot run here: no public texts (set PANDO_DATA)")
        return 77
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "muon")
    work.mkdir(parents=True, exist_ok=True)
    shards = open_shards(build_shards(work / "corpus"))
    notes = work / f"runs-{STEPS}.jsonl"
    known = {tuple(one[:-1]): one[-1] for one in map(json.loads, read_lines(notes))}

    def bits(kind: str, rate: float, steps: int, seed: int) -> float:
        key = (kind, rate, steps, seed)
        if key not in known:
            known[key] = trained(shards, *key)
            append_line(notes, json.dumps([*key, known[key]]))
        print(f"{kind} {rate:g} seed {seed}, {steps} steps: {known[key]:.4f} bits per byte", flush=True)
        return known[key]

    fewer = round(STEPS * FEWER)
    best = {
        kind: min(rates, key=lambda rate, kind=kind: bits(kind, rate, STEPS if kind == "adamw" else fewer, 0))
        for kind, rates in RATES.items()
    }
    adamw = [bits("adamw", best["adamw"], STEPS, seed) for seed in SEEDS]
    muon = [bits("muon", best["muon"], fewer, seed) for seed in SEEDS]
    p = float(ttest_rel(muon, adamw, alternative="less").pvalue)
    inside = all(rate not in (RATES[kind][0], RATES[kind][-1]) for kind, rate in best.items())
    print(
        f"Muon ({best['muon']:g}) after {fewer} steps {statistics.fmean(muon):.4f} bits per byte, AdamW "
        f"({best['adamw']:g}) after {STEPS} {statistics.fmean(adamw):.4f}; p = {p:.2g} over {len(adamw)} seeds"
        + ("" if inside else "; a best rate lies at the end of its row")
    )
    return int(not (p < 0.01 and inside))


if __name__ == "__main__":
    sys.exit(main())
