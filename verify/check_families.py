"""Every family agrees with transformers, and every group goes through training, engine, adapters: in few minutes.

Runs the tables of tests (families, encoders, the grid of groups and objectives, a new family by its page, costs) and
says how many cases held and how long they took on the cores that are here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARITY = ("tests/model/test_families.py", "tests/model/test_encoders.py", "tests/model/test_new_family.py")
GRID = ("tests/train/test_grid.py", "tests/model/test_upcycle.py", "tests/model/test_anatomy.py")
MOST_MINUTES = {"parity": 4.0, "grid": 3.0}


def run(files: tuple[str, ...]) -> tuple[str, float]:
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
    for name, files in (("parity", PARITY), ("grid", GRID)):
        last, minutes = run(files)
        count = re.search(r"(\d+) passed", last)
        said.append(f"{name}: {count[1] if count else 0} cases in {minutes:.1f} min")
        faults += [f"{name} took more than {MOST_MINUTES[name]:.0f} minutes"] * (minutes > MOST_MINUTES[name])
        faults += [f"{name}: nothing passed"] * (count is None)
    print("; ".join([*said, *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
