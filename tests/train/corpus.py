"""Small folders of token shards, as `pando corpus build` writes them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pando.files import content_hash

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
SPECIALS += ["<|mask|>", *(f"<|sentinel_{i}|>" for i in range(32))]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "the a small old red cat dog bird sat ran saw slept on under near mat tree house and then again"
WORDS = TEXT.split()


def tokenizer(specials: Sequence[str] = SPECIALS, size: int = 400, texts: Sequence[str] = (TEXT,) * 3) -> Tokenizer:
    """A byte-level BPE as `pando tokenizer train` makes it, the special tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(one, special=True) for one in specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def sentences(count: int, seed: int = 0, least: int = 3, most: int = 60) -> list[str]:
    """Texts of a few words each, with enough order in them to be learnt."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most))) for _ in range(count)]


def write_texts(folder: Path, texts: Sequence[str], made: Tokenizer | None = None, **more: Any) -> Path:
    """Shards of texts; each is ended by "<|endoftext|>". Every tenth one is held back unless `validation` is given."""
    made = made or tokenizer()
    end = made.token_to_id(SPECIALS[0])
    documents = [[*made.encode(text).ids, end] for text in texts]
    sizes = [len(text.encode()) for text in texts]
    return write_shards(folder, documents, sizes=sizes, made=made, **more)


def write_shards(
    folder: Path,
    documents: Sequence[Sequence[int]],
    *,
    sizes: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    names: Sequence[str] = ("plain",),
    made: Tokenizer | None = None,
    per_shard: int = 1000,
    validation: Sequence[int] | None = None,
) -> Path:
    """A corpus of documents (token ids, the end token last)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = made or tokenizer()
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "chat_template": TEMPLATE}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = sizes or [4 * len(one) for one in documents]
    sources = sources or [i % len(names) for i in range(len(documents))]
    held = set(range(9, len(documents), 10) if validation is None else validation)
    splits = {}
    for split, kept in (("train", False), ("validation", True)):
        mine = [i for i in range(len(documents)) if (i in held) == kept]
        splits[split] = [
            _shard(
                folder, f"{split}-{n:05d}", [(documents[i], sizes[i], sources[i]) for i in mine[at : at + per_shard]]
            )
            for n, at in enumerate(range(0, len(mine), per_shard))
        ]
    counted = [
        {
            "name": name,
            "licence": "CC0-1.0",
            "weight": 1.0,
            "documents": sum(s == n for s in sources),
            "tokens": sum(len(d) for d, s in zip(documents, sources, strict=True) if s == n),
            "bytes": sum(b for b, s in zip(sizes, sources, strict=True) if s == n),
        }
        for n, name in enumerate(names)
    ]
    manifest: dict[str, Any] = {
        "format_version": 1,
        "tokenizer": {"file": "tokenizer.json", "hash": content_hash(folder / "tokenizer.json")},
        "vocab_size": made.get_vocab_size(),
        "dtype": "uint16",
        "end": made.token_to_id(SPECIALS[0]),
        "sources": counted,
        "splits": splits,
    }
    manifest["hash"] = content_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _shard(folder: Path, name: str, rows: Sequence[tuple[Sequence[int], int, int]]) -> dict[str, Any]:
    tokens = np.array([token for document, _, _ in rows for token in document], dtype="<u2")
    ends = np.cumsum([len(document) for document, _, _ in rows])
    table = np.array([[end, size, source] for end, (_, size, source) in zip(ends, rows, strict=True)], dtype="<u8")
    (folder / f"{name}.bin").write_bytes(tokens.tobytes())
    (folder / f"{name}.idx").write_bytes(table.tobytes())
    hashes = {"hash": content_hash(folder / f"{name}.bin"), "index_hash": content_hash(folder / f"{name}.idx")}
    counts = {"tokens": len(tokens), "documents": len(rows)}
    return {"file": f"{name}.bin", "index": f"{name}.idx", **counts, **hashes}


def rehash(folder: Path, **changes: Any) -> None:
    """Changes the manifest and mends its hash."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    del manifest["hash"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"hash": content_hash(manifest)}))
