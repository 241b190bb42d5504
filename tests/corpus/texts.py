"""Small corpora for the tests: sentences of common words, so that the published rules keep them."""

from __future__ import annotations

import json
import random
from pathlib import Path

_TEXT = (
    "the a of to and that have with people river house garden winter summer market letter question answer number "
    "music village mountain kitchen teacher window morning evening journey story paper colour silver copper simple "
    "careful bright narrow ancient modern gentle walked carried followed opened noticed painted gathered measured"
)
WORDS = _TEXT.split()


def document(seed: int, sentences: int = 12) -> str:
    """A document of so many sentences, in paragraphs of four."""
    draw = random.Random(seed)
    made = []
    for _ in range(sentences):
        body = [draw.choice(WORDS) for _ in range(draw.randint(8, 16))]
        made.append(" ".join(body).capitalize() + ".")
    return "\n\n".join(" ".join(made[at : at + 4]) for at in range(0, sentences, 4))


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
