"""A mixture of experts on a CPU: training speed against the dense model of as many active weights and against
transformers' Mixtral, and what it learns at equal active FLOPs and tokens.

    python bench/moe.py [--quick] [--repeats 3] [--record]

Eight experts, two for each token, each half as wide as the dense feed-forward layer, so that a token meets as many
weights. The peer is transformers' MixtralForCausalLM of the very shape, rows of the same tokens, with torch's fused
AdamW; our mixture makes the same step with AdamW too, as many rows in a forward pass. Every side runs in float32 and,
where the machine multiplies bfloat16 faster, with products in that (theirs by autocast); of each the faster one
counts. The quality part trains dense and mixture with the dial's own settings on the same shards, three seeds each,
and compares held-back bits per byte.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
import types
from functools import partial
from typing import Any

from _common import CACHE, HERE, ROOT, Ratio, alternate, arguments, machine, report, spread, start, today, versions
from _shards import build, data

SHAPE = {"depth": 6, "width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "hidden": 704, "context": 512}
QUICK = {"depth": 2, "width": 64, "heads": 1, "kv_heads": 1, "head_dim": 64, "hidden": 192, "context": 512}
BATCH, LENGTH, MICRO, EXPERTS, TOP_K = 8192, 512, 8, 8, 2
DENSE, PEER = 0.7, 2.0
SEEDS, QUALITY_STEPS = 3, 240


def trainer(shape: dict[str, int], shards: Any, asked: dict[str, Any]) -> Any:
    """Our trainer, as the dial sets it."""
    import torch

    from pando.train.dial import CorpusFacts, model_config, resolve
    from pando.train.parallel import Place, keep_freed_memory
    from pando.train.trainer import Trainer

    values = {
        **{f"model.{name}": value for name, value in shape.items()}, "model.family": "llama",
        "model.experts": EXPERTS if asked["side"] == "mixture" else 0, "model.top_k": TOP_K, "sequence": LENGTH,
        "batch": BATCH, "tokens": BATCH * asked["steps"], "seed": asked["seed"], "machine.number": asked["number"],
        "machine.micro_rows": MICRO, "machine.compile": "off", "optim.kind": asked["kind"],
    }  # fmt: skip
    facts = CorpusFacts(shards.vocab_size, shards.documents("train").tokens, 1.0)
    given: Any = types.SimpleNamespace(values=values)
    config = resolve(given, facts, lambda: math.nan, 0.1).config
    keep_freed_memory()  # as every run on a CPU does
    return Trainer(config, model_config(config, shards.vocab_size), shards, Place(0, 1, torch.device("cpu")))


def theirs(shape: dict[str, int], shards: Any, number: str) -> Any:
    """A step of transformers' Mixtral with torch's AdamW on rows of the same shards, as a function."""
    import numpy as np
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=shards.vocab_size, hidden_size=shape["width"], intermediate_size=shape["hidden"] // TOP_K,
        num_hidden_layers=shape["depth"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, max_position_embeddings=shape["context"],
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.01,
    )  # fmt: skip
    model = MixtralForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    flat = np.concatenate([one.tokens for one in shards.documents("train")][:2000]).astype(np.int64)
    rows = torch.from_numpy(flat[: len(flat) // LENGTH * LENGTH].reshape(-1, LENGTH))
    parts, made = BATCH // LENGTH // MICRO, 0

    def step() -> None:
        nonlocal made
        for _ in range(parts):
            ids = rows[(made * MICRO) % (len(rows) - MICRO) :][:MICRO]
            with torch.autocast("cpu", torch.bfloat16, enabled=number == "bfloat16"):
                loss = model(input_ids=ids, labels=ids).loss
            (loss / parts).backward()
            made += 1
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def one(asked: dict[str, Any]) -> dict[str, float]:
    """In the process of one run: tokens a second, or bits per byte of what is held back."""
    from pando.train.shards import open_shards

    shards, shape = open_shards(asked["shards"]), asked["shape"]
    if asked["side"] == "transformers":
        step = theirs(shape, shards, asked["number"])
    else:
        made = trainer(shape, shards, asked)
        step = lambda: made.step().read()  # noqa: E731
    taken = []
    for _ in range(asked["steps"]):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    found = {"tokens_per_second": BATCH / statistics.median(taken[1:])}
    if asked["judge"]:
        found["bits_per_byte"] = made.validate(100_000)["bits_per_byte"]
    return found


def run(**asked: Any) -> dict[str, float]:
    """One run in a fresh process."""
    command = [sys.executable, str(HERE / "moe.py"), "--one", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{asked['side']} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(json.loads(sys.argv[2]))))
        return 0
    options = arguments(__doc__)
    import torch

    from pando.train.lora import fastest_dtype

    if data() is None:
        raise SystemExit("no public texts here: set PANDO_DATA")
    shape, steps = (QUICK, 3) if options.quick else (SHAPE, 8)
    shards = str(build(CACHE / "pretrain" / "shards", 4096))
    common = {"shards": shards, "shape": shape, "steps": steps, "seed": 0, "judge": False, "kind": "adamw"}
    quick = str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    numbers = sorted({"float32", quick})
    sides = {
        (side, number): partial(run, side=side, number=number, **common)
        for side in ("mixture", "dense", "transformers")
        for number in numbers
    }
    speed = alternate({", ".join(key): each for key, each in sides.items()}, options.repeats)
    rates = {key: [each["tokens_per_second"] for each in speed[", ".join(key)]] for key in sides}
    best = {side: max((rates[side, number] for number in numbers), key=statistics.median) for side, _ in sides}
    ratios = {side: Ratio.of(best["mixture"], best[side]) for side in ("dense", "transformers")}
    long = common | {"steps": 4 if options.quick else QUALITY_STEPS, "judge": True, "kind": "muon", "number": quick}
    bits = {
        side: [run(side=side, **long | {"seed": seed})["bits_per_byte"] for seed in range(SEEDS)]
        for side in ("dense", "mixture")
    }
    gains = [a - b for a, b in zip(bits["dense"], bits["mixture"], strict=True)]
    lines = [
        f"{today()}, {machine()}, {versions('torch', 'transformers')}; {shape['depth']} blocks of width "
        f"{shape['width']}, {EXPERTS} experts of {shape['hidden'] // TOP_K} with {TOP_K} a token against a dense layer "
        f"of {shape['hidden']}, rows of {LENGTH}, {BATCH:,} tokens a step, AdamW.",
        "",
        "| side | products in | tokens/s |",
        "|---|---|---|",
        *(f"| {side} | {number} | {spread(found, '', 0)} |" for (side, number), found in rates.items()),
        "",
        "| our mixture, each side at its faster | ratio | asked for |",
        "|---|---|---|",
        f"| against dense | {ratios['dense']} | {DENSE}x |",
        f"| against transformers' Mixtral | {ratios['transformers']} | {PEER}x |",
        "",
        f"After {long['steps']} steps with Muon in {quick}, held-back bits per byte over {SEEDS} seeds: dense "
        f"{spread(bits['dense'], '', 4)}, mixture {spread(bits['mixture'], '', 4)}; the mixture is lower by "
        f"{spread(gains, '', 4)} (asked for: above 0).",
    ]
    raw = {"speed": speed, "bits_per_byte": bits}
    report("moe", "Mixture of experts", lines, raw, options.record)
    return int(ratios["dense"].median < DENSE or ratios["transformers"].median < PEER or min(gains) <= 0)


if __name__ == "__main__":
    start(main)
