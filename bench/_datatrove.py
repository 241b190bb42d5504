"""What datatrove does in the benchmarks; run by its own Python, which has nothing of Pando. Prints one JSON object.

    _datatrove.py dedup|filters|tokenise FOLDER spaces|spacy [TOKENIZER]

FOLDER has in/*.jsonl. Words are found at white space ("spaces"), so that both sides count the same ones, or as
datatrove finds them by default ("spacy").
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WordTokenizer, load_word_tokenizer


class Spaces(WordTokenizer):
    """Words as white space parts them."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def stages(folder: Path, steps: list[list[object]], workers: int) -> None:
    for place, (tasks, pipeline) in enumerate(steps):
        LocalPipelineExecutor(
            pipeline=pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / f"log{place}")
        ).run()


def dedup(folder: Path, words: object) -> dict[str, object]:
    config = MinhashConfig()
    files = len(list((folder / "in").glob("*.jsonl")))
    reader = JsonlReader(str(folder / "in"))
    kept = MinhashDedupFilter(str(folder / "remove"))
    steps = [
        [files, [reader, MinhashDedupSignature(str(folder / "sig"), config=config, language=words)]],
        [config.num_buckets, [MinhashDedupBuckets(str(folder / "sig"), str(folder / "buckets"), config=config)]],
        [1, [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)]],
        [files, [reader, kept, JsonlWriter(str(folder / "out"), compression=None)]],
    ]
    stages(folder, steps, 2)
    ids = [json.loads(line)["id"] for path in (folder / "out").glob("*.jsonl") for line in path.open()]
    return {"kept": sorted(ids)}


def filters(folder: Path, words: object) -> dict[str, object]:
    rules = GopherQualityFilter(language=words), GopherRepetitionFilter(language=words)
    found = {}
    for path in sorted((folder / "in").glob("*.jsonl")):
        for line in path.open():
            row = json.loads(line)
            document = Document(text=row["text"], id=row["id"])
            answers = [rule.filter(document) for rule in rules]
            found[row["id"]] = [answer is True or answer == (True, None) for answer in answers]
    return {"decisions": found}


def tokenise(folder: Path, words: object, tokenizer: str) -> dict[str, object]:
    files = len(list((folder / "in").glob("*.jsonl")))
    step = DocumentTokenizer(str(folder / "tokens"), tokenizer, eos_token="<|endoftext|>", shuffle_documents=False)
    stages(folder, [[files, [JsonlReader(str(folder / "in")), step]]], 2)
    return {"files": sorted(str(path) for path in (folder / "tokens").glob("*.ds"))}


def main() -> None:
    what, folder, how, *more = sys.argv[1:]
    words: object = Spaces() if how == "spaces" else "eng"
    if how == "spacy":
        load_word_tokenizer("eng").word_tokenize("warm up")
    started = time.perf_counter()
    found = {"dedup": dedup, "filters": filters, "tokenise": tokenise}[what](Path(folder), words, *more)
    seconds = time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    Path(folder, "answer.json").write_text(json.dumps({"seconds": seconds, "peak_gib": peak, **found}))


if __name__ == "__main__":
    main()
