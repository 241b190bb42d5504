"""When does training your own base pay? The standard library becomes a corpus, a tokenizer and a small code model; then
one task is adapted on it and on SmolLM2, and the two ladders are laid side by side.

    make pretrain-demo

Everything is kept in .cache/pretrain-stdlib; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import prepare

ROOT = Path(__file__).resolve().parents[2]
HERE = Path("examples", "pretrain-stdlib")  # below ROOT, where everything runs
WORK = Path(".cache", "pretrain-stdlib")
PANDO = [sys.executable, "-m", "pando"]
OTHER = "smollm2-135m"


def main() -> None:
    start = time.monotonic()
    step("The text: modules of the standard library on this machine, some held back")
    if not (ROOT / WORK / "task" / "task.yaml").exists():
        prepare.prepare(ROOT / WORK)

    step("The corpus: deduplicated, decontaminated, tokenised, in shards")
    pando("corpus", "build", HERE / "corpus.yaml", "--out", WORK / "corpus")

    step("The base model")
    pando("pretrain", HERE / "pretrain.yaml", "--corpus", WORK / "corpus", "--out", WORK / "run", "--resume")
    base = WORK / "run" / "base"
    judge(base)

    step("The task on the new base and on SmolLM2")
    found = {name: ladder(name, ref) for name, ref in (("stdlib-4m", str(base)), (OTHER, OTHER))}
    compare(found)
    print(f"\nAll of this took {(time.monotonic() - start) / 60:.1f} minutes.")


def step(title: str) -> None:
    print(f"\n── {title}", flush=True)


def pando(*arguments: str | Path) -> None:
    """Runs a pando command, its output shown; ends with its exit code if it fails."""
    print("$ pando " + " ".join(str(one) for one in arguments), flush=True)
    done = subprocess.run([*PANDO, *map(str, arguments)], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def judge(base: Path) -> dict[str, float]:
    """Bits per byte over the modules held back, pooled, against gzip -9 on each; says where gzip wins."""
    import pando as package

    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / WORK / "held").rglob("*.py"))}
    with package.load(ROOT / base) as model:
        bits = {path: file_bits(model, text) for path, text in texts.items()}
    sizes = {path: len(text.encode()) for path, text in texts.items()}
    zipped = {path: 8 * len(gzip.compress(text.encode(), 9)) for path, text in texts.items()}
    found = {name: sum(part.values()) / sum(sizes.values()) for name, part in (("base", bits), ("gzip", zipped))}
    better = [path for path in texts if zipped[path] < bits[path]]
    print(f"{len(texts)} held-back modules, {sum(sizes.values()):,} bytes: {found['base']:.3f} bits per byte, "
          f"gzip -9 {found['gzip']:.3f}; gzip is ahead on {len(better)} of them")  # fmt: skip
    for path in better[:10]:
        print(f"  {path.relative_to(ROOT / WORK / 'held')}: {bits[path] / sizes[path]:.2f}, gzip {zipped[path] / sizes[path]:.2f}")
    result = found | {"files": len(texts), "gzip_ahead": len(better)}
    (ROOT / WORK / "bits.json").write_text(json.dumps(result, indent=1))
    return result


def file_bits(model: object, text: str) -> float:
    """Bits of a whole file after an end-of-document token, in windows that each see half a context of what came before."""
    from pando import ScoreRequest

    tokenizer, length = model.base.tokenizer, model.context_length  # type: ignore[attr-defined]
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    half, requests, at = length // 2, [], 1
    while at < len(ids):
        end = min(len(ids), at + (half if at > 1 else length - 1))
        requests.append(ScoreRequest(context=ids[max(0, end - length) : at], continuations=[ids[at:end]]))
        at = end
    scores = model.score(requests)  # type: ignore[attr-defined]
    return -sum(score.logprobs[0] for score in scores) / 0.6931471805599453


def ladder(name: str, base: str) -> dict[str, object]:
    """The report of a sweep over the rungs on a base."""
    out = WORK / f"ladder-{name}"
    pando("adapt", WORK / "task" / "task.yaml", "--base", base, "--mode", "sweep", "--out", out)
    return dict(json.loads((ROOT / out / "report.json").read_text(encoding="utf-8")))


def compare(found: dict[str, dict[str, object]]) -> None:
    """Which base pays: quality on the same test rows and cost of a call, side by side."""
    print(f"\n{'base':<14}{'chosen':<8}{'test [95 %]':<24}{'$ / 1,000':<12}build")
    for name, report in found.items():
        test = report["test"]
        rung = next((r for r in report["rungs"] if r["name"] == report["chosen"]), None)  # type: ignore[attr-defined]
        if not test or not rung:
            print(f"{name:<14}nothing passed")
            continue
        quality = f"{test['quality']:.3f} [{test['low']:.3f}, {test['high']:.3f}]"  # type: ignore[index]
        print(f"{name:<14}{report['chosen']:<8}{quality:<24}{rung['cost_per_1k']:<12.5f}{rung['build_seconds']:.0f} s")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
        sys.exit()
    sys.exit(130)
