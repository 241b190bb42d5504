"""Ten SIGKILLs at random moments of `pando adapt`, each gone on from: the same decision, nothing scored twice.

A ladder over all six rungs on real tweets and the real base runs once without interruption and once killed ten times.
What decides a near tie between two rungs' costs is the clock, so the two runs are compared by what they measured; the
interrupted run must also repeat its own decision, from what it stored.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KILLS = 10
CLOSE = 1e-3  # of the largest weight
TRAIN, TEST = 200, 100


def make_task(folder: Path) -> Path:
    """A small cut of the tweets, so that twelve runs take minutes."""
    sys.path.insert(0, str(ROOT / "examples" / "tweets"))
    import tweets

    if not (folder / "task.yaml").exists():
        tweets.build(folder / "whole")
        for name, rows in (("train", TRAIN), ("test", TEST)):
            lines = (folder / "whole" / f"{name}.jsonl").read_text().splitlines(keepends=True)
            (folder / f"{name}.jsonl").write_text("".join(lines[:rows]))
        shutil.copy(folder / "whole" / "task.yaml", folder / "task.yaml")
    return folder / "task.yaml"


def command(task: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "pando", "adapt", str(task), "--mode", "sweep", "--out", str(out), "--json"]


def whole(task: Path, out: Path) -> tuple[dict[str, Any], float]:
    """A run to its end, and how long it took."""
    start = time.monotonic()
    done = subprocess.run(command(task, out), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.monotonic() - start


def killed(task: Path, out: Path, after: float, working: bool = False) -> bool:
    """Starts a run and kills it after so many seconds, counted from its first work on the ladder if `working`; False if
    it ended before."""
    run, before = out / "run.json", (out / "run.json").stat().st_mtime_ns if working else 0
    process = subprocess.Popen(command(task, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while working and run.stat().st_mtime_ns == before and process.poll() is None:
        time.sleep(0.01)
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def twice(out: Path) -> list[tuple[str, str]]:
    """(skin, item) pairs that the store holds more than once."""
    counts: Counter[tuple[str, str]] = Counter()
    for line in (out / "items.jsonl").read_text().splitlines():
        batch = json.loads(line)
        counts.update((batch["skin"], record["id"]) for record in batch["items"])
    return [pair for pair, count in counts.items() if count > 1]


def measured(report: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on interruptions: qualities and intervals of all rungs, and their comparisons."""
    rungs = {rung["name"]: (rung["dev"], rung["select"]) for rung in report["rungs"]}
    return {"rungs": rungs, "best": report["best"], "comparisons": report["comparisons"]}


def other_skins(mine: Path, reference: Path) -> list[str]:
    """Rungs whose skins say something else, or whose weights are further apart than rounding explains: hidden states
    are computed in batches as requests come, and sums of other batches round otherwise."""
    import numpy as np
    from safetensors.numpy import load_file

    found = []
    for folder in sorted((reference / "skins").iterdir()):
        other = mine / "skins" / folder.name
        said = [(one / "skin.yaml").read_text().partition("\nfiles:")[0] for one in (folder, other)]
        weights = [
            load_file(one / "weights.safetensors") for one in (folder, other) if (one / "weights.safetensors").exists()
        ]
        apart = len(weights) == 1 or any(
            np.abs(weights[0][name] - weights[1][name]).max() > CLOSE * np.abs(weights[0][name]).max()
            for name in (weights[0] if weights else ())
        )
        if apart or said[0] != said[1]:
            found.append(folder.name)
    return found


def main() -> int:
    work = Path(os.environ.get("VERIFY_WORK") or ".cache/verify/kills")
    work.mkdir(parents=True, exist_ok=True)
    task = make_task(work)
    os.environ["PANDO_LEDGER"] = f"sqlite:///{(work / 'ledger.sqlite').absolute()}"
    reference, seconds = whole(task, work / "reference")
    print(f"without interruption: {reference['chosen']}, {seconds:.0f} s", flush=True)

    out = work / "killed"
    shutil.rmtree(out, ignore_errors=True)
    note = Path("rungs", "lora", "numbers.json")
    draw = random.Random(7)
    kills, stored = 0, b""
    while kills < KILLS:
        # one killed run after another covers the whole way, since each goes on where the one before was
        after = draw.uniform(3, max(10.0, 2 * reference["seconds"] / KILLS))
        if not killed(task, out, after):
            break
        kills += 1
        if (out / "run.json").exists() and not (out / note).exists() and (work / "reference" / note).exists():
            # LoRA trains in the numbers that were fastest when it was first asked, which may differ between runs
            (out / note).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(work / "reference" / note, out / note)
        now = (out / "items.jsonl").read_bytes() if (out / "items.jsonl").exists() else b""
        if not now.startswith(stored[: stored.rfind(b"\n") + 1]):
            print(f"kill {kills}: lines of the store were lost or changed")
            return 1
        stored = now
        print(f"kill {kills} after {after:.0f} s: {stored.count(chr(10).encode())} batches are kept", flush=True)
    while kills < KILLS:  # it was over too soon: the others hit its last stretch, started anew from the scores
        for name in ("report.json", "skin"):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        kills += killed(task, out, draw.uniform(0.1, 2), working=True)
    report, _ = whole(task, out)
    again, _ = whole(task, out)

    faults = []
    if measured(report) != measured(reference):
        faults.append("what was measured differs from the run without interruption")
    if others := other_skins(out, work / "reference"):
        faults.append(f"other skins of {', '.join(others)}")
    if (report["chosen"], report["why"]) != (again["chosen"], again["why"]):
        faults.append("the decision changed when asked again")
    if report["chosen"] != reference["chosen"]:
        faults.append(f"chosen {report['chosen']}, without interruption {reference['chosen']}")
    elif report["test"] and report["test"]["quality"] != reference["test"]["quality"]:
        faults.append("the test quality differs")
    if repeated := twice(out):
        faults.append(f"{len(repeated)} items scored twice")
    count = sum(len(json.loads(line)["items"]) for line in (out / "items.jsonl").read_text().splitlines())
    faults_said = "; ".join(faults) or "same qualities, same decision"
    print(f"{kills} kills, {count:,} scored items, {len(repeated)} of them twice; {faults_said}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
