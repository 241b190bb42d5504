"""A fresh clone in a folder with a space in its name: `make demo` works within 15 minutes and leaves the tree clean.

It clones the last commit and starts with no environment, no base model and no ledger.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MINUTES = 15
RUNGS = ("floor", "zero", "few", "knn", "probe", "lora")
SAID = {
    "every rung": [rf"\b{name}\b.*\[0\.\d\d, [01]\.\d\d\]" for name in RUNGS],
    "the decision": [r"Decision\s+\w+ is ", r"Test\s+0\.\d{3} \[0\.\d\d, [01]\.\d\d\]", r"against the floor.*\[[+-]"],
    "two answers": [r"(?:positive|negative) {2}\(\d+ ms\)[\s\S]*(?:positive|negative) {2}\(\d+ ms\)"],
    "the ledger": [r"\$ pando ledger[\s\S]*\bcall\b[\s\S]*\btest_opening\b"],
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "fresh clone of Pando")
        subprocess.run(["git", "clone", "--quiet", str(Path.cwd()), str(clone)], check=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PANDO_", "VERIFY_"))}
        environment["PANDO_HOME"] = str(Path(folder, "home"))
        lines, longest, seconds, code = run_demo(clone, environment)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    faults = [] if code == 0 else [f"make demo ended with {code}"]
    for what, patterns in SAID.items():
        if not all(re.search(pattern, "".join(lines)) for pattern in patterns):
            faults.append(f"{what} was not printed")
    if status.stdout:
        faults.append(f"the tree is not clean: {status.stdout.split()}")
    if seconds > 60 * MINUTES:
        faults.append("it took too long")
    print("; ".join([f"{seconds / 60:.1f} of {MINUTES} minutes, longest silence {longest:.0f} s", *faults]))
    return int(bool(faults))


def run_demo(clone: Path, environment: dict[str, str]) -> tuple[list[str], float, float, int]:
    """What it printed, its longest silence and whole time in seconds, its exit code."""
    lines: list[str] = []
    longest, begin = 0.0, time.monotonic()
    said = begin
    process = subprocess.Popen(
        ["make", "demo"], cwd=clone, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout
    for line in process.stdout:
        longest, said = max(longest, time.monotonic() - said), time.monotonic()
        lines.append(line)
        print(line, end="")
    code = process.wait()
    return lines, longest, time.monotonic() - begin, code


sys.exit(main())
