"""What Pando does in the benchmarks of curation, one piece of work in a process of its own, so that memory is its own.

_corpus_side.py dedup|filters|tokenise FOLDER [TOKENIZER]
"""

from __future__ import annotations

import importlib
import itertools
import json
import resource
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa


def dedup(folder: Path) -> dict[str, Any]:
    """Reading, signatures, links, and writing what is kept."""
    from pando.corpus import engine
    from pando.corpus.build import Build
    from pando.corpus.config import load_config
    from pando.corpus.parts import read_table, text_of, write_table

    config = folder / "corpus.yaml"
    config.write_text("sources: [{name: texts, files: in/*.jsonl}]\nstages: {near: {}}\n")
    for left in ("work", "kept"):
        shutil.rmtree(folder / left, ignore_errors=True)
    engine.start(2)
    build = Build(load_config(config), folder / "work")
    parts = build.parts()
    decisions = build.decide(parts)
    starts = itertools.accumulate((part.rows for part in parts), initial=0)

    def keep(place: int, start: int) -> list[tuple[str, int]]:
        part = parts[place]
        kept = pa.array(decisions.kept[start : start + part.rows])
        write_table(folder / "kept" / f"{place}.parquet", pa.table({"text": text_of(part.text).filter(kept)}))
        read = read_table(part.read, ["file", "row"]).filter(kept)
        return list(zip(read.column("file").to_pylist(), read.column("row").to_pylist(), strict=True))

    with ThreadPoolExecutor(2) as workers:  # two, as all before and as the peer
        rows = [row for listed in workers.map(keep, range(len(parts)), starts) for row in listed]
    return {"kept": rows}


def filters(folder: Path) -> dict[str, Any]:
    """Scores and decisions of the Gopher rules."""
    from pando.corpus import rules

    found = {}
    for path in sorted((folder / "in").glob("*.jsonl")):
        with path.open() as lines:
            listed = [json.loads(line) for line in lines]
        for at in range(0, len(listed), 2000):
            some = listed[at : at + 2000]
            table = rules.scores(
                pa.array([row["text"] for row in some], pa.large_string()), ("gopher", "gopher_repetition")
            )
            answers = [
                rules.decide(table, rules.limits_of((family,), {}))[0] < 0 for family in ("gopher", "gopher_repetition")
            ]
            for row, *kept in zip(some, *answers, strict=True):
                found[row["id"]] = [bool(one) for one in kept]
    return {"decisions": found}


def tokenise(folder: Path, tokenizer: str) -> dict[str, Any]:
    """JSONL to token files."""
    from pando.corpus import tokens

    paths = []
    for path in sorted((folder / "in").glob("*.jsonl")):
        with path.open() as lines:
            texts = [json.loads(line)["text"] for line in lines]
        out = folder / "ours" / path.stem
        fast = tokens.write(pa.array(texts, pa.large_string()), out, tokenizer, "uint16", 0, False)["fast"]
        paths.append(str(out.with_suffix(".bin")))
        if not fast:
            raise SystemExit("the fast library was not used")
    return {"files": paths}


def main() -> None:
    what, folder, *more = sys.argv[1:]
    # before the clock starts, as the peer's packages are
    for name in ("pando.corpus.build", "pando.corpus.rules", "daft", "pandas", "scipy.sparse.csgraph"):
        importlib.import_module(name)
    started = time.perf_counter()
    found = {"dedup": dedup, "filters": filters, "tokenise": tokenise}[what](Path(folder), *more)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    Path(folder, "ours.json").write_text(json.dumps({"seconds": seconds, "peak_gib": peak, **found}))


if __name__ == "__main__":
    main()
