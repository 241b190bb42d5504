"""One LoRA training run, ours or TRL's, in a process of its own, so that its peak memory is its own.

Both sides train on the same rendered rows, from the same first adapter, with the same schedule of learning rates, once
over all rows. A run tells the seconds of every step but the first, the tokens of those steps' rows (prompt and answer,
counted alike however a side lays them out), each step's loss, and peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from _common import CACHE, ROOT

RANK, ALPHA = 16, 32
SEED = 0
WORK = CACHE / "lora"


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        side: "pando" or "trl".
        batch: rows a step; where TRL packs, a packed sequence has room for so many average rows and is one step.
        numbers: "float32", "bfloat16" (weights) or "autocast" (float32 weights, products in bfloat16); ours measures
            the machine and is given "auto".
        packed: TRL's packing; otherwise it gets our batches of like length in our order, whose padding is within some
            percent of its own sampler's (800 rows: 1.6, 2.2, 2.8 % at batches of 4, 8, 16; its own 0.5, 1.4, 3.6 %).
        rows: how many of the rows, from the first.
    """

    side: str
    batch: int
    numbers: str = "auto"
    packed: bool = False
    rows: int = 800

    def __str__(self) -> str:
        return f"{self.numbers}, {'packed' if self.packed else 'grouped by length'}, batch {self.batch}"


@dataclass(frozen=True)
class Run:
    """How it went: `tokens` and `seconds` leave the first step out; memory in MiB, before the base is loaded and at its
    peak."""

    tokens: int
    seconds: float
    losses: list[float]
    rows_by_step: list[int]
    before: float
    peak: float
    padded: float  # tokens computed for each token of a row
    numbers: str

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def __str__(self) -> str:
        return f"{self.speed:.0f} tokens/s, peak {self.peak:.0f} MiB, last loss {self.losses[-1]:.3f}"


@dataclass(frozen=True)
class Row:
    """A rendered row, as text (for TRL, which tokenises it) and as tokens (for us; the two are compared)."""

    prompt: str
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


def prepare(count: int) -> None:
    """Renders the tweets as the LoRA rung does, and makes the adapter that both sides start from; in a process of its
    own, since a run inherits the resident memory of the process that starts it."""
    if subprocess.run([sys.executable, str(Path(__file__).resolve()), str(count)], cwd=ROOT).returncode:
        sys.exit("the rows to train on could not be made")


