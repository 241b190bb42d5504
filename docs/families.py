"""Writes docs/families.md from the code: what each family is, differs in and does not cover, and what proves it.

python docs/families.py          prints it
python docs/families.py --write  writes it
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HEAD = """\
# Families

*This page is made from the code by `make docs`.*

A base of any of these comes in as a Hugging Face folder or hub id, goes out as one, and runs through the same block,
engine, rungs and server. A switch in a config that is not covered is refused by name, never ignored, but for
dropout, which changes no output: nothing here drops out. `pando show BASE`
prints what any of them is made of and costs, from its config.json alone. [How a family is added](new-family.md) has a
page.

`pando upcycle BASE --out DIR` makes a mixture of a dense llama, mistral or qwen3: every expert begins as the base's
feed-forward layer, so that it says what the base says until it is trained further.

Active parameters are all but those of the experts that a token does not go to; embeddings count. FLOPs count a
multiply-add as two; those of attention are those of the pairs that are seen.

| `model_type` | what it is | papers, sources | not covered | GGUF |
|---|---|---|---|---|
"""
TAIL = """
## What is checked

`tests/model/test_families.py`, on tiny random models beside transformers, in float32:

- logits within 1e-4, gradients of every tensor within 1e-4 (relative where they are above 1);
- what transformers saved is read, what is saved here opens in transformers with the same logits; names and shapes of
  all tensors, strictly;
- 32 greedy tokens through the cache of the engine, in one batch of prompts of different lengths, are those of
  transformers; scores of continuations that share a context within 1e-3 nats;
- losses of packed documents, and of rows that share a prefix, are those of each alone;
- adapters on every projection, the experts' own included, give the logits that PEFT gives from the same files;
- encoder-decoders (`tests/model/test_seq2seq.py`): the same, with inputs of different lengths in one batch that the
  encoder reads once each, adapters in both stacks and between them, packed pairs of inputs and answers;
- encoders (`tests/model/test_encoders.py`): logits for masked tokens and gradients, files both ways, vectors of texts
  of different lengths in one batch, losses of packed documents, adapters;
- GGUF files (`tests/model/test_gguf_families.py`): written as llama.cpp's converter does, read back as the model, and
  for four architectures beside transformers' own reader;
- FLOPs within 1 % of what torch's profiler counts (`tests/model/test_anatomy.py`).

| `model_type` | shapes |
|---|---|
"""


def page() -> str:
    """The whole page."""
    from pando.model.families import _MODULES, family
    from tests.model.test_encoders import ENCODERS
    from tests.model.test_families import CASES
    from tests.model.test_seq2seq import PAIRS

    rows, shapes = [], []
    for kind, module in sorted(_MODULES.items()):
        said = importlib.import_module(f"pando.model.families.{module}").__doc__ or ""
        text = " ".join(said.split())
        found = re.fullmatch(
            r"The \w+ family \((?P<who>.*?)\): (?P<what>.*?)\. (?:Papers?|Source): (?P<papers>.*?)\. "
            r"Not covered: (?P<rest>.*)\.",
            text,
        )
        if found is None:
            raise SystemExit(f"{module}.py: its docstring does not say what this page tells")
        gguf = family(kind).gguf
        form = "-" if gguf is None else gguf.architecture + (" (in)" if gguf.metadata is None else " (in, out)")
        cells = (f"`{kind}`", f"{found['who']}: {found['what']}", _linked(found["papers"]), found["rest"])
        rows.append("| " + " | ".join((*cells, form)) + " |\n")
        names = [name for name, (of, _) in (CASES | ENCODERS | PAIRS).items() if of == kind]
        shapes.append(f"| `{kind}` | {'; '.join(names)} |\n")
    return HEAD + "".join(rows) + TAIL + "".join(shapes)


def _linked(papers: str) -> str:
    papers = papers.replace("arXiv ", "")
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", papers)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        (ROOT / "docs" / "families.md").write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
