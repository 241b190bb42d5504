"""Ten minutes of pretraining pay: a small encoder-decoder (span) and encoder (masked) beat random weights.

Both are pretrained on the public texts. With all weights trained, the one learns to translate (tatoeba, English to
French), the other to tell 150 intents (clinc150). Both arms, from the pretrained and from random weights, choose among
the same learning rates on held-back rows and are then trained with three seeds; the interval is that of the mean
difference, by resampling test rows and seeds. PANDO_TRANSFER_MINUTES shortens the pretraining, and then proves nothing.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _corpus import command, need_data, write_config
from ladders import DATA, work_folder

from pando.model.config import InitConfig

MINUTES = float(os.environ.get("PANDO_TRANSFER_MINUTES", "10"))
RATES, SEEDS, RESAMPLES = (3e-4, 1e-3, 3e-3), range(3), 4000
BATCH, WARM = 32, 0.1
STEPS = {"t5": 800, "modernbert": 400}
ROWS, HELD, TESTED = {"t5": 20_000, "modernbert": 15_000}, 300, 500
RECIPES = {  # beyond the dial's: so few masked tokens teach matrices little at the rate that goes with a small batch
    "t5": "sequence: 256\nobjectives: {span: 1}",
    "modernbert": "sequence: 128\nobjectives: {masked: {weight: 1, rate: 0.3}}\noptim: {matrix_rate: 0.01}",
}
Score = Callable[[Any, Any], np.ndarray]


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of a data set, in an order that is no order."""
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    random.Random(0).shuffle(found)
    return found


def pretrained(work: Path, family: str) -> Path:
    """A base of about four million weights after so many minutes."""
    out = work / family
    if not (out / "model" / "config.json").exists():
        config = work / f"{family}.yaml"
        config.write_text(
            f"name: {family}\nsize: 4m\nbudget: {{hours: {MINUTES / 60:.5f}}}\n"
            f"model: {{family: {family}}}\n{RECIPES[family]}\n"
        )
        arguments = ["pretrain", str(config), "--corpus", str(work / "corpus"), "--out", str(out)]
        more = ["--resume"] if (out / "config.yaml").exists() else []
        subprocess.run([sys.executable, "-m", "pando", *arguments, *more], check=True)
    return out / "model"


def pairs(base: Any, found: Sequence[dict[str, Any]]) -> list[Any]:
    """Sentences and their translations, the end token behind each."""
    from pando.train.supervised import SupervisedExample

    raw, end = base.tokenizer.raw, base.tokenizer.raw.token_to_id(base.tokenizer.specials["eos_token"])
    sides = ([one[name] for one in found] for name in ("source", "target"))
    read, written = ([ids.ids for ids in raw.encode_batch(side, add_special_tokens=False)] for side in sides)
    made = [SupervisedExample((*a, end), (*b, end)) for a, b in zip(read, written, strict=True)]
    return [one for one in made if len(one) <= 120]


def intents(base: Any, found: Sequence[dict[str, Any]], labels: dict[str, int]) -> list[Any]:
    """Texts as the tokenizer gives them to the encoder, and the numbers of their labels."""
    from pando.train.learning import LabelledExample

    encoded = base.tokenizer.encode_batch([one["text"] for one in found])
    return [LabelledExample(tuple(ids), labels[one["label"]]) for ids, one in zip(encoded, found, strict=True)]


