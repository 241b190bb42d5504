"""What the benchmarks share: alternating repeats, medians, the machine in words, and the file of results.

A benchmark is a ratio against a named peer on the same work in the same run. It prints its section and keeps it under
`.cache/bench`; with `--record` the section also goes into RESULTS.md, whether it is favourable or not.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_DISABLE_TELEMETRY", "1")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = ROOT / ".cache" / "bench"
RESULTS = HERE / "RESULTS.md"
HEAD = """\
# Benchmarks

Each is a ratio against a named peer on the same work in the same run: alternating repeats, medians, the spread from the
smallest to the largest ratio of neighbouring runs. `python bench/<name>.py --record` replaces a section.
"""

T = TypeVar("T")


def arguments(doc: str | None, parts: Sequence[str] = ()) -> argparse.Namespace:
    """`quick`, `repeats` and `record`, as every benchmark takes them, and `part` where one has several."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny size, to see that it runs; proves nothing")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument("--record", action="store_true", help="write the section into bench/RESULTS.md")
    if parts:
        parser.add_argument("--part", choices=parts, help="only this part (default all)")
    found = parser.parse_args()
    if found.quick and found.record:
        parser.error("a quick run proves nothing and is not recorded")
    return found


def alternate(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Runs the sides in turn, `repeats` times, every other time in the opposite order, so that a machine that slows
    down or warms up favours none."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else reversed(list(sides)):
            found[name].append(sides[name]())
            print(f"   {repeat + 1} of {repeats}: {name}: {found[name][-1]}", flush=True)
    return found


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of paired runs, with the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float], unit: str, digits: int = 1) -> str:
    """Median and range in words."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def machine() -> str:
    """Processor, cores, threads used, memory and whether bfloat16 is multiplied in hardware."""
    import psutil
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
    has = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores "
        f"({torch.get_num_threads()} threads), {' '.join(has)}, {memory:.0f} GiB"
    )


def versions(*packages: str) -> str:
    """Name and version of each package."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def report(name: str, title: str, lines: Sequence[str], raw: Mapping[str, Any], record: bool) -> None:
    """Prints a section, keeps it with its raw numbers under `.cache/bench`, and records it if asked to."""
    from pando.files import atomic_write

    text = "\n".join([f"## {title}", "", *lines, ""])
    print("\n" + text, flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    atomic_write(CACHE / f"{name}.md", text)
    atomic_write(CACHE / f"{name}.json", json.dumps(raw, indent=1))
    if record:
        old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else HEAD
        atomic_write(RESULTS, replaced(old, title, text))


def replaced(document: str, title: str, section: str) -> str:
    """The document with the section of this title exchanged, or added at its end."""
    head, *sections = document.split("\n## ")
    kept = {part.split("\n", 1)[0]: part.rstrip() for part in sections}
    kept[title] = section.removeprefix("## ").rstrip()
    return "\n\n## ".join([head.rstrip(), *kept.values()]) + "\n"


def today() -> str:
    """The date in the results."""
    return datetime.date.today().isoformat()


def start(main: Callable[[], int]) -> None:
    """Runs a benchmark's `main` and exits with its code; a mistake that the user can mend is one line."""
    from pando.errors import PandoError

    try:
        sys.exit(main())
    except PandoError as error:
        sys.exit(str(error))


def need(*packages: str) -> None:
    """Ends with one line if a peer is not installed."""
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            sys.exit(f"the peer {package} is not installed: run `make bench`, or pip install -e '.[dev,bench]'")
