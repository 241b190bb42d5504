"""Pretraining against nanochat and LitGPT on the same shape, data and machine: tokens a second, quality at the same
wall time, memory with a large vocabulary.

Every side computes in the numbers that it chooses on a CPU: the peers in float32, Pando in bfloat16 where the machine
multiplies it faster (a row of its own then shows float32). The peers' sources are read from folders (`git clone`, then
`git checkout` of the commits below) that PANDO_NANOCHAT and PANDO_LITGPT name. Their own recipes run: compiled models,
their optimisers and schedules, nanochat's tricks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from _common import CACHE, HERE, Ratio, alternate, arguments, machine, report, spread, start, today, versions
from _shards import build, data

NANOCHAT = "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd"
LITGPT = "26857050fe3ff627cd714fe92f5838f51a3d5efa (0.5.13)"
SHAPE = {
    "depth": 6, "width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "hidden": 704, "length": 512, "batch": 16_384,
    "micro": 8,
}  # fmt: skip
QUICK = SHAPE | {"depth": 2, "width": 64, "heads": 1, "kv_heads": 1, "hidden": 192, "batch": 2048, "micro": 4}
GOALS = {"nanochat": 1.3, "litgpt": 1.5}


def run(side: str, **asked: Any) -> dict[str, float]:
    """One side in a fresh process."""
    command = [sys.executable, str(HERE / "_pretrain.py"), json.dumps({"side": side, **asked})]
    environment = {**os.environ, "NANOCHAT_DTYPE": "float32", "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    import torch

    from pando.train.lora import fastest_dtype

    options = arguments(__doc__)
    if data() is None:
        raise SystemExit("no public texts here: set PANDO_DATA")
    peers = [name for name in GOALS if os.environ.get(f"PANDO_{name.upper()}")]
    missing = [name for name in GOALS if name not in peers]
    shape, steps, warm = (QUICK, 6, 2) if options.quick else (SHAPE, 20, 5)
    shards = build(CACHE / "pretrain" / "shards", 4096)
    common = {"shape": shape, "shards": str(shards)}
    ours = ["pando"]
    if fastest_dtype(torch.device("cpu")) != torch.float32:
        ours.append("pando float32")
    sides = {
        side: lambda side=side: run(side, steps=steps, warm=warm, documents=0, **common) for side in (*ours, *peers)
    }
    speed = alternate(sides, options.repeats)
    rates = {side: [one["tokens_per_second"] for one in found] for side, found in speed.items()}
    lines = [
        f"{today()}, {machine()}, {versions('torch', 'numpy')}; nanochat {NANOCHAT[:12]}, LitGPT {LITGPT[:12]}; "
        f"{shape['depth']} blocks of width {shape['width']}, rows of {shape['length']}, {shape['batch']:,} tokens a "
        f"step, median of {steps - warm} steps.",
        "",
        "| side | tokens/s | first step | against |",
        "|---|---|---|---|",
    ]
    failed = False
    for side, found in rates.items():
        ratio = Ratio.of(rates["pando"], found)
        first = spread([one["first_step"] for one in speed[side]], "s")
        against = f"pando is {ratio}" if side != "pando" else ""
        if side in GOALS:
            against += f", asked for {GOALS[side]}x"
            failed |= ratio.median < GOALS[side]
        lines.append(f"| {side} | {spread(found, '', 0)} | {first} | {against} |")
    bits: dict[str, float] = {}
    seconds = 20.0 if options.quick else 10 * 60.0
    for side in ("pando", *peers):
        each = sum(shape["batch"] / rate for rate in rates[side]) / len(rates[side])
        count = max(warm + 2, round(seconds / each))
        found = run(side, steps=count, warm=warm, documents=100, **common)
        bits[side] = found["bits_per_byte"]
        seconds = max(seconds, found["seconds"])  # a peer gets no less time than we took
        lines.append(
            f"\n{side}: {count:,} steps in {found['seconds']:.0f} s, {bits[side]:.4f} bits per byte held back."
        )
    failed |= any(bits["pando"] > bits[peer] for peer in peers)
    wide = build(CACHE / "pretrain" / "wide", 32_768)
    memory = {side: run(side, steps=3, warm=1, documents=0, shape=shape, shards=str(wide))["memory"] for side in sides}
    lines.append(
        "\nMemory with a vocabulary of 32,768: " + ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in memory.items())
    )
    if missing:
        lines.append(
            f"\nNot here: {', '.join(missing)} (set {', '.join(f'PANDO_{name.upper()}' for name in missing)})."
        )
    raw = {"speed": speed, "bits_per_byte": bits, "memory": memory}
    report("pretrain", "Pretraining", lines, raw, options.record)
    return int(failed or bool(missing))


if __name__ == "__main__":
    start(main)