def _prepare(count: int) -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "examples" / "tweets"))
    import tweets

    from pando.model.base import open_base
    from pando.model.lora import LoraConfig, TrainableLora, all_linear
    from pando.model.peft import save_peft
    from pando.skin import Skin
    from pando.skin.parts import Prompt
    from pando.skin.render import training_example
    from pando.task import Task
    from pando.task.rows import Example

    task = Task.load(tweets.build(WORK / "task", train=count))
    base = open_base()
    skin = Skin(name="tweets", kind="classify", rung="lora", method="score", prompt=Prompt(task.instruction, ("text",)))
    rendered = []
    for line in (WORK / "task" / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt, answer = training_example(skin, Example("", {"text": row["text"]}, row["label"]), base.tokenizer)
        ids = base.tokenizer.encode(prompt)
        (answer_ids,) = base.tokenizer.encode_continuations(prompt, ids, [answer])
        rendered.append(asdict(Row(prompt, answer, ids, answer_ids)))
    (WORK / "rows.json").write_text(json.dumps(rendered))
    module = base.module()
    config = LoraConfig(RANK, ALPHA, all_linear(module))
    (WORK / "first").mkdir(exist_ok=True)
    save_peft(WORK / "first", module, config, TrainableLora(module, config, SEED).tensors(), str(base.folder))


def read_rows(count: int) -> list[Row]:
    return [Row(**row) for row in json.loads((WORK / "rows.json").read_text())[:count]]


def run(plan: Plan) -> Run:
    """Runs a plan in a process of its own.

    Raises:
        SystemExit: it failed; what it said is shown.
    """
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(asdict(plan))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{plan.side}, {plan}: failed\n{done.stderr[-4000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def memory() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def settings(plan: Plan, steps: int) -> Any:
    """The schedule of both sides: the rule's rate for the base's width."""
    from pando.model.base import open_base
    from pando.train.lora import LoraSettings, rule_learning_rate

    return LoraSettings(rule_learning_rate(open_base().config.d_model), steps, plan.batch)


def run_ours(plan: Plan) -> Run:
    """Our trainer, with its own batches."""
    import torch

    from pando.model.base import open_base
    from pando.model.lora import LoraConfig, all_linear
    from pando.train.batches import length_buckets
    from pando.train.lora import LoraTrainer, fastest_dtype, training_copy
    from pando.train.supervised import SupervisedExample, collate

    rows = read_rows(plan.rows)
    examples = [SupervisedExample(tuple(row.prompt_ids), tuple(row.answer_ids)) for row in rows]
    batches = list(length_buckets([len(row) for row in rows], plan.batch, SEED, 0))
    before = memory()
    numbers = fastest_dtype(torch.device("cpu")) if plan.numbers == "auto" else getattr(torch, plan.numbers)
    model = training_copy(open_base().module(), numbers)
    config = LoraConfig(RANK, ALPHA, all_linear(model))
    trainer = LoraTrainer(model, config, examples, settings(plan, len(batches)), SEED)
    ends = []
    for _ in trainer.train(len(batches)):
        ends.append(time.perf_counter())
    computed = sum(len(collate([examples[i] for i in batch], model.config).inputs(None)[0]) for batch in batches)
    return Run(
        tokens=sum(len(rows[i]) for batch in batches[1:] for i in batch),
        seconds=ends[-1] - ends[0],
        losses=trainer.losses,
        rows_by_step=[len(batch) for batch in batches],
        before=before,
        peak=memory(),
        padded=computed / sum(map(len, rows)),
        numbers=str(numbers).removeprefix("torch."),
    )


def run_trl(plan: Plan) -> Run:
    """TRL's SFTTrainer over a PEFT model, answer-only loss."""
    import datasets
    import torch
    import transformers
    from peft import PeftModel
    from torch.utils.data import Sampler
    from trl import SFTConfig, SFTTrainer

    from pando.model.base import open_base
    from pando.train.batches import length_buckets

    datasets.disable_progress_bars()
    folder = str(open_base().folder)
    rows = read_rows(plan.rows)
    lengths = [len(row) for row in rows]
    grouped = [i for batch in length_buckets(lengths, plan.batch, SEED, 0) for i in batch]
    before = memory()
    dtype = torch.bfloat16 if plan.numbers == "bfloat16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = PeftModel.from_pretrained(model, WORK / "first", is_trainable=True)
    ends: list[float] = []
    losses: list[float] = []
    seen: list[int] = []

    class Recorded(Sampler[int]):
        """Which rows were asked for, in order."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __iter__(self) -> Iterator[int]:
            for i in self.inner:
                seen.append(i)
                yield i

        def __len__(self) -> int:
            return len(self.inner)

    class Trainer(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return Recorded(super()._get_train_sampler(train_dataset) if plan.packed else grouped)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            rate = schedule(settings(plan, num_training_steps))
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            return self.lr_scheduler

        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            losses.append(float(loss))
            return loss

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    room = max(round(plan.batch * sum(lengths) / len(lengths)), max(lengths))
    with tempfile.TemporaryDirectory() as out:
        options = SFTConfig(
            out,
            use_cpu=True,
            bf16=plan.numbers == "autocast",
            per_device_train_batch_size=1 if plan.packed else plan.batch,
            packing=plan.packed,
            max_length=room if plan.packed else None,
            completion_only_loss=True,
            learning_rate=settings(plan, 1).learning_rate,
            max_grad_norm=settings(plan, 1).clip,
            num_train_epochs=1,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=SEED,
        )
        trainer = Trainer(
            model,
            options,
            train_dataset=datasets.Dataset.from_list([{"prompt": r.prompt, "completion": r.answer} for r in rows]),
            processing_class=transformers.AutoTokenizer.from_pretrained(folder),
            callbacks=[Clock()],
        )
        data = trainer.train_dataset
        check_tokens(rows, data, plan.packed)
        trainer.train()
    size = 1 if plan.packed else plan.batch
    sizes = [len(ids) for ids in data["input_ids"]]
    steps = [seen[at : at + size] for at in range(0, len(seen), size)]
    assert len(steps) == len(ends) == len(losses)
    return Run(
        tokens=sum(sizes[i] for step in steps[1:] for i in step),
        seconds=ends[-1] - ends[0],
        losses=losses,
        rows_by_step=[sum(len(data[i]["seq_lengths"]) if plan.packed else 1 for i in step) for step in steps],
        before=before,
        peak=memory(),
        padded=sum(len(step) * max(sizes[i] for i in step) for step in steps) / sum(lengths),
        numbers=plan.numbers,
    )


def schedule(ours: Any) -> Any:
    """Our trainer's share of the peak rate at each step, for LambdaLR."""
    from pando.train.lora import LoraTrainer

    class At:
        """As much of a trainer as its schedule reads."""

        def __init__(self, step: int) -> None:
            self.step, self.settings = step, ours

    return lambda step: LoraTrainer._rate(At(step)) / ours.learning_rate  # type: ignore[arg-type]


def check_tokens(rows: list[Row], data: Any, packed: bool) -> None:
    """Both sides learn the same tokens and are supervised on the same ones."""
    wanted = [(row.prompt_ids + row.answer_ids, [-100] * len(row.prompt_ids) + row.answer_ids) for row in rows]
    if not packed:
        assert [(one["input_ids"], one["labels"]) for one in data] == wanted, "TRL tokenises the rows otherwise"
        return
    found = []
    for one in data:
        bounds = [sum(one["seq_lengths"][:i]) for i in range(len(one["seq_lengths"]) + 1)]
        found += [(one["input_ids"][a:b], one["labels"][a:b]) for a, b in pairwise(bounds)]
    assert sorted(found) == sorted(wanted), "TRL packs other tokens than the rows'"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = json.loads(sys.argv[1])
    if isinstance(given, int):
        _prepare(given)
    else:
        asked = Plan(**given)
        print("\n" + json.dumps(asdict({"pando": run_ours, "trl": run_trl}[asked.side](asked))))
