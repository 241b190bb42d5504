"""A base trained here goes the whole way as any other: adapted on every rung, served, asked, accounted for.

The standard library becomes a corpus and a base of two million weights in about two minutes; it need not be good, only
whole. Every rung must end with a measured skin; a trained skin is served and answers the official client what the
library answers; the ledger has lines of each part of the way, with this base's hash from its last training step on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "pretrain-stdlib"))
import prepare  # noqa: E402

RUNGS = {"floor", "zero", "few", "knn", "probe", "lora"}
ASKED = 20
CORPUS = """\
name: stdlib
sources: [{name: modules, files: text/source, format: code, licence: PSF-2.0}]
tokenizer: {vocab_size: 2048}
"""
RUN = """\
name: own
size: 2m
tokens: 500k
"""


def pando(*arguments: str | Path) -> str:
    """What a command printed on standard output."""
    done = subprocess.run([sys.executable, "-m", "pando", *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"pando {arguments[0]} ended with {done.returncode}")
    return done.stdout


def ask(base: Path, skin: Path, texts: list[str]) -> list[str]:
    """What a skin answers through the server and the official client."""
    import openai

    command = [sys.executable, "-m", "pando", "serve", str(base), "--skins", str(skin), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        client = openai.OpenAI(base_url=server.stdout.readline().split()[-1], api_key="none", max_retries=0)
        own, name = [model.id for model in client.models.list()]
        print(f"served: {own} and {name}")
        messages: list[list[Any]] = [[{"role": "user", "content": text}] for text in texts]
        replies = [client.chat.completions.create(model=name, messages=one) for one in messages]
        return [str(reply.choices[0].message.content) for reply in replies]
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "own_base").absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PANDO_LEDGER"] = f"sqlite:///{work / 'ledger.sqlite'}"
    if not (work / "text" / "task" / "task.yaml").exists():
        prepare.prepare(work / "text")
    (work / "corpus.yaml").write_text(CORPUS)
    (work / "pretrain.yaml").write_text(RUN)
    task, base, out = work / "text" / "task" / "task.yaml", work / "run" / "model", work / "ladder"
    pando("corpus", "build", work / "corpus.yaml", "--out", work / "corpus")
    pando("pretrain", work / "pretrain.yaml", "--corpus", work / "corpus", "--out", work / "run", "--resume")
    report = json.loads(pando("adapt", task, "--base", base, "--mode", "sweep", "--out", out, "--json"))

    import pando as package

    measured = {rung["name"]: rung["dev"]["quality"] for rung in report["rungs"] if rung["dev"]}
    print(", ".join(f"{name} {quality:.3f}" for name, quality in measured.items()))
    faults = [f"{name} has no number" for name in sorted(RUNGS - set(measured))]
    texts = [json.loads(line)["text"] for line in (task.parent / "test.jsonl").read_text().splitlines()[:ASKED]]
    served = ask(base, out / "skins" / "lora", texts)
    told = package.load_skin(out / "skins" / "lora").predict(texts)
    same = sum(answer == one.value for answer, one in zip(served, told, strict=True))
    faults += [f"{ASKED - same} of {ASKED} answers differ between server and library"] * (same < ASKED)
    lines = json.loads(pando("ledger", "--json"))
    kinds, right = Counter(line["kind"] for line in lines), report["base"]["hash"]
    faults += [f"no ledger line of kind {kind}" for kind in ("pretrain", "build", "eval", "call") if not kinds[kind]]
    others = {line["base_hash"] for line in lines if line["base_hash"]} - {right}
    faults += [f"ledger lines of another base: {', '.join(sorted(others))}"] * bool(others)
    said = f"{len(measured)} rungs measured, {same} of {ASKED} answers the same, {len(lines)} ledger lines of one base"
    print("; ".join([said, *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
