"""LoRA training is at least as good as a plain PEFT loop with equal settings, on 300 and on 2,000 rows of banking77.

Both train rank 16 (alpha 32, all linear layers) for three epochs on the same tokens with the same learning rates, in
batches of 16; the peer with transformers, PEFT, AdamW and shuffled batches, as its documentation shows. Both adapters
then answer the same test rows through our engine. What is finished, and the peer's every 25th step, is kept, so that
an interrupted check goes on. `--quick` takes a handful of rows and proves nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pando.evaluate.paired import mcnemar, tango
from pando.evaluate.statistics import wilson
from pando.files import atomic_dir, atomic_write
from pando.model.base import BaseModel, open_base
from pando.model.lora import LoraConfig, all_linear
from pando.model.peft import save_peft
from pando.skin import Skin
from pando.skin.parts import Prompt, Scoring
from pando.skin.render import training_example
from pando.task.rows import Example
from pando.train.lora import LoraSettings, LoraTrainer, fastest_dtype, rule_learning_rate, training_copy
from pando.train.supervised import SupervisedExample

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is on this machine
ROOT = Path(__file__).resolve().parent.parent
INSTRUCTION = "Which intent does this banking customer have?"
RANK, ALPHA, BATCH, SEED = 16, 32, 16, 0
WARMUP, CLIP = 0.05, 1.0
KEEP_EVERY = 25  # steps of the peer
PART = 100  # rows answered between two notes
ROWS, TESTED = (300, 2000), 1000
WORST = 0.02  # accuracy that one run may lose to the other by chance


@dataclass(frozen=True)
class Work:
    """Rows, settings and the folder where results are kept."""

    base: BaseModel
    train: list[dict[str, str]]
    test: list[dict[str, str]]
    epochs: int
    folder: Path

    @property
    def settings(self) -> LoraSettings:
        steps = self.epochs * -(-len(self.train) // BATCH)
        return LoraSettings(rule_learning_rate(self.base.config.d_model), steps, BATCH, WARMUP, CLIP)

    @property
    def skin(self) -> Skin:
        """How both answer: the label whose tokens and end of turn are likeliest."""
        return Skin(
            name="banking77",
            kind="classify",
            rung="lora",
            method="score",
            prompt=Prompt(INSTRUCTION, ("text",)),
            base=self.base.identity,
            labels=tuple(sorted({row["label"] for row in self.train})),
            scoring=Scoring(per_token=False, end=True),
        )

    def tokens(self) -> list[SupervisedExample]:
        """The training rows, rendered and tokenised as the LoRA rung does."""
        tokenizer = self.base.tokenizer
        found = []
        for row in self.train:
            prompt, answer = training_example(self.skin, Example("", {"text": row["text"]}, row["label"]), tokenizer)
            ids = tokenizer.encode(prompt)
            (answer_ids,) = tokenizer.encode_continuations(prompt, ids, [answer])
            found.append(SupervisedExample(tuple(ids), tuple(answer_ids)))
        return found


def read(part: str, count: int) -> list[dict[str, str]] | None:
    """Rows of banking77 in a fixed random order; None where the data set is not here."""
    folder = Path(os.environ.get("PANDO_DATA") or ROOT.parent / "shared" / "data")
    path = folder / "banking77" / f"{part}.jsonl.gz"
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(SEED).shuffle(rows)
    return rows[:count]


def train_ours(work: Work, folder: Path) -> None:
    """Our trainer, in the numbers that it finds fastest here."""
    module = work.base.module()
    model = training_copy(module, fastest_dtype(torch.device("cpu")))
    config = LoraConfig(RANK, ALPHA, all_linear(model))
    trainer = LoraTrainer(model, config, work.tokens(), work.settings, SEED)
    for loss in trainer.train(work.settings.steps):
        if trainer.step % KEEP_EVERY == 0:
            print(f"pando: step {trainer.step} of {work.settings.steps}, loss {loss:.3f}", flush=True)
    with atomic_dir(folder) as scratch:
        save_peft(scratch, module, config, trainer.adapter.tensors(), str(work.base.folder))


def train_peft(work: Work, folder: Path) -> None:
    """A plain loop over transformers and PEFT, kept every so many steps."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(work.base.folder, dtype=torch.float32)
    config = PeftConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    steps = work.settings.steps
    optimiser = torch.optim.AdamW(trained, lr=work.settings.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, round(WARMUP * steps), steps)
    kept = folder.with_suffix(".pt")
    done = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        done = state["step"]
        for parameter, value in zip(trained, state["parameters"], strict=True):
            parameter.data.copy_(value)
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
    for step, batch in enumerate(shuffled(work.tokens(), work.epochs)):
        if step < done:
            continue
        loss = model(**padded(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if (step + 1) % KEEP_EVERY == 0:
            print(f"PEFT: step {step + 1} of {steps}, loss {float(loss):.3f}", flush=True)
            state = {"step": step + 1, "parameters": trained, "optimiser": optimiser.state_dict()}
            aside = kept.with_suffix(".tmp")
            torch.save(state | {"schedule": schedule.state_dict()}, aside)
            aside.replace(kept)
    with atomic_dir(folder) as scratch:
        model.save_pretrained(scratch)


def shuffled(rows: list[SupervisedExample], epochs: int) -> Iterator[list[SupervisedExample]]:
    """Batches in a random order, drawn anew each epoch."""
    for epoch in range(epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED + epoch)).tolist()
        for at in range(0, len(order), BATCH):
            yield [rows[i] for i in order[at : at + BATCH]]


def padded(batch: list[SupervisedExample]) -> dict[str, torch.Tensor]:
    """Right-padded ids, mask and labels; only answers are supervised."""
    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row.prompt + row.answer)
        mask[i, : len(row)] = 1
        labels[i, len(row.prompt) : len(row)] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def answers(work: Work, adapter: Path, engine: Callable[[], Any]) -> list[bool]:
    """Whether each test row is answered rightly with the adapter, kept in parts."""
    from dataclasses import replace

    kept = adapter.with_suffix(".json")
    found: list[bool] = json.loads(kept.read_text()) if kept.exists() else []
    skin = replace(work.skin, adapter=adapter)
    while len(found) < len(work.test):
        part = work.test[len(found) : len(found) + PART]
        predictions = skin.predict([row["text"] for row in part], engine())
        found += [p.value == row["label"] for p, row in zip(predictions, part, strict=True)]
        atomic_write(kept, json.dumps(found))
        print(f"{adapter.name}: {sum(found)} of {len(found)} right", flush=True)
    return found


