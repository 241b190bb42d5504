"""What the checks of whole ladders share: rows of the public data sets, and `pando adapt` on them as a user runs it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data")
ABSENT = f"no data sets at {DATA}; name their folder in PANDO_DATA"


def rows(name: str, most: int) -> list[dict[str, Any]]:
    """The first rows of a file of a data set."""
    data = (DATA / name).read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    return [json.loads(line) for line in text.decode().splitlines()[:most]]


def write(path: Path, found: list[dict[str, Any]]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))


def work_folder(check: str) -> Path:
    """Where a check keeps its ladders, with a ledger of its own from here on."""
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / check).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PANDO_LEDGER"] = f"sqlite:///{work / 'ledger.sqlite'}"
    return work


def climb(task: dict[str, Any], folder: Path, base: str | None = None) -> dict[str, Any]:
    """The report of `pando adapt --mode sweep` in `folder/out`, where a ladder that was interrupted goes on."""
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    arguments = [str(folder / "task.yaml"), "--mode", "sweep", "--out", str(folder / "out"), "--json"]
    arguments += [] if base is None else ["--base", base]
    done = subprocess.run([sys.executable, "-m", "pando", "adapt", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{task['name']}: pando adapt ended with {done.returncode}")
    report = dict(json.loads(done.stdout))
    qualities = ", ".join(f"{r['name']} {r['dev']['quality']:.3f}" for r in report["rungs"] if r["dev"])
    print(f"{task['name']}: {report['chosen']} in {report['seconds'] / 60:.1f} min ({qualities}): {report['why']}")
    sys.stdout.flush()
    return report
