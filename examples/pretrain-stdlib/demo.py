"""When does training your own base pay? The standard library becomes a corpus, a tokenizer and a small code model; then
one task is adapted on it and on SmolLM2, and the two ladders are laid side by side.

    make pretrain-demo

Everything is kept in .cache/pretrain-stdlib; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import judge
import prepare

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples", "pretrain-stdlib")  # below ROOT, where everything runs
WORK = Path(".cache", "pretrain-stdlib")
PANDO = [sys.executable, "-m", "pando"]
OTHER = "smollm2-135m"


def main() -> None:
    start = time.monotonic()
    step("The text: modules of the standard library on this machine, some held back")
    if not (ROOT / WORK / "task" / "task.yaml").exists():
        prepare.prepare(ROOT / WORK)

    step("The corpus: deduplicated, decontaminated, tokenised, in shards")
    pando("corpus", "build", HERE / "corpus.yaml", "--out", WORK / "corpus")

    step("The base model")
    pando("pretrain", HERE / "pretrain.yaml", "--corpus", WORK / "corpus", "--out", WORK / "run", "--resume")
    base = WORK / "run" / "model"
    say_bits(base)

    step("The task on the new base, and on SmolLM2")
    compare({name: ladder(name, ref) for name, ref in (("stdlib-4m", str(base)), (OTHER, OTHER))})
    print(f"\nAll of this took {(time.monotonic() - start) / 60:.1f} minutes.")


def step(title: str) -> None:
    print(f"\n── {title}", flush=True)


def pando(*arguments: str | Path) -> None:
    """Runs a pando command, its output shown; ends with its exit code if it fails."""
    print("$ pando " + " ".join(str(one) for one in arguments), flush=True)
    done = subprocess.run([*PANDO, *map(str, arguments)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def say_bits(base: Path) -> None:
    """Bits per byte of the held-back modules, and the ones on which gzip is ahead."""
    import pando as package

    with package.load(ROOT / base) as model:
        found = judge.judge(model, ROOT / WORK / "held", ROOT / WORK / "bits.json")
    print(found)
    for name, size, bits, zipped in found.behind:
        print(f"  {name} ({size:,} bytes): {bits:.2f}, gzip {zipped:.2f}")


def ladder(name: str, base: str) -> dict[str, Any]:
    """The report of a sweep over the rungs on a base."""
    out = WORK / f"ladder-{name}"
    pando("adapt", WORK / "task" / "task.yaml", "--base", base, "--mode", "sweep", "--out", out)
    return dict(json.loads((ROOT / out / "report.json").read_text(encoding="utf-8")))


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Which base pays: quality on the same test rows and cost of a call, side by side."""
    print(f"\n{'base':<14}{'chosen':<8}{'test [95 %]':<24}{'$ / 1,000':<12}build")
    for name, report in found.items():
        test = report["test"]
        rung = next((r for r in report["rungs"] if r["name"] == report["chosen"]), None)
        if not test or not rung:
            print(f"{name:<14}nothing passed")
            continue
        quality = f"{test['quality']:.3f} [{test['low']:.3f}, {test['high']:.3f}]"
        print(f"{name:<14}{report['chosen']:<8}{quality:<24}{rung['cost_per_1k']:<12.5f}{rung['build_seconds']:.0f} s")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        sys.exit()
    sys.exit(130)