def tuned(
    base: Any, family: str, learning_of: Any, examples: Sequence[Any], fresh: bool, rate: float, seed: int
) -> Any:
    """(model, learning) after the whole schedule, all weights trained."""
    model = base.module().train().requires_grad_(True)
    if fresh:
        model.config = replace(model.config, init=InitConfig())  # as pretraining drew its own
        model.initialise(seed)
    learning = learning_of(model)
    trained = [*model.parameters(), *learning.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    order, steps = random.Random(seed), STEPS[family]
    for step in range(steps):
        part = [examples[i] for i in order.sample(range(len(examples)), BATCH)]
        loss, _ = learning.loss(model, part, None)
        (loss / sum(map(learning.weight, part))).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scale = min((step + 1) / (WARM * steps), (steps - step) / ((1 - WARM) * steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * scale
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return model.eval().requires_grad_(False), learning


def held_loss(made: Any, examples: Sequence[Any]) -> float:
    """Mean loss of rows that were not learnt from."""
    model, learning = made
    with torch.no_grad():
        parts = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        total = sum(float(learning.loss(model, part, None)[0]) for part in parts)
    return total / sum(map(learning.weight, examples))


def translated(base: Any, tested: Sequence[dict[str, Any]], examples: Sequence[Any]) -> Score:
    """chrF of each sentence's greedy translation."""
    from sacrebleu.metrics import CHRF

    from pando.engine.engine import Engine
    from pando.interface import GenerateRequest

    def score(model: Any, learning: Any) -> np.ndarray:
        with Engine(base, model, torch.device("cpu"), "float32", 16_384) as engine:
            asked = [GenerateRequest(prompt=list(one.prompt), max_tokens=48) for one in examples]
            said = [answer.text.strip() for answer in engine.generate(asked)]
        chrf = CHRF()
        references = [one.get("references") or [one["target"]] for one in tested]
        return np.array([chrf.sentence_score(a, b).score / 100 for a, b in zip(said, references, strict=True)])

    return score


def told(examples: Sequence[Any]) -> Score:
    """Whether each label is right."""
    from pando.train.learning import text_vectors

    def score(model: Any, learning: Any) -> np.ndarray:
        with torch.no_grad():
            vectors = text_vectors(model, [one.tokens for one in examples], learning.pooling)
            answers = (vectors @ learning.matrix.T + learning.bias).argmax(-1).tolist()
        return np.array([float(a == one.label) for a, one in zip(answers, examples, strict=True)])

    return score


def apart(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of scores [seeds, rows], and its 95 % interval by resampling rows and, on each side, seeds."""
    random_numbers, gaps = np.random.default_rng(0), []
    seeds, count = one.shape
    for _ in range(RESAMPLES):
        drawn = random_numbers.integers(count, size=count)
        first, second = random_numbers.integers(seeds, size=(2, seeds))
        gaps.append(one[first][:, drawn].mean() - other[second][:, drawn].mean())
    low, high = np.quantile(gaps, (0.025, 0.975))
    return float(one.mean() - other.mean()), float(low), float(high)


def compared(work: Path, family: str) -> tuple[str, bool]:
    """What is said of one architecture, and whether pretraining pays."""
    from pando.model.base import open_base
    from pando.train.learning import Answering, Labelling

    base = open_base(pretrained(work, family))
    if family == "t5":
        learnt, tested = rows("tatoeba/train.en-fr.jsonl.gz"), rows("tatoeba/test.en-fr.jsonl.gz")[:TESTED]
        examples = pairs(base, learnt[: ROWS[family] + HELD])
        asked = pairs(base, [one | {"target": "x"} for one in tested])
        score = translated(base, tested, asked)
        learning_of: Any = lambda model: Answering()  # noqa: E731
    else:
        learnt, tested = rows("clinc150/train.jsonl.gz"), rows("clinc150/test.jsonl.gz")[: 2 * TESTED]
        labels = {name: i for i, name in enumerate(sorted({one["label"] for one in learnt}))}
        tested = [one for one in tested if one["label"] in labels]
        examples = intents(base, learnt[: ROWS[family] + HELD], labels)
        score = told(intents(base, tested, labels))
        learning_of = lambda model: Labelling(model, len(labels))  # noqa: E731
    held, examples = examples[:HELD], examples[HELD:]
    notes = work / f"{family}.json"
    known: dict[str, Any] = json.loads(notes.read_text()) if notes.exists() else {}

    def once(key: str, judge: Callable[[Any], Any], *how: Any) -> Any:
        """What is said of one training, kept for a check that goes on."""
        if key not in known:
            known[key] = judge(tuned(base, family, learning_of, examples, *how))
            notes.write_text(json.dumps(known))
        print(f"{family}, {key}: {np.mean(known[key]):.4f}", flush=True)
        return known[key]

    arms, rates = {}, {}
    for arm, fresh in (("pretrained", False), ("random", True)):
        losses = {rate: once(f"{arm}, {rate:g}", lambda made: held_loss(made, held), fresh, rate, 0) for rate in RATES}
        rates[arm] = min(RATES, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
        scores = [
            once(f"{arm}, seed {seed}", lambda made: score(*made).tolist(), fresh, rates[arm], seed) for seed in SEEDS
        ]
        arms[arm] = np.array(scores)
    gap, low, high = apart(arms["pretrained"], arms["random"])
    names = {"t5": "chrF", "modernbert": "accuracy"}
    each = ", ".join(f"{arm} {values.mean():.3f} at {rates[arm]:g}" for arm, values in arms.items())
    return f"{family}: {names[family]} {each}, {gap:+.3f} [{low:+.3f}, {high:+.3f}]", bool(low > 0)


def main() -> int:
    need_data()
    work = work_folder("transfer")
    if not (work / "corpus" / "manifest.json").exists():
        tokenizer = {"vocab_size": 8192, "sample_mb": 20}
        config = write_config(work / "corpus.yaml", ["tinystories", "wiki_sample", "textbooks"], tokenizer=tokenizer)
        subprocess.run(command(config, work / "corpus"), check=True)
    found = [compared(work, family) for family in RECIPES]
    print("; ".join(said for said, _ in found) + f"; {MINUTES:g} minutes of pretraining each")
    return int(not all(pays for _, pays in found))


if __name__ == "__main__":
    sys.exit(main())
