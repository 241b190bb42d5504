"""The standard library becomes a base model that beats gzip, killed once on the way; the folder opens in transformers.

The example's own corpus.yaml and pretrain.yaml, in a folder of the check's own: `pando corpus build`, `pando pretrain`
killed with SIGKILL in the middle and gone on with, then bits per byte over the held-back modules.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "pretrain-stdlib"
MOST_BITS, LEAST_FILES, MOST_MINUTES = 1.9, 100, 20
CLOSE = 1e-3  # logits, float32

sys.path.insert(0, str(EXAMPLE))
import judge  # noqa: E402
import prepare  # noqa: E402


def pretrain(work: Path, kill_after: float | None = None) -> None:
    """One session of the run; killed after so many seconds of training where that is asked for."""
    folder = work / "examples" / "pretrain-stdlib"
    arguments = [
        str(folder / "pretrain.yaml"),
        "--corpus",
        str(work / "corpus"),
        "--out",
        str(work / "run"),
        "--resume",
    ]
    process = subprocess.Popen([sys.executable, "-m", "pando", "pretrain", *arguments])
    log = work / "run" / "log.jsonl"
    begin = None
    while process.poll() is None:
        time.sleep(1)
        if kill_after is None:
            continue
        if begin is None and log.exists() and '"step"' in log.read_text():
            begin = time.monotonic()
        if begin is not None and time.monotonic() - begin > kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
    if process.returncode:
        raise SystemExit(f"pando pretrain ended with {process.returncode}")


def opens(folder: Path) -> float:
    """The largest difference of logits between transformers and us on the exported folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from pando.model.base import open_base
    from pando.model.context import RowContext

    base = open_base(folder)
    ids = torch.tensor(
        [base.tokenizer.encode("import json\n\n\ndef load(path):\n    return json.loads(path.read_text())\n")]
    )
    module = base.module()
    with torch.no_grad():
        ours = module.head(module(ids, RowContext(ids)))
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    return float((ours - theirs).abs().max())


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    work = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "pretrain_example").absolute()
    copies = work / "examples" / "pretrain-stdlib"
    copies.mkdir(parents=True, exist_ok=True)
    os.environ["PANDO_LEDGER"] = f"sqlite:///{work / 'ledger.sqlite'}"
    for name in ("corpus.yaml", "pretrain.yaml"):
        shutil.copy(EXAMPLE / name, copies / name)
    if not (work / ".cache" / "pretrain-stdlib" / "task" / "task.yaml").exists():
        prepare.prepare(work / ".cache" / "pretrain-stdlib")
    build = [
        sys.executable,
        "-m",
        "pando",
        "corpus",
        "build",
        str(copies / "corpus.yaml"),
        "--out",
        str(work / "corpus"),
    ]
    subprocess.run(build, check=True)
    if not (work / "killed").exists():
        pretrain(work, kill_after=300)
        if not list((work / "run" / "checkpoints").glob("step-*")):
            raise SystemExit("it was killed before its first checkpoint")
        (work / "killed").touch()
    pretrain(work)
    import pando

    with pando.load(work / "run" / "model") as model:
        found = judge.judge(model, work / ".cache" / "pretrain-stdlib" / "held", work / "bits.json")
    records = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    minutes = sum(record["seconds"] for record in records if record["kind"] == "step") / 60
    apart = opens(work / "run" / "model")
    faults = ["not below 1.9"] * (found.base >= MOST_BITS) + ["not below gzip"] * (found.base >= found.gzip)
    faults += ["too few files"] * (len(found.files) < LEAST_FILES) + ["logits differ"] * (apart > CLOSE)
    sessions = [record["step"] for record in records if record["kind"] == "start"]
    faults += ["did not go on from a checkpoint"] * (not any(sessions))
    faults += ["trained for longer"] * (minutes > MOST_MINUTES)
    print("; ".join([f"{found}; {minutes:.1f} minutes of training, killed once, logits {apart:.1e} apart", *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
