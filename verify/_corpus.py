"""What the checks of `pando corpus` share: the nine public files of pretraining text as a corpus file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data").absolute()
TEXTS = ["books", "code", "docs_peps", "raw_messy", "speeches", "stories", "textbooks", "tinystories", "wiki_sample"]
EXAMS = ("gsm8k/test.jsonl.gz", "mmlu/test.jsonl.gz", "boolq/validation.jsonl.gz", "lambada/test.jsonl.gz")
STAGES: dict[str, Any] = {
    "normalise": {},
    "language": {},
    "rules": {"use": ["gopher", "gopher_repetition"]},
    "pii": {},
    "exact": {},
    "near": {},
    "decontaminate": {"files": [str(DATA / name) for name in (*EXAMS, "xquad/test.*.jsonl.gz")]},
}


def need_data() -> None:
    """Ends with code 77 where the public data sets are not here."""
    if not (DATA / "pretrain").is_dir():
        print(f"the public data sets are not here ({DATA}): set PANDO_DATA")
        sys.exit(77)


def write_config(path: Path, names: list[str] | None = None, **changes: Any) -> Path:
    """Writes a corpus file over these sources."""
    sources = [
        {
            "name": name,
            "files": str(DATA / "pretrain" / f"{name}.jsonl.zst"),
            **({"skip": ["language", "rules"]} if name == "code" else {}),
        }
        for name in names or TEXTS
    ]
    tokenizer = {"vocab_size": 16384, "sample_mb": 20}
    whole = {"name": "public", "sources": sources, "stages": STAGES, "tokenizer": tokenizer, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(whole, sort_keys=False))
    return path


def command(config: Path, out: Path, *more: str) -> list[str]:
    """`pando corpus build` as this Python runs it."""
    return [sys.executable, "-m", "pando", "corpus", "build", str(config), "--out", str(out), *more]


def manifest_hash(out: Path) -> str:
    """The hash that names a corpus."""
    return str(json.loads((out / "manifest.json").read_text())["hash"])
