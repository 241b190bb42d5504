"""Text to token files: Pando against Hugging Face tokenizers, and against datatrove's DocumentTokenizer.

A 16,384-token vocabulary trained here on the same text. Claim: at least 15 times the throughput of `tokenizers` in one
thread (encode_batch_fast), every id identical.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np
from _common import CACHE, Ratio, alternate, arguments, machine, report, spread, start, today, versions
from _corpus import PEER, ours, peer, texts, write_inputs


def main() -> int:
    asked = arguments(__doc__)
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from pando.corpus import bpe, tokens

    size, chosen = 0, []
    for text in texts():
        if size > (1e6 if asked.quick else 4e7):
            break
        chosen.append(text)
        size += len(text)
    folder = CACHE / "tokenise"
    megabytes = write_inputs(folder, chosen, 2)
    bpe.save(bpe.train(chosen[:: 1 if asked.quick else 4], 2000 if asked.quick else 16384), folder / "tokenizer")
    path = folder / "tokenizer" / "tokenizer.json"

    def slow() -> float:
        made = tokens.load_tokenizer(path)
        made.encode_special_tokens = True
        started = time.perf_counter()
        for file in sorted((folder / "in").glob("*.jsonl")):
            with file.open() as lines:
                listed = [json.loads(line)["text"] for line in lines]
            flat: list[int] = []
            for one in made.encode_batch_fast(listed, add_special_tokens=False):
                flat += one.ids
                flat.append(0)
            np.array(flat, "<u2").tofile(folder / f"{file.stem}.slow")
        return time.perf_counter() - started

    sides = {"Pando": lambda: float(ours("tokenise", folder, str(path))["seconds"]), "tokenizers": slow}
    found = alternate(sides, 1 if asked.quick else asked.repeats)
    other = float(peer("tokenise", folder, "spaces", str(path))["seconds"])
    same = all(
        (folder / f"{name.stem}.slow").read_bytes() == (folder / "ours" / f"{name.stem}.bin").read_bytes()
        for name in (folder / "in").glob("*.jsonl")
    )
    speed = {name: [megabytes / seconds for seconds in listed] for name, listed in found.items()}
    ratio = Ratio.of(speed["Pando"], speed["tokenizers"])
    passed = ratio.median >= 15 and same
    lines = [
        f"{machine()}; {versions('tokenizers', 'gigatoken')}, {PEER}; {today()}. {len(chosen):,} documents, "
        f"{megabytes:.0f} MB, from JSONL to files of uint16, one thread (datatrove: two workers).",
        "",
        "| side | MB/s |",
        "| --- | --- |",
        f"| Pando | {spread(speed['Pando'], 'MB/s')} |",
        f"| tokenizers | {spread(speed['tokenizers'], 'MB/s', 2)} |",
        f"| datatrove DocumentTokenizer | {megabytes / other:.2f} MB/s (one run) |",
        "",
        f"**{ratio}** tokenizers, ids {'identical' if same else 'NOT identical'} in every file "
        f"(asked: 15x, identical: {'met' if passed else 'NOT met'}).",
    ]
    report("tokenise", "Text to tokens", lines, {"seconds": found, "datatrove": other, "same": same}, asked.record)
    return 0 if passed or asked.quick else 1


if __name__ == "__main__":
    start(main)
