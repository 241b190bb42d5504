"""Bits per byte of a base over held-back files, beside gzip -9 on the same files."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """Pooled over all files, and by file.

    Attributes:
        base, gzip: bits per byte.
        files: (name, bytes, bits per byte by the base, by gzip -9).
    """

    base: float
    gzip: float
    files: list[tuple[str, int, float, float]]

    @property
    def behind(self) -> list[tuple[str, int, float, float]]:
        """The files on which gzip needs fewer bits."""
        return [one for one in self.files if one[3] < one[2]]

    def __str__(self) -> str:
        size = sum(one[1] for one in self.files)
        return (
            f"{len(self.files)} held-back files, {size:,} bytes: {self.base:.3f} bits per byte, gzip -9 "
            f"{self.gzip:.3f}; gzip is ahead on {len(self.behind)}"
        )


def judge(model: Any, folder: Path, keep: Path | None = None) -> Found:
    """Reads every .py file below `folder`.

    Args:
        model: a loaded base.
        keep: a JSON file to write the result to.
    """
    texts = {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    sizes = [len(text.encode()) for text in texts.values()]
    bits = document_bits(model, list(texts.values()))
    zipped = [8 * len(gzip.compress(text.encode(), 9)) for text in texts.values()]
    files = [(n, s, b / s, z / s) for n, s, b, z in zip(texts, sizes, bits, zipped, strict=True)]
    found = Found(sum(bits) / sum(sizes), sum(zipped) / sum(sizes), files)
    if keep is not None:
        keep.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    return found


def document_bits(model: Any, texts: Sequence[str]) -> list[float]:
    """Bits of each text after the token that ends documents, in windows that see half a context of what is before."""
    tokenizer, length = model.base.tokenizer, model.context_length
    end = tokenizer.raw.token_to_id(tokenizer.specials["eos_token"])
    return [_bits(model, [end, *tokenizer.raw.encode(text, add_special_tokens=False).ids], length) for text in texts]


def _bits(model: Any, ids: list[int], length: int) -> float:
    from pando import ScoreRequest

    requests, at = [], 1
    while at < len(ids):
        end = min(len(ids), at + length // 2)
        requests.append(ScoreRequest(context=ids[max(0, end - length) : at], continuations=[ids[at:end]]))
        at = end
    return -sum(scores.logprobs[0] for scores in model.score(requests)) / math.log(2)
