"""One side of the pretraining benchmark in a process of its own: `_pretrain.py '{"side": ..., ...}'` prints JSON.

The peers' models, optimisers and losses are their own code at pinned commits, from folders that the user names; their
tokens are the same shards, packed as they pack (documents end to end), read from memory, so that no loader is timed.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], float]
Score = Callable[[Tensor, Tensor], Tensor]  # tokens, targets [B, T] -> nats [B, T], 0 where there is no target


def rows(shards: Any, length: int, count: int, begin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, targets) [count, length]: documents end to end (begin: each row starts with a document and the
    last one of it is cropped, nanochat's best fit in its effect)."""
    documents = shards.documents("train")
    stream = np.concatenate([[shards.end], *(one.tokens for one in documents)])
    starts = np.cumsum([0, *(len(one.tokens) for one in documents)])
    at = row = 0
    while True:
        picked = []
        for _ in range(count):
            if begin:
                at = int(starts[row % len(documents)])
                row += max(1, int(np.searchsorted(starts, at + length)) - row % len(documents))
            if at + length + 1 > len(stream):
                at = row = 0
            picked.append(stream[at : at + length + 1])
            at += length
        made = torch.from_numpy(np.stack(picked).astype(np.int64))
        yield made[:, :-1].contiguous(), made[:, 1:].contiguous()


