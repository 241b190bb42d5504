"""Forecasts of pretraining hold at four sizes: median of actual over forecast step time and memory within 10 %.

Step times are corrected by a matrix product that is timed before and after each run, as the machine's speed varies.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
SIZES = {"1m": (2, 64), "2m": (3, 128), "4m": (4, 192), "8m": (5, 256)}  # depth, width
STEPS = int(os.environ.get("PANDO_FORECAST_STEPS", "20"))
CONFIG = """\
model: {{depth: {depth}, width: {width}, context: 256}}
sequence: 256
batch: 4096
tokens: {tokens}
machine: {{number: float32}}
keep: {{minutes: 0}}
watch: {{validation_tokens: 20000}}
"""
PROBE = (
    "import torch; from pando.train.plan import product_flops; print(product_flops(torch.device('cpu'), repeats=15))"
)


def probe() -> float:
    """FLOPs a second of a matrix product now."""
    return float(subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout)


def answer(command: list[str]) -> dict[str, Any]:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[3:])}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    from _shards import build, data

    if data() is None:
        print("cannot run here: no public texts (set PANDO_DATA)")
        return 77
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "forecast").absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PANDO_HOME": str(work / "home")}
    corpus = build(work / "corpus")
    times, memories = [], []
    for name, (depth, width) in SIZES.items():
        config, out = work / f"{name}.yaml", work / name
        config.write_text(CONFIG.format(depth=depth, width=width, tokens=4096 * STEPS))
        shutil.rmtree(out, ignore_errors=True)
        before = probe()
        command = [sys.executable, "-m", "pando", "pretrain", str(config), "--corpus", str(corpus), "--json"]
        said = answer([*command, "--plan"])  # a process of its own, whose memory the run does not share
        was = answer([*command, "--out", str(out)])["actual"]
        after = probe()
        speed = (before + after) / 2 / said["product_flops"]
        times.append(was["step_seconds"] / said["step_seconds"] * speed)
        memories.append(was["memory"] / said["memory"])
        print(
            f"{name}: step {was['step_seconds']:.3f} s, forecast {said['step_seconds']:.3f} s, product {speed:.2f}x, "
            f"ratio {times[-1]:.3f}; memory {was['memory'] / 2**20:.0f} MiB, ratio {memories[-1]:.3f}",
            flush=True,
        )
    time, memory = statistics.median(times), statistics.median(memories)
    worst = max(abs(one - 1) for one in memories)
    print(
        f"actual over forecast, median of {len(times)} sizes: step time {time:.3f} "
        f"({min(times):.3f} to {max(times):.3f}), memory {memory:.3f} (worst {worst:.1%} off)"
    )
    return int(abs(time - 1) > 0.1 or abs(memory - 1) > 0.1)


if __name__ == "__main__":
    sys.exit(main())
