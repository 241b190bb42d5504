"""Every family agrees with transformers, and every group goes through training, engine, adapters: in few minutes.

Runs the tables of tests (families, encoders, encoder-decoders, a new family by its page; the grid of groups and
objectives, what adapters learn, whole ladders of what is no decoder and their server, costs) and says how many cases
held and how long they took on the cores that are here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARITY = ("test_families", "test_encoders", "test_seq2seq", "test_new_family")
GRID = ("train/test_grid", "train/test_learning", "adapt/test_groups", "model/test_upcycle", "model/test_anatomy")
MOST_MINUTES = {"parity": 4.0, "grid": 3.0}


def run(files: list[str]) -> tuple[str, float]:
    """pytest's last line on some files, and the minutes that they took."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-3000:], flush=True)
    if done.returncode:
        raise SystemExit(f"{files[0]} and others: {done.stdout.strip().splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1], (time.monotonic() - began) / 60


def main() -> int:
    said, faults = [], []
    for name, files in (("parity", [f"model/{one}" for one in PARITY]), ("grid", GRID)):
        last, minutes = run([f"tests/{one}.py" for one in files])
        count = re.search(r"(\d+) passed", last)
        said.append(f"{name}: {count[1] if count else 0} cases in {minutes:.1f} min")
        faults += [f"{name} took more than {MOST_MINUTES[name]:.0f} minutes"] * (minutes > MOST_MINUTES[name])
        faults += [f"{name}: nothing passed"] * (count is None)
    print("; ".join([*said, *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
