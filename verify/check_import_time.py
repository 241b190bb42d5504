"""`import pando` and `pando --help` take under 0.5 s."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 0.5


def seconds(arguments: list[str]) -> float:
    """Median of seven fresh processes."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


taken = {"import pando": seconds(["-c", "import pando"]), "pando --help": seconds(["-m", "pando", "--help"])}
print("; ".join(f"{what} {time_:.2f} s" for what, time_ in taken.items()) + f"; limit {LIMIT} s")
sys.exit(int(max(taken.values()) >= LIMIT))
