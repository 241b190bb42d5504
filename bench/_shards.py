"""Shards of real text for benchmarks and checks of pretraining: three public sources, a byte-level BPE of them.

They are cut and mixed here, without `pando corpus build`, so that a change of curation changes nothing that counts.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "train"))

SOURCES = {"code": 6_000_000, "books": 6_000_000, "docs_peps": 3_000_000}  # characters of each
PIECE = 4000  # characters; longer documents are cut, so that a few do not fill whole steps


def data() -> Path | None:
    """The folder of public pretraining texts, or None."""
    folder = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data") / "pretrain"
    return folder if folder.is_dir() else None


def build(folder: Path, vocabulary: int = 4096) -> Path:
    """Writes the shards, unless they are there; every 40th document is held back."""
    import corpus
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    if (folder / "manifest.json").exists():
        return folder
    found = data()
    assert found is not None
    pieces = [
        (source, text[at : at + PIECE])
        for source, name in enumerate(SOURCES)
        for text in _texts(found / f"{name}.jsonl.zst", SOURCES[name])
        for at in range(0, len(text), PIECE)
    ]
    random.Random(1).shuffle(pieces)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = [AddedToken(one, special=True) for one in corpus.SPECIALS]
    settings: dict[str, Any] = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
    sample = [text for _, text in pieces[:1500]]
    made.train_from_iterator(sample, trainers.BpeTrainer(vocab_size=vocabulary, **settings))
    documents = [[*one.ids, 0] for one in made.encode_batch_fast([text for _, text in pieces])]
    corpus.write_shards(
        folder,
        documents,
        sizes=[len(text.encode()) for _, text in pieces],
        sources=[source for source, _ in pieces],
        names=tuple(SOURCES),
        made=made,
        per_shard=2000,
        validation=range(0, len(documents), 40),
    )
    return folder


def _texts(path: Path, most: int) -> list[str]:
    import zstandard

    found, size = [], 0
    with path.open("rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8"):
            found.append(json.loads(line)["text"])
            size += len(found[-1])
            if size > most:
                break
    return found
