"""Writes docs/families.md from the code and its tests: what each family is, differs in and does not cover, and what was
measured beside transformers.

python docs/families.py          prints it
python docs/families.py --write  writes it
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HEAD = """\
# Families

*This page is made from the code by `make docs`.*

A base of any of these comes in as a Hugging Face folder or hub id, goes out as one, and runs through the same block,
engine, rungs and server. A switch in a config that is not covered is refused by name, never ignored, but for
dropout, which changes no output: nothing here drops out. `pando show BASE` prints what any of them is made of and
costs, from its config.json alone. [How a family is added](new-family.md) has a page.

`pando upcycle BASE --out DIR` makes a mixture of a dense DENSE: every expert begins as the base's feed-forward
layer, so that it says what the base says until it is trained on (`base: DIR` in a [pretrain.yaml](pretraining.md)).

Active parameters are all but those of the experts that a token does not go to; embeddings count. FLOPs count a
multiply-add as two; those of attention are those of the pairs that are seen.

| `model_type` | what it is | papers, sources | not covered | GGUF |
|---|---|---|---|---|
"""
TAIL = """
## What is checked

On tiny random models beside transformers, in float32, by `tests/model/test_families.py`, `test_seq2seq.py` and
`test_encoders.py`:

- *logits* within 1e-4, of padded batches on either side too; *gradients* of every tensor within 1e-4 (relative where
  they are above 1);
- *saved*: what transformers saved is read, and what is saved here opens in transformers with the same logits; names and
  shapes of all tensors, strictly;
- *greedy*: 32 tokens after each of several prompts of different lengths, through the cache of the engine in one batch,
  are those of transformers; scores of continuations that share a context within 1e-3 nats; of encoders the *vectors* of
  texts of different lengths in one batch, within 1e-4;
- *packed*: the loss of packed documents is that of each alone, within 1e-4 of it;
- *adapters* on every projection, the experts' own and those between stacks included, give the logits that PEFT gives
  from the same files, within 1e-4.

Besides: GGUF files (`test_gguf_families.py`), written as llama.cpp's converter does, read back as the model, and for
four architectures beside transformers' own reader; FLOPs within 1 % of what torch's profiler counts
(`test_anatomy.py`).
"""
RESULTS = "\n## Results\n"
CHECKS = ("logits", "gradients", "saved", "greedy", "vectors", "packed", "adapters")
FILES = ("test_families", "test_seq2seq", "test_encoders")


def page() -> str:
    """The page but for its results."""
    from pando.model.families import _MODULES, families_where, family

    rows = []
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
    dense = families_where(lambda one: one.mixture not in (None, one.name))
    return HEAD.replace("DENSE", f"{', '.join(dense[:-1])} or {dense[-1]}") + "".join(rows) + TAIL


def results() -> str:
    """Runs the tests and tells what they measured, by `model_type` and shape."""
    from importlib.metadata import version

    from tests.model.test_encoders import ENCODERS
    from tests.model.test_families import CASES
    from tests.model.test_seq2seq import PAIRS

    measured: dict[str, dict[str, str]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/model/{name}.py" for name in FILES]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *files]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for case in ElementTree.parse(report).iter("testcase"):
            shape = re.search(r"\[(.*)\]$", case.get("name", ""))
            for one in case.iter("property"):
                assert shape is not None
                measured[shape[1]][one.get("name", "")] = one.get("value", "")
    found = f"{RESULTS}\nLargest differences, torch {version('torch')}, transformers {version('transformers')}, "
    found += (
        f"peft {version('peft')}.\n\n| `model_type` | shape | {' | '.join(CHECKS)} |\n|---|---|{'---|' * len(CHECKS)}\n"
    )
    for name, (kind, _) in sorted((CASES | ENCODERS | PAIRS).items(), key=lambda one: (one[1][0], one[0])):
        cells = " | ".join(measured[name].get(check, "-") for check in CHECKS)
        found += f"| `{kind}` | {name} | {cells} |\n"
    return found


def _linked(papers: str) -> str:
    papers = papers.replace("arXiv ", "")
    return re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", papers)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        (ROOT / "docs" / "families.md").write_text(page() + results(), encoding="utf-8")
    else:
        print(page() + results(), end="")
