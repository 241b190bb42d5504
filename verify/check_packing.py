"""Packing real text: at least 99.5 % of slots used, no token lost, no document cut that fits, 1M tokens/s a core.

Every file of PANDO_DATA/pretrain becomes shards under a tokenizer of 8,192 tokens trained on all of them, and all
together do. Each is packed for rows of 512 and 2,048 by the stream that training reads, on one thread; the lowest share
and the lowest speed of all decide. Losses and cuts are counted over a whole pass of all files together.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from pando.train.objectives import make_mixture  # noqa: E402
from pando.train.shards import Shards, open_shards  # noqa: E402
from pando.train.stream import Stream, whole_batches  # noqa: E402
from tests.train import corpus  # noqa: E402

DATA = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data") / "pretrain"
LENGTHS = (512, 2048)
ROWS = 32
SLOTS = 4_000_000  # packed for each measurement
MOST = 4_000_000  # bytes of text taken of each file
USED, SPEED = 0.995, 1e6


def texts(path: Path) -> list[str]:
    """The documents of a file, up to MOST bytes of them."""
    import zstandard

    found, size = [], 0
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            text = json.loads(line).get("text") or ""
            if text:
                found.append(text)
                size += len(text.encode())
            if size > MOST:
                break
    return found


def measured(shards: Shards, length: int) -> tuple[float, float]:
    """Share of slots used and tokens a second of the training stream."""
    stream = Stream(shards, make_mixture({"causal": 1.0}, shards), length, ROWS, seed=0)
    next(stream)  # opens and checks the files
    used = slots = 0
    started = time.perf_counter()
    while slots < SLOTS:
        batch = next(stream)
        used, slots = used + batch.weight, slots + batch.tokens.numel()
    return used / slots, used / (time.perf_counter() - started)


def lost_and_cut(shards: Shards, length: int) -> tuple[int, int]:
    """Tokens of the train split that one pass over it loses or doubles, and documents that it cuts though they fit."""
    documents = shards.documents("train")
    wanted, fitting = Counter[int](), Counter[bytes]()
    for document in documents:
        wanted.update(document.tokens.tolist())
        if len(document.tokens) <= length:
            fitting[document.tokens.tobytes()] += 1
    found = Counter[int]()
    for batch in whole_batches(documents, make_mixture({"causal": 1.0}, shards), length, ROWS, shards.end):
        targets = batch.targets.numpy().astype(np.int32)
        found.update(targets.flatten()[batch.places.numpy()].tolist())
        for row, numbers in zip(targets, batch.documents.numpy(), strict=True):
            for number in range(numbers.max() + 1):
                piece = row[numbers == number].tobytes()
                if piece in fitting:
                    fitting[piece] -= 1
    lost = sum(((wanted - found) + (found - wanted)).values())
    return lost, sum(count for count in fitting.values() if count > 0)


def main() -> int:
    files = sorted(DATA.glob("*.jsonl.zst"))
    if not files:
        print(f"{DATA} has no .jsonl.zst files (set PANDO_DATA)")
        return 77
    torch.set_num_threads(1)
    named = {path.name.removesuffix(".jsonl.zst"): texts(path) for path in files}
    print(f"{sum(map(len, named.values()))} documents of {len(files)} files; training a tokenizer", flush=True)
    tokenizer = corpus.tokenizer(size=8192, texts=[text for some in named.values() for text in some])
    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = {
        name: [[*encoding.ids, end] for encoding in tokenizer.encode_batch(some)] for name, some in named.items()
    }
    everything = [document for some in encoded.values() for document in some]
    order = np.random.default_rng(0).permutation(len(everything))
    encoded["all"] = [everything[i] for i in order]
    least, slowest, lost, cut = 1.0, float("inf"), 0, 0
    print(f"{'source':14} {'documents':>9} {'median':>7} {'tokens':>11}   used and M tokens/s for rows of {LENGTHS}")
    for name, documents in encoded.items():
        with tempfile.TemporaryDirectory() as folder:
            kept = corpus.write_shards(Path(folder), documents, made=tokenizer, validation=[], per_shard=10**6)
            shards = open_shards(kept)
            cells = []
            for length in LENGTHS:
                used, speed = measured(shards, length)
                missing = lost_and_cut(shards, length) if name == "all" else (0, 0)
                lost, cut, slowest = lost + missing[0], cut + missing[1], min(slowest, speed)
                least = min(least, used)
                cells.append(f"{100 * used:7.3f} % {speed / 1e6:6.2f}")
        sizes = list(map(len, documents))
        line = f"{name:14} {len(sizes):9} {np.median(sizes):7.0f} {sum(sizes):11,}   " + "   ".join(cells)
        print(line, flush=True)
    print(
        f"{100 * least:.3f} % of slots used (at least {100 * USED} %), {lost} tokens lost, {cut} documents cut that "
        f"fit, {slowest / 1e6:.1f}M tokens/s a core at the slowest (at least {SPEED / 1e6:.0f}M)"
    )
    return int(least < USED or slowest < SPEED or lost > 0 or cut > 0)


if __name__ == "__main__":
    sys.exit(main())
