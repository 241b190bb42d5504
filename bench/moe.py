"""A mixture of experts on a CPU: training speed against the dense model of as many active weights and against
transformers' Mixtral, and what it learns at equal active FLOPs and tokens.

    python bench/moe.py [--part speed|quality] [--quick] [--repeats 3] [--record]

Eight experts, two for each token, each half as wide as the dense feed-forward layer, so that a token meets as many
weights. The peer is transformers' MixtralForCausalLM of the very shape, rows of the same tokens, with torch's fused
AdamW; our mixture makes the same step with AdamW too. Every side runs in float32 and, where the machine multiplies
bfloat16 faster, with products in that (theirs by autocast); rows are short and long. In the faster numbers the peer
also makes passes of half as many rows, which suit it where rows are long. Of each side the fastest counts, and the peer
as it comes, in float32, stands beside it. The quality part trains dense and mixture with the dial's own settings on the
same shards, three seeds each, and compares held-back bits per byte.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import types
from functools import partial
from typing import Any, NamedTuple

from _common import CACHE, HERE, ROOT, Ratio, alternate, arguments, machine, report, spread, start, today, versions
from _shards import build, data

SHAPE = {"depth": 6, "width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "hidden": 704}
QUICK = {"depth": 2, "width": 64, "heads": 1, "kv_heads": 1, "head_dim": 64, "hidden": 192}
EXPERTS, TOP_K = 8, 2
DENSE, PEER = 0.7, 2.0
SPEED_TOKENS, SEEDS, QUALITY_STEPS = 65_536, 3, 240


class Rows(NamedTuple):
    """Tokens of a row, rows of a forward pass, and tokens of a step."""

    length: int
    micro: int
    batch: int


SHORT, LONG = Rows(512, 8, 8192), Rows(2048, 4, 16_384)


def trainer(shape: dict[str, int], shards: Any, asked: dict[str, Any]) -> Any:
    """Our trainer, as the dial sets it."""
    import torch

    from pando.train.dial import CorpusFacts, model_config, resolve
    from pando.train.parallel import Place, keep_freed_memory
    from pando.train.trainer import Trainer

    rows = Rows(*asked["rows"])
    values = {
        **{f"model.{name}": value for name, value in shape.items()}, "model.family": "llama",
        "model.experts": EXPERTS if asked["side"] == "mixture" else 0, "model.top_k": TOP_K,
        "model.context": rows.length, "sequence": rows.length, "batch": rows.batch,
        "tokens": rows.batch * asked["steps"], "seed": asked["seed"], "machine.number": asked["number"],
        "machine.micro_rows": rows.micro, "machine.compile": "off", "optim.kind": asked["kind"],
    }  # fmt: skip
    facts = CorpusFacts(shards.vocab_size, shards.documents("train").tokens, 1.0)
    given: Any = types.SimpleNamespace(values=values)
    config = resolve(given, facts, lambda: math.nan, 0.1).config
    keep_freed_memory()  # as every run on a CPU does
    return Trainer(config, model_config(config, shards.vocab_size), shards, Place(0, 1, torch.device("cpu")))


def theirs(shape: dict[str, int], shards: Any, number: str, rows: Rows) -> Any:
    """A step of transformers' Mixtral with torch's AdamW on rows of the same shards, as a function."""
    import numpy as np
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=shards.vocab_size, hidden_size=shape["width"], intermediate_size=shape["hidden"] // TOP_K,
        num_hidden_layers=shape["depth"], num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, max_position_embeddings=rows.length,
        tie_word_embeddings=True, output_router_logits=True, router_aux_loss_coef=0.01,
    )  # fmt: skip
    model = MixtralForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    flat = np.concatenate([one.tokens for one in shards.documents("train")][:2000]).astype(np.int64)
    texts = torch.from_numpy(flat[: len(flat) // rows.length * rows.length].reshape(-1, rows.length))
    parts, made = rows.batch // rows.length // rows.micro, 0

    def step() -> None:
        nonlocal made
        for _ in range(parts):
            ids = texts[(made * rows.micro) % (len(texts) - rows.micro) :][: rows.micro]
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
        step = theirs(shape, shards, asked["number"], Rows(*asked["rows"]))
    else:
        made = trainer(shape, shards, asked)
        step = lambda: made.step().read()  # noqa: E731
    taken = []
    for _ in range(asked["steps"]):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    found = {"tokens_per_second": Rows(*asked["rows"]).batch / statistics.median(taken[1:])}
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


def speed(options: argparse.Namespace, shape: dict[str, int], shards: str, numbers: list[str]) -> bool:
    """Tokens a second of every side; whether what is asked for was reached."""
    kinds = [(side, number, 1) for side in ("mixture", "dense", "transformers") for number in numbers]
    kinds.append(("transformers", numbers[0], 2))
    sides = {}
    for rows in (SHORT, LONG):
        for side, number, parts in kinds:
            each = rows._replace(micro=rows.micro // parts)
            sides[rows.length, side, number, each.micro] = partial(
                run, side=side, number=number, rows=each, shards=shards, shape=shape, seed=0, judge=False, kind="adamw",
                steps=3 if options.quick else SPEED_TOKENS // rows.batch,
            )  # fmt: skip
    found = alternate({str(key): each for key, each in sides.items()}, options.repeats)
    rates = {key: [each["tokens_per_second"] for each in found[str(key)]] for key in sides}
    lines = [
        f"{today()}, {machine()}, {versions('torch', 'transformers')}; {shape['depth']} blocks of width "
        f"{shape['width']}, {EXPERTS} experts of {shape['hidden'] // TOP_K} with {TOP_K} a token against a dense layer "
        f"of {shape['hidden']}, AdamW, {SHORT.batch:,} tokens a step in rows of {SHORT.length} and {LONG.batch:,} in "
        f"rows of {LONG.length:,}.",
        "",
        "| rows of | side | products in | rows a pass | tokens/s |",
        "|---|---|---|---|---|",
        *(
            f"| {length:,} | {side} | {number} | {micro} | {spread(rate, '', 0)} |"
            for (length, side, number, micro), rate in rates.items()
        ),
        "",
        "| rows of | our fastest mixture against | ratio | asked for |",
        "|---|---|---|---|",
    ]
    reached = True
    for rows in (SHORT, LONG):
        fastest = {
            side: max((rate for key, rate in rates.items() if key[:2] == (rows.length, side)), key=statistics.median)
            for side in ("mixture", "dense", "transformers")
        }
        default = rates[rows.length, "transformers", "float32", rows.micro]
        dense, peer = (Ratio.of(fastest["mixture"], fastest[side]) for side in ("dense", "transformers"))
        usual = Ratio.of(fastest["mixture"], default)
        reached &= dense.median >= DENSE and peer.median >= PEER and usual.median >= PEER
        lines += [
            f"| {rows.length:,} | dense, its fastest | {dense} | {DENSE}x |",
            f"| {rows.length:,} | transformers' Mixtral, its fastest | {peer} | {PEER}x |",
            f"| {rows.length:,} | transformers' Mixtral as it comes: float32, as many rows a pass as ours | "
            f"{usual} | {PEER}x |",
        ]
    report("moe-speed", "Mixture of experts: speed", lines, found, options.record)
    return reached


def quality(options: argparse.Namespace, shape: dict[str, int], shards: str, number: str) -> bool:
    """Bits per byte of what is held back, for dense and mixture; whether the mixture's are lower with every seed."""
    steps = 4 if options.quick else QUALITY_STEPS
    asked = {"shards": shards, "shape": shape, "rows": SHORT, "steps": steps, "judge": True, "kind": "muon"}
    bits = {
        side: [run(side=side, number=number, seed=seed, **asked)["bits_per_byte"] for seed in range(SEEDS)]
        for side in ("dense", "mixture")
    }
    gains = [a - b for a, b in zip(bits["dense"], bits["mixture"], strict=True)]
    lines = [
        f"{today()}, {machine()}, {versions('torch')}; the shapes of the speed part, rows of {SHORT.length}, "
        f"{SHORT.batch:,} tokens a step.",
        "",
        f"After {steps} steps with Muon in {number}, held-back bits per byte over {SEEDS} seeds: dense "
        f"{spread(bits['dense'], '', 4)}, mixture {spread(bits['mixture'], '', 4)}; the mixture is lower by "
        f"{spread(gains, '', 4)} (asked for: above 0).",
    ]
    report("moe-quality", "Mixture of experts: quality", lines, bits, options.record)
    return min(gains) > 0


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(json.loads(sys.argv[2]))))
        return 0
    options = arguments(__doc__, parts=("speed", "quality"))
    import torch

    from pando.train.lora import fastest_dtype

    if data() is None:
        raise SystemExit("no public texts here: set PANDO_DATA")
    shape = QUICK if options.quick else SHAPE
    shards = str(build(CACHE / "pretrain" / "shards", 4096))
    quick = str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    reached = True
    if options.part in (None, "speed"):
        reached &= speed(options, shape, shards, list(dict.fromkeys((quick, "float32"))))
    if options.part in (None, "quality"):
        reached &= quality(options, shape, shards, quick)
    return int(not reached)


if __name__ == "__main__":
    start(main)