def held_back(shards: Any, length: int, most: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Each held-back document alone, cut into rows: tokens and targets [rows, length], and the bytes of its text."""
    for document in list(shards.documents("validation"))[:most]:
        read = np.concatenate([[shards.end], document.tokens[:-1]])
        parts = range(0, len(read), length)
        tokens, targets = np.zeros((len(parts), length), np.int64), np.full((len(parts), length), -100, np.int64)
        for r, start in enumerate(parts):
            piece = slice(start, start + length)
            tokens[r, : len(read[piece])], targets[r, : len(read[piece])] = read[piece], document.tokens[piece]
        yield torch.from_numpy(tokens), torch.from_numpy(targets), document.bytes


def pando(shape: dict[str, int], shards: Any, steps: int, number: str = "float32") -> tuple[Step, Score]:
    """This project's own trainer as the dial sets it, with products in `number`."""
    from pando.model.context import RowContext
    from pando.train.config import build
    from pando.train.dial import CorpusFacts, model_config, resolve
    from pando.train.parallel import Place, keep_freed_memory
    from pando.train.trainer import Trainer

    values = {
        **{f"model.{name}": shape[name] for name in ("depth", "width", "heads", "kv_heads", "head_dim", "hidden")},
        "model.context": shape["length"], "sequence": shape["length"], "batch": shape["batch"],
        "tokens": shape["batch"] * steps, "machine.number": number, "machine.compile": "off",
    }  # fmt: skip
    given = types.SimpleNamespace(values=values)
    facts = CorpusFacts(shards.vocab_size, shards.documents("train").tokens, 1.0)
    config = resolve(given, facts, lambda: math.nan, 0.1).config  # type: ignore[arg-type]
    assert build(values).steps == steps
    model = model_config(config, shards.vocab_size)
    keep_freed_memory()  # as every run on a CPU does
    trainer = Trainer(config, model, shards, Place(0, 1, torch.device("cpu")))

    def score(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = trainer.model.head(trainer.model(tokens, RowContext(tokens)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    return lambda: trainer.step().read()["loss"], score


def nanochat(shape: dict[str, int], shards: Any, steps: int) -> tuple[Step, Score]:
    """karpathy/nanochat: its GPT with all its tricks, MuonAdamW, schedules and rules of scripts/base_train.py."""
    sys.path.insert(0, os.environ["PANDO_NANOCHAT"])
    from nanochat.gpt import GPT, GPTConfig

    config = GPTConfig(
        sequence_len=shape["length"], vocab_size=shards.vocab_size, n_layer=shape["depth"], n_head=shape["heads"],
        n_kv_head=shape["kv_heads"], n_embd=shape["width"], window_pattern="L",
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    compiled = torch.compile(model, dynamic=False)
    scale = (shape["batch"] / 2**19) ** 0.5
    weights = model.num_scaling_params()
    reference = 12 * (12 * 12 * 768**2 + 32_768 * 768)
    horizon = reference / max(12 * (weights["transformer_matrices"] + weights["lm_head"]), shape["batch"] * steps)
    optimiser = model.setup_optimizer(
        unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, scalar_lr=0.5 * scale, matrix_lr=0.02 * scale,
        weight_decay=0.28 * scale * horizon,
    )  # fmt: skip
    feed = rows(shards, shape["length"], shape["micro"], begin=True)
    parts = shape["batch"] // (shape["length"] * shape["micro"])
    made = 0

    def step() -> float:
        nonlocal made
        total = 0.0
        for _ in range(parts):
            loss = compiled(*next(feed))
            (loss / parts).backward()
            total += float(loss.detach()) / parts
        down = round(0.65 * steps)
        factor = (made + 1) / 40 if made < 40 else 1.0
        left = (steps - made) / down
        factor = min(factor, left + (1 - left) * 0.05) if made > steps - down else factor
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if group["kind"] == "muon":
                warm = 0.85 + 0.12 * min(1.0, made / 400)
                group["momentum"] = 0.97 * left + 0.90 * (1 - left) if made >= steps - down else warm
        optimiser.step()
        model.zero_grad(set_to_none=True)
        made += 1
        return total

    def score(tokens: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = model(tokens, targets.masked_fill(targets == -100, -1), loss_reduction="none")
        return found.view(targets.shape)

    return step, score


def litgpt(shape: dict[str, int], shards: Any, steps: int) -> tuple[Step, Score]:
    """LitGPT: its GPT, compiled, with AdamW, clipping, chunked cross-entropy and cosine schedule of litgpt/pretrain.py.

    Only `model.py` and `config.py` are loaded: the package itself needs Lightning, which adds nothing to a step.
    """
    folder = Path(os.environ["PANDO_LITGPT"]) / "litgpt"
    package = types.ModuleType("litgpt")
    package.__path__ = [str(folder)]
    sys.modules["litgpt"] = package
    for name in ("litgpt.scripts", "litgpt.scripts.convert_hf_checkpoint"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["litgpt.scripts.convert_hf_checkpoint"].qkv_reassemble = None  # type: ignore[attr-defined]
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config(
        block_size=shape["length"], n_layer=shape["depth"], n_embd=shape["width"], n_head=shape["heads"],
        n_query_groups=shape["kv_heads"], head_size=shape["head_dim"], vocab_size=shards.vocab_size,
        padded_vocab_size=shards.vocab_size, rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=shape["hidden"], norm_qk=True,
    )  # fmt: skip
    model: nn.Module = GPT(config)
    for module in model.modules():  # as litgpt/pretrain.py initialises weights
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / 5 / shape["width"]))
    compiled = torch.compile(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    feed = rows(shards, shape["length"], shape["micro"], begin=False)
    parts = shape["batch"] // (shape["length"] * shape["micro"])
    made = 0

    def chunked(logits: Tensor, targets: Tensor) -> Tensor:
        """litgpt.utils.chunked_cross_entropy with its chunk of 128."""
        pieces = zip(logits.flatten(0, 1).split(128), targets.flatten().split(128), strict=True)
        return torch.cat([F.cross_entropy(a, b, reduction="none") for a, b in pieces]).mean()

    def step() -> float:
        nonlocal made
        total = 0.0
        for _ in range(parts):
            tokens, targets = next(feed)
            loss = chunked(compiled(tokens), targets)
            (loss / parts).backward()
            total += float(loss.detach()) / parts
        warm = max(1, round(0.02 * steps))
        share = made / warm if made < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * (made - warm) / (steps - warm)))
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * max(share, 1 / warm)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        made += 1
        return total

    def score(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    return step, score


def chosen(shape: dict[str, int], shards: Any, steps: int) -> tuple[Step, Score]:
    """The same with the products that `machine.number: auto` finds to be faster here."""
    from pando.train.lora import fastest_dtype

    number = str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    return pando(shape, shards, steps, number)


SIDES = {"pando": chosen, "pando float32": pando, "nanochat": nanochat, "litgpt": litgpt}


def main() -> None:
    asked = json.loads(sys.argv[1])
    from pando.train.shards import open_shards

    torch.manual_seed(0)
    shards = open_shards(asked["shards"])
    steps, warm = asked["steps"], asked["warm"]
    step, score = SIDES[asked["side"]](asked["shape"], shards, steps)
    taken, losses = [], []
    for _ in range(steps):
        started = time.perf_counter()
        losses.append(step())
        taken.append(time.perf_counter() - started)
    found: dict[str, Any] = {
        "tokens_per_second": asked["shape"]["batch"] / sorted(taken[warm:])[len(taken[warm:]) // 2],
        "first_step": taken[0],
        "seconds": sum(taken),
        "loss": losses[-1],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if asked["documents"]:
        with torch.no_grad():
            nats, size = 0.0, 0
            for tokens, targets, text in held_back(shards, asked["shape"]["length"], asked["documents"]):
                nats, size = nats + float(score(tokens, targets).sum()), size + text
        found["bits_per_byte"] = nats / math.log(2) / size
    print(json.dumps(found))


if __name__ == "__main__":
    main()