def compare(work: Work) -> tuple[str, bool]:
    """Trains and asks both, prints the table; the result in words, and whether ours is worse."""
    import pando

    engines: list[Any] = []

    def engine() -> Any:
        if not engines:
            engines.append(pando.load(work.base.folder, device="cpu", dtype="float32"))
        return engines[0]

    right: dict[str, list[bool]] = {}
    for name, train in (("pando", train_ours), ("PEFT", train_peft)):
        adapter = work.folder / name
        start = time.monotonic()
        if not adapter.is_dir():
            train(work, adapter)
        right[name] = answers(work, adapter, engine)
        low, high = wilson(sum(right[name]) / len(right[name]), len(right[name]), 0.025)
        share = sum(right[name]) / len(right[name])
        print(f"{name:>6}: accuracy {share:.3f} ({low:.3f} to {high:.3f}), {time.monotonic() - start:.0f} s now")
    pairs = list(zip(right["pando"], right["PEFT"], strict=True))
    better, worse = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    low, high = tango(better, worse, len(pairs), 0.025)
    gap = (better - worse) / len(pairs)
    shares = {name: sum(found) / len(found) for name, found in right.items()}
    words = (
        f"{len(work.train)} rows: accuracy {shares['pando']:.3f} here, {shares['PEFT']:.3f} with PEFT: "
        f"{gap:+.3f} ({low:+.3f} to {high:+.3f}), p {mcnemar(better, worse):.2f}, {len(pairs)} tested"
    )
    print(words, flush=True)
    return words, high < 0 or gap < -WORST


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a handful of rows, nothing kept")
    quick = parser.parse_args().quick
    train, test = read("train", 32 if quick else max(ROWS)), read("test", 6 if quick else TESTED)
    if train is None or test is None:
        print("banking77 is not here (set PANDO_DATA)")
        return 77
    base = open_base()
    if quick:
        with tempfile.TemporaryDirectory() as folder:
            compare(Work(base, train, test, 1, Path(folder)))
        return 0
    kept = Path(os.environ.get("VERIFY_WORK") or ROOT / ".cache" / "verify" / "lora_parity.work")
    kept /= base.identity.hash.removeprefix("sha256:")[:16]
    said, wrong = [], False
    for count in ROWS:
        folder = kept / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        words, worse = compare(Work(base, train[:count], test, 3, folder))
        said.append(words)
        wrong |= worse
    print("; ".join(said))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
