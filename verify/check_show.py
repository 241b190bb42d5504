"""`pando show` on public configs: parameters as their cards state them, from config.json alone, under two seconds each.

The configs and numbers are those of tests/model/test_anatomy.py; the command runs as a user runs it. A dense base and a
mixture are compared, too.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.model.test_anatomy import CARDS  # noqa: E402

MOST_SECONDS = 2.0
KEYS = {"parameters", "flops_per_token", "kv_bytes_per_token", "layers", "family"}


def show(*arguments: Path | str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pando", "show", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"pando show {' '.join(map(str, arguments))} ended with {done.returncode}")
    return done.stdout


def as_on_the_card(count: int, said: str) -> bool:
    """Whether a count is what a card says in billions, rounded or cut off."""
    places = len(said.partition(".")[2])
    return said in (f"{count / 1e9:.{places}f}", f"{math.floor(count / 1e9 * 10**places) / 10**places:.{places}f}")


def main() -> int:
    faults, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, (values, total, active) in CARDS.items():
            place = Path(folder, name)
            place.mkdir()
            (place / "config.json").write_text(json.dumps(values))
            began = time.perf_counter()
            found = json.loads(show(place, "--json"))
            taken = time.perf_counter() - began
            slowest = max(slowest, taken)
            counted = found["parameters"]
            print(
                f"{name}: {counted['total'] / 1e9:.3f} / {counted['active'] / 1e9:.3f} billion, card {total} / {active}"
            )
            faults += [f"{name}: {key} is missing" for key in KEYS - set(found)]
            faults += [f"{name} took {taken:.1f} s"] * (taken > MOST_SECONDS)
            for kind, said in (("total", total), ("active", active)):
                faults += [f"{name}: {kind} is {counted[kind]:,}"] * (not as_on_the_card(counted[kind], said))
        compared = show(Path(folder, "Mistral-7B-v0.1"), Path(folder, "Mixtral-8x7B")).strip().splitlines()[-2:]
        print("\n".join(compared))
        faults += ["no comparison"] * (not all("times cheaper to" in line for line in compared))
    said = f"{len(CARDS)} configs, the slowest in {slowest:.2f} s"
    print("; ".join([said, *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
