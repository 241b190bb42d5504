"""What the engine's workers do: each function takes a task (JSON), writes files of its own, and answers with numbers.

A task's files depend on the task alone. One whose files are there is not done again, so a build that was killed goes on
where it stood.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pando.corpus import contamination, language, near, quality, rewrite, rules, sources
from pando.corpus.parts import key_of, text_of, write_table
from pando.corpus.words import digest

VERSION = 3  # raise it when a stage's results change
link = near.link
read = sources.read


def _normalise(text: pa.Array, settings: dict[str, Any]) -> pa.Table:
    text = rewrite.normalised(text, settings["form"])
    return pa.table({"characters": pc.utf8_length(text), "text": text})


def _pii(text: pa.Array, settings: dict[str, Any]) -> pa.Table:
    text, counts = rewrite.masked(text, tuple(settings["mask"]))
    return pa.table({f"pii_{kind}": count for kind, count in counts.items()} | {"text": text})


def _content(text: pa.Array, settings: dict[str, Any]) -> pa.Table:
    """128 bits that stand for the text, and its UTF-8 bytes."""
    made = [digest(value) for value in text.cast(pa.large_binary()).to_pylist()]
    size = pc.binary_length(text).cast(pa.int64())
    return pa.table({"content": pa.array(made, pa.binary(16)), "text_bytes": size})


STAGES: dict[str, Callable[[pa.Array, dict[str, Any]], pa.Table]] = {
    "normalise": _normalise,
    "language": lambda text, settings: language.scores(text),
    "rules": lambda text, settings: rules.scores(text, tuple(settings["use"])),
    "quality": lambda text, settings: quality.scores(text, settings["classifier"]),
    "pii": _pii,
    "exact": _content,
    "near": lambda text, settings: near.bands(text, **settings),
    "decontaminate": lambda text, settings: contamination.scores(text, settings["index"]),
    "final": _content,
}
REWRITES = ("normalise", "pii")


def steps(chain: list[tuple[str, dict[str, Any], Any]], key: str, text: str, work: Path) -> list[dict[str, Any]]:
    """The stages of one part, each with the file it writes: named by the stage, its settings and the text it reads.

    Args:
        chain: stage, the settings that its scores depend on, and what stands for them in the key.
        key: of the text as read.
        text: its file.
    """
    made = []
    for stage, settings, mark in chain:
        own = key_of(stage, VERSION, mark, key)
        out = str(work / stage / f"{own}.parquet")
        made.append({"stage": stage, "settings": settings, "reads": text, "out": out, "text_key": key})
        if stage in REWRITES:
            key, text = own, out
    return made


def score(task: dict[str, Any]) -> dict[str, Any]:
    """Runs the stages of one part whose files are missing; texts are read at most once."""
    at, text = "", None
    for step in task["steps"]:
        out = Path(step["out"])
        if not out.exists():
            if text is None or at != step["reads"]:
                at, text = step["reads"], text_of(step["reads"])
            table = STAGES[step["stage"]](text, step["settings"])
            write_table(out, table)
            if step["stage"] in REWRITES:
                at, text = step["out"], table.column("text").combine_chunks()
    return {}


def tokenise(task: dict[str, Any]) -> dict[str, Any]:
    """Encodes the kept documents of a part: `<out>.bin` little-endian tokens, then `<out>.npy` [documents] lengths."""
    from pando.corpus import tokens

    kept = np.load(task["kept"], mmap_mode="r")[task["start"] : task["start"] + task["rows"]]
    text = text_of(task["text"]).filter(pa.array(np.asarray(kept, bool)))
    return tokens.write(text, Path(task["out"]), task["tokenizer"], task["dtype"], task["end"], task["chat"])


def shard(task: dict[str, Any]) -> dict[str, Any]:
    """Gathers one shard from the tokens of the parts."""
    from pando.corpus import shards

    return shards.gather(task)
