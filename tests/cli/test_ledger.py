from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pando.interface import Identity, Usage
from pando.ledger import open_ledger

BASE = Identity(name="tiny", hash="sha256:abc", source="test")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pando", "ledger", *arguments], capture_output=True, text=True)


def test_an_empty_ledger_says_so(home: Path) -> None:
    assert "empty" in run().stdout
    assert json.loads(run("--json").stdout) == []


def test_lines_sums_and_totals(home: Path) -> None:
    with open_ledger() as ledger:
        for _ in range(25):
            ledger.record("call", skin="tweets", skin_version="sha256:0123456789", base=BASE, usage=Usage(1000, 400, 3))
        ledger.record("build", base=BASE, seconds={"compute": 12.5}, usd=0.25)
    table = run().stdout
    assert "20 of 26 lines" in table and "01234567" in table and "0.250000" in table
    sums = run("--by", "skin").stdout
    assert "25,000" in sums and "10,000" in sums and "total" in sums
    assert [row["lines"] for row in json.loads(run("--by", "kind", "--json").stdout)] == [1, 25]
    assert len(json.loads(run("--json").stdout)) == 26
    assert len(json.loads(run("--json", "--last", "3").stdout)) == 3


def test_mistakes_are_one_line(home: Path) -> None:
    (home / "ledger.sqlite").write_bytes(b"not a database at all, and longer than that " * 100)
    for arguments, said in (((), "damaged"), (("--by", "colour"), "colour"), (("--last", "0"), "--last")):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr
