"""Token shards: gathering the documents of one, and the manifest of all. The form is described in docs/corpus.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pando.files import atomic_write, content_hash

FORMAT_VERSION = 1


def cut(tokens: Any, shard_tokens: int) -> list[tuple[int, int]]:
    """(first, end) of the documents of each shard: one begins where a multiple of `shard_tokens` was passed."""
    if not len(tokens):
        return []
    starts = np.cumsum(tokens) - tokens
    number = starts // shard_tokens
    first = np.flatnonzero(np.concatenate([[True], number[1:] != number[:-1]]))
    return list(zip(first.tolist(), [*first[1:].tolist(), len(tokens)], strict=True))


def gather(task: dict[str, Any]) -> dict[str, Any]:
    """Writes `<out>.bin`, `<out>.idx` and `<out>.docs` (uint64, the number of each document), then
    `<out>.json` with the facts that the manifest wants.

    The task has `plan`, a numpy file [documents, 6]: number of the part in `parts`, first token in it, tokens, bytes,
    source, document.
    """
    out, dtype = Path(task["out"]), "<u2" if task["dtype"] == "uint16" else "<u4"
    plan = np.load(task["plan"])
    pieces: list[Any] = [None] * len(plan)
    for part in np.unique(plan[:, 0]).tolist():
        data = np.memmap(task["parts"][part], dtype, "r")  # only what the shard takes is read
        for row in np.flatnonzero(plan[:, 0] == part).tolist():
            pieces[row] = data[plan[row, 1] : plan[row, 1] + plan[row, 2]]
    flat = np.concatenate([np.zeros(0, dtype), *pieces]).astype(dtype, copy=False)
    index = np.stack([np.cumsum(plan[:, 2]), plan[:, 3], plan[:, 4]], 1).astype("<u8")
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".bin", flat.tobytes()), (".idx", index.tobytes())):
        atomic_write(out.with_suffix(suffix), content)
    atomic_write(out.with_suffix(".docs"), _lineage(plan))
    facts = {
        "tokens": len(flat),
        "documents": len(plan),
        "hash": content_hash(flat.tobytes()),
        "index_hash": content_hash(index.tobytes()),
    }
    atomic_write(out.with_suffix(".json"), json.dumps(facts))
    return facts


def intact(out: Path, plan: Any) -> bool:
    """Whether a shard of that plan is there as `gather` left it: a corpus shares its files, and may have been written
    to since."""
    try:
        facts = json.loads(out.with_suffix(".json").read_text())
        hashes = [content_hash(out.with_suffix(suffix)) for suffix in (".bin", ".idx", ".docs")]
    except FileNotFoundError:
        return False
    return hashes == [facts["hash"], facts["index_hash"], content_hash(_lineage(plan))]


def _lineage(plan: Any) -> bytes:
    return bytes(plan[:, 5].astype("<u8").tobytes())


def manifest(content: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own hash, which names the corpus: the hash of everything else in it."""
    whole = {"format_version": FORMAT_VERSION, **content}
    return {"format_version": FORMAT_VERSION, "hash": content_hash(whole), **content}
