"""What the benchmarks of curation share: text, datatrove in an environment of its own, and one side run as a process.

datatrove stands apart because its dependencies would change versions of ours; the first run makes `.cache/peers`.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import HERE, ROOT

PEER = "datatrove==0.10.1"
MORE = ("spacy==3.8.18", "nltk==3.10.4", "tokenizers==0.23.3", "xxhash==3.6.0", "regex", "orjson")
DATA = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data").absolute()
TEXTS = ["books", "textbooks", "docs_peps", "speeches", "stories", "tinystories", "wiki_sample"]


def peer_python() -> Path:
    """The Python that has datatrove; made where it is missing."""
    folder = ROOT / ".cache" / "peers" / "datatrove"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder} with {PEER}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*install, PEER, *MORE], check=True)
        (folder / "ready").touch()
    return python


def texts(names: list[str] | None = None) -> Iterator[str]:
    """Public pretraining text; ends with one line where it is not here."""
    import zstandard

    if not (DATA / "pretrain").is_dir():
        sys.exit(f"the public data sets are not here ({DATA}): set PANDO_DATA")
    for name in names or TEXTS:
        with (DATA / "pretrain" / f"{name}.jsonl.zst").open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
                yield json.loads(line)["text"]


def write_inputs(folder: Path, documents: list[str], files: int = 4) -> float:
    """Writes JSONL for both sides, ids in order; returns the MB of text."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    share = -(-len(documents) // files)
    for place in range(files):
        with (folder / "in" / f"{place}.jsonl").open("w") as file:
            for number in range(place * share, min(len(documents), (place + 1) * share)):
                file.write(json.dumps({"id": f"{number:07d}", "text": documents[number]}) + "\n")
    return sum(len(text.encode()) for text in documents) / 1e6


def altered(text: str, share: float, draw: random.Random) -> str:
    """A copy with a share of its words exchanged for others of the same text."""
    words = text.split(" ")
    for place in draw.sample(range(len(words)), int(len(words) * share)):
        words[place] = draw.choice(words)
    return " ".join(words)


def peer(what: str, folder: Path, how: str, *more: str) -> dict[str, Any]:
    """datatrove's answer, with "seconds" and "peak_gib"."""
    for name in ("sig", "buckets", "remove", "out", "tokens", "log0", "log1", "log2", "log3"):
        shutil.rmtree(folder / name, ignore_errors=True)
    command = [str(peer_python()), str(HERE / "_datatrove.py"), what, str(folder), how, *more]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    if done.returncode:
        sys.exit(f"datatrove failed: {done.stderr[-2000:]}")
    return dict(json.loads((folder / "answer.json").read_text()))


def ours(what: str, folder: Path, *more: str) -> dict[str, Any]:
    """The same of Pando, in a process of its own (`_corpus_side.py`)."""
    command = [sys.executable, str(HERE / "_corpus_side.py"), what, str(folder), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"Pando failed: {done.stderr[-2000:]}")
    return dict(json.loads((folder / "ours.json").read_text()))
