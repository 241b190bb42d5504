"""Pretraining killed 20 times for each objective goes on bit for bit; 1, 2, 1 ranks read the same samples."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "train"))
OBJECTIVES = ("causal", "masked", "span", "fim", "supervised", "mixed")
KILLS = 20
STEPS = 60
CONFIG = """\
model: {{family: qwen3, depth: 2, width: 32, hidden: 64, heads: 2, kv_heads: 1, head_dim: 16, context: 128}}
sequence: 64
batch: 512
tokens: {tokens}
objectives: {objectives}
optim: {{matrix_rate: 0.005, rate: 0.003}}
machine: {{number: float32, threads: 1}}
keep: {{steps: 3, minutes: 0}}
"""
MIXED = "{causal: 2, masked: 1, span: 1, fim: 1}"


def command(config: Path, corpus: Path, out: Path, ranks: int = 1) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"] if ranks > 1 else []
    return [
        *(sys.executable, *launch, "-m", "pando", "pretrain"),
        *(str(config), "--corpus", str(corpus), "--out", str(out), "--resume"),
    ]


def losses(out: Path) -> list[float]:
    """The logged losses, in the order of the steps; a torn last line is left out."""
    path = out / "log.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [one["loss"] for one in map(json.loads, lines) if one["kind"] == "step"]


def whole(config: Path, corpus: Path, out: Path, ranks: int = 1) -> list[float]:
    done = subprocess.run(command(config, corpus, out, ranks), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{config.parent.name}: the run failed: {done.stderr[-2000:]}")
    return losses(out)


def killed(config: Path, corpus: Path, out: Path, steps: int, after: float) -> bool:
    """Goes on with a run and kills it once `steps` more steps are logged and `after` seconds have passed."""
    start = len(losses(out))
    process = subprocess.Popen(command(config, corpus, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not 0 < (made := len(losses(out))) - max(0, start - 3) >= steps:
        time.sleep(0.01)
        if made < start - 3:
            start = made
    if process.poll() is None:
        time.sleep(after)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL) if not ended else None
    process.wait()
    return not ended


def write_corpus(folder: Path, objective: str) -> Path:
    import corpus

    if not (folder / "manifest.json").exists():
        if objective == "supervised":
            made = corpus.tokenizer()
            turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
            texts = [turn.format(text[:20], text) for text in corpus.sentences(400, most=30)]
            corpus.write_texts(folder, texts, made)
        else:
            corpus.write_texts(folder, corpus.sentences(400))
    return folder


def ranks(work: Path) -> tuple[list[str], float, float]:
    """1 -> 2 -> 1: faults, the largest difference of a first step after a change, and of all steps.

    A first step is compared with what the ranks from before the change make of it, from the same checkpoint: against
    the run on one rank throughout, the second change would answer for the rounding of the twenty steps before it.
    """
    folder = work / "ranks"
    corpus_folder = write_corpus(folder / "corpus", "causal")
    stages = ((1, 20), (2, 40), (1, 60))
    unchanged = folder / "unchanged"  # two ranks to the end
    for old in ("whole", "changed", "unchanged"):
        shutil.rmtree(folder / old, ignore_errors=True)
    config = folder / "pretrain.yaml"
    config.write_text(CONFIG.format(tokens=512 * STEPS, objectives="{causal: 1}").replace("steps: 3", "steps: 20"))
    reference = whole(config, corpus_folder, folder / "whole")
    out = folder / "changed"
    for count, until in stages:
        process = subprocess.Popen(command(config, corpus_folder, out, count), stderr=subprocess.DEVNULL)
        mark = out / "checkpoints" / f"step-{until:08d}"
        while process.poll() is None and not mark.exists():
            time.sleep(0.01)
        if until < STEPS:
            process.terminate()  # ends after the step under way, with a checkpoint of its own, or is there already
        process.wait()
        for path in (out / "checkpoints").glob("step-*"):  # go on from that very step
            if int(path.name[5:]) > until and until < STEPS:
                shutil.rmtree(path)
        if count == 2:
            shutil.copytree(out, unchanged)
            whole(config, corpus_folder, unchanged, count)
    found = losses(out)
    apart = [abs(a - b) for a, b in zip(found, reference, strict=False)]
    faults = [] if len(found) == STEPS else [f"{len(found)} steps instead of {STEPS}"]
    again = [abs(a - b) for a, b in zip(found[40:], losses(unchanged)[40:], strict=True)]
    first = max(apart[20], again[0])
    if first > 1e-6:
        faults.append(f"first step after a change differs by {first:.1e}")
    most = max(*apart[20:40], *again)
    if most > 1e-4:
        faults.append(f"20 steps differ by {most:.1e}")
    if [one["samples"] for one in _steps(out)] != [one["samples"] for one in _steps(folder / "whole")]:
        faults.append("other samples")
    return faults, first, most


def _steps(out: Path) -> list[dict[str, object]]:
    return [one for one in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if one["kind"] == "step"]


def main() -> int:
    work = Path(os.environ.get("VERIFY_WORK") or ".cache/verify/resume").absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PANDO_HOME": str(work / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    kills, faults = int(os.environ.get("PANDO_KILLS", KILLS)), []
    draw = random.Random(11)
    made = {}
    for objective in OBJECTIVES:
        folder = work / objective
        note = folder / "done.json"
        if note.exists():
            made[objective] = json.loads(note.read_text())["kills"]
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        corpus_folder = write_corpus(folder / "corpus", objective)
        config = folder / "pretrain.yaml"
        chosen = MIXED if objective == "mixed" else f"{{{objective}: 1}}"
        config.write_text(CONFIG.format(tokens=512 * STEPS, objectives=chosen))
        reference = whole(config, corpus_folder, folder / "whole")
        out, done = folder / "killed", 0
        while done < kills:
            if not killed(config, corpus_folder, out, draw.randint(1, 6), draw.uniform(0, 0.05)):
                shutil.rmtree(out, ignore_errors=True)  # it reached its end: the other kills hit a fresh run
                continue
            done += 1
            found = losses(out)
            if found != reference[: len(found)]:
                faults.append(f"{objective}: kill {done}: losses differ")
                break
        if whole(config, corpus_folder, out) != reference:
            faults.append(f"{objective}: losses differ at the end")
        made[objective] = done
        print(f"{objective}: {done} kills, {len(reference)} losses, last {reference[-1]:.4f}", flush=True)
        if not faults:
            note.write_text(json.dumps({"kills": done}))
    more, first, later = ranks(work)
    faults += more
    said = "; ".join(faults) or "all later losses bitwise equal"
    counts = ", ".join(f"{name} {count}" for name, count in made.items())
    print(f"kills: {counts}; {said}; 1 -> 2 -> 1 ranks: first steps within {first:.1e}, 20 steps within {later:.1e}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
