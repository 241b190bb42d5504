"""Every group of families with the objectives that fit it: learns, goes on bit for bit, opens elsewhere, is adapted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pando.engine.engine import Engine
from pando.errors import PandoError
from pando.interface import FeatureRequest, GenerateRequest
from pando.model.base import open_base
from pando.model.context import PackedContext, RowContext
from pando.model.lora import LoraConfig, all_linear
from pando.skin.search import unit
from pando.train.config import build
from pando.train.configfile import Given, read_config
from pando.train.dial import CorpusFacts, model_config, resolve
from pando.train.finish import leave_base
from pando.train.learning import LabelledExample, Labelling
from pando.train.log import losses as logged
from pando.train.log import read_log
from pando.train.loop import pretrain
from pando.train.lora import LoraSettings, LoraTrainer
from pando.train.parallel import joined
from pando.train.prepare import Money
from pando.train.shards import Shards, open_shards
from pando.train.supervised import SupervisedExample
from pando.train.trainer import Trainer
from tests.serve.conftest import Running
from tests.train.corpus import sentences, write_texts
from tests.train.runs import interrupted

SHAPE = {"depth": 2, "width": 32, "hidden": 64, "heads": 2, "kv_heads": 2, "head_dim": 16, "context": 64}
GROUPS: dict[str, dict[str, Any]] = {
    "dense": {"family": "qwen3"},
    "mixture": {"family": "qwen3", "experts": 4},
    "mixture, llama": {"family": "llama", "experts": 4, "top_k": 1},
    "mixture, deepseek_v3": {
        "family": "deepseek_v3",
        "experts": 4,
        "shared_experts": 1,
        "groups": 2,
        "top_groups": 1,
        "dense_layers": 1,
    },
    "encoder": {"family": "modernbert"},
    "encoder-decoder": {"family": "t5", "tied": False},
}
CASES = [(group, objective) for group in ("dense", "mixture") for objective in ("causal", "fim", "masked", "span")]
CASES += [
    ("mixture, llama", "causal"),
    ("mixture, deepseek_v3", "causal"),
    ("encoder", "masked"),
    ("encoder-decoder", "span"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    texts = [" ".join(sentences(12, seed=seed)) for seed in range(60)]  # each fills a row: beginnings cannot be guessed
    return open_shards(write_texts(tmp_path_factory.mktemp("corpus"), texts))


def trainer(shards: Shards, place: Any, group: str, objective: str, **more: Any) -> Trainer:
    values = {
        **{f"model.{name}": value for name, value in {**SHAPE, **GROUPS[group]}.items()},
        "objectives": {objective: 1.0}, "sequence": 64, "batch": 64, "tokens": 64 * 400, "machine.number": "float32",
        "machine.compile": "off", "optim.matrix_rate": 0.02, "optim.rate": 0.01, "balance": 0.001, **more,
    }  # fmt: skip
    made = build(values)
    return Trainer(made, model_config(made, shards.vocab_size), shards, place)


def config(path: Path, group: str, objective: str, more: str = "") -> Path:
    """The file of a short run."""
    shape = ", ".join(f"{name}: {str(value).lower()}" for name, value in {**SHAPE, **GROUPS[group]}.items())
    path.write_text(
        f"model: {{{shape}}}\nobjectives: {{{objective}: 1}}\nsequence: 32\nbatch: 256\ntokens: 2560\n"
        f"machine: {{number: float32, compile: off}}\n{more}"
    )
    return path


@pytest.mark.parametrize(("group", "objective"), CASES)
def test_it_learns_one_batch_by_heart(shards: Shards, group: str, objective: str) -> None:
    with joined("cpu") as place:
        made = trainer(shards, place, group, objective)
        batch = next(made.stream)
        made.stream = iter(lambda: batch, None)  # type: ignore[assignment]
        losses = (made.step().read()["parts"][objective] for _ in range(150))
        assert any(loss < 0.05 for loss in losses)


@pytest.mark.parametrize(("group", "objective"), CASES)
def test_a_run_that_broke_off_goes_on_bit_for_bit(
    shards: Shards, group: str, objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path / "pretrain.yaml", group, objective, "keep: {steps: 4}\nwatch: {validation_tokens: 500}\n")

    def run(name: str, **options: Any) -> None:
        with joined("cpu") as place:
            pretrain(file, shards, tmp_path / name, place, Money(0.1), quiet=True, **options)

    run("whole")
    interrupted(monkeypatch, 6, lambda: run("broken"))
    torch.rand(7)  # a process that was started anew has other generators
    run("broken", resume=True)
    losses = [list(logged(read_log(tmp_path / name / "log.jsonl"))) for name in ("whole", "broken")]
    assert len(losses[0]) == 10 and losses[0] == losses[1]
    models = [open_base(tmp_path / name / "model").module().state_dict() for name in ("whole", "broken")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


@pytest.mark.parametrize("group", GROUPS)
def test_what_was_trained_opens_elsewhere_and_is_used_as_any_other(shards: Shards, group: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    kind = {"encoder": AutoModelForMaskedLM, "encoder-decoder": AutoModelForSeq2SeqLM}.get(group, AutoModelForCausalLM)
    with joined("cpu") as place:
        made = trainer(shards, place, group, {"encoder": "masked", "encoder-decoder": "span"}.get(group, "causal"))
        for _ in range(3):
            made.step()
        actual = {"tokens": 768, "steps": 3, "hours": 0.0, "usd": 0.0}
        leave_base(tmp_path / "model", made.model.eval().requires_grad_(False), shards, made.config, actual)
    base = open_base(tmp_path / "model")
    theirs = kind.from_pretrained(base.folder).eval()
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        if base.config.encoder is None:
            ours = made.model.head(made.model(ids, RowContext(ids, both_ways=group == "encoder")))
            wanted = theirs(ids).logits
        else:
            behind = PackedContext([32], both_ways=True)
            ours = made.model.head(made.model(ids[0, :9], PackedContext([9], source=(ids[0], behind))))[None]
            wanted = theirs(input_ids=ids, decoder_input_ids=ids[:, :9]).logits
        assert (ours - wanted).abs().max() < 1e-4
    with Engine(base, base.module(), torch.device("cpu"), "float32", 64) as engine:
        (features,) = engine.features([FeatureRequest(text=ids[0].tolist())])
        assert features.vectors.shape == (1, SHAPE["width"])
        if base.config.both_ways:
            labelled = [LabelledExample((5, 6, 7 + i), i % 2) for i in range(8)]
            adapted(base, labelled, Labelling(base.module(), 2))
            with served(engine, tmp_path) as server:
                (found,) = server.post("embeddings", input=[ids[0].tolist()]).json()["data"]
            assert np.allclose(found["embedding"], unit(features.vectors, None)[0], atol=1e-5)
            return
        (answer,) = engine.generate([GenerateRequest(prompt=[5, 6, 7], max_tokens=5, ignore_eos=True)])
        with torch.no_grad():
            wanted = theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False, eos_token_id=None,
                                     pad_token_id=0)  # fmt: skip
        assert answer.tokens == wanted[0, -5:].tolist()
        adapted(base, [SupervisedExample((5, 6, 7 + i), (9 + i, 2)) for i in range(8)], None)
        with served(engine, tmp_path) as server:
            asked = {"prompt": [5, 6, 7], "max_tokens": 5, "temperature": 0, "ignore_eos": True}
            told = server.post("completions", **asked).json()["choices"][0]["text"]
        assert told == answer.text


def adapted(base: Any, examples: Any, learning: Any) -> None:
    """An adapter on every projection learns."""
    model = base.module()
    settings = LoraSettings(3e-2, 60, 8)
    lora: Any = LoraTrainer(model, LoraConfig(4, 8, all_linear(model)), examples, settings, 0, learning)
    losses = list(lora.train(60))
    assert losses[-1] < losses[0] - 0.3


@contextmanager
def served(engine: Engine, home: Path) -> Iterator[Running]:
    """A server on a port of its own."""
    server = Running(engine, home)
    try:
        yield server
    finally:
        server.stop()


def test_a_mixture_says_where_its_tokens_went(shards: Shards, tmp_path: Path) -> None:
    import json

    (tmp_path / "pretrain.yaml").write_text(
        "model: {family: qwen3, depth: 2, width: 32, hidden: 64, heads: 2, kv_heads: 1, head_dim: 16, context: 64, "
        "experts: 4}\nsequence: 32\nbatch: 256\ntokens: 2048\nmachine: {number: float32}\n"
    )
    with joined("cpu") as place:
        done = pretrain(tmp_path / "pretrain.yaml", shards, tmp_path / "run", place, Money(0.1), quiet=True)
    assert done.finished
    config = open_base(tmp_path / "run" / "model").config
    assert config.family == "qwen3_moe" and config.active_parameters < config.parameters
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for one in (line["experts"] for line in lines if line["kind"] == "step"):
        assert 1 <= one["load"] <= 4 and 0 <= one["entropy"] <= 1 and one["dead"] == 0
    assert all("balance" in line["parts"] for line in lines if line["kind"] == "step")


def test_biases_balance_without_a_loss(shards: Shards) -> None:
    """DeepSeek's way: tokens that all go to one expert are spread, and no gradient is needed for it."""
    from dataclasses import replace

    from pando.model.config import ExpertsConfig, RouterConfig
    from pando.train import routing

    with joined("cpu") as place:
        made = trainer(shards, place, "mixture", "causal")
        shape = model_config(made.config, shards.vocab_size)
        mixture = ExpertsConfig(4, 32, RouterConfig(1, "sigmoid", bias=True))
        shape = replace(shape, family="deepseek_v3", layers=(replace(shape.layers[0], mlp=mixture),) * 2)
        slow = replace(made.config.optim, rate=1e-6, matrix_rate=1e-6)  # what moves then is the biases
        biased = Trainer(replace(made.config, balance=0.0, optim=slow), shape, shards, place)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for block in biased.model.layers:
                block.mlp.router.weight.normal_(0.0, 0.02, generator=draw)
                block.mlp.router.bias[0] = 0.1
        first = biased.step().read()["experts"]
        for _ in range(100):
            last = biased.step().read()["experts"]
        assert first["load"] > 3.5 and last["load"] < 2.5 and last["entropy"] > first["entropy"] + 0.3
        facts = routing.routing_facts(torch.tensor([[4.0, 4, 0, 0]]))
        assert facts == {"load": 2.0, "entropy": pytest.approx(0.5), "dead": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {family: modernbert}\n", "a modernbert learns by masked: write"),
        ("model: {family: modernbert, experts: 4}\nobjectives: {masked: 1}\n", "a modernbert has none"),
        ("model: {family: t5}\nobjectives: {causal: 1}\n", "a t5 learns by span or supervised"),
        ("model: {family: t5, tied: true}\nobjectives: {span: 1}\n", "a head of its own"),
        ("model: {experts: 2, top_k: 3}\n", "is more than model.experts, 2"),
        ("model: {family: deepseek_v3}\n", "has some in every case"),
        ("model: {family: deepseek_v3, experts: 8}\n", "model.shared_experts: a deepseek_v3 has at least one"),
        ("model: {shared_experts: 1}\n", "of no account without model.experts"),
        (
            "model: {family: deepseek_v3, experts: 8, shared_experts: 1, groups: 3}\n",
            "8 experts cannot stand in 3 groups",
        ),
        (
            "model: {family: deepseek_v3, experts: 8, shared_experts: 1, top_k: 5, groups: 2}\n",
            "5 experts cannot come from 1 groups",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text(text)
    with pytest.raises(PandoError, match=said):
        read_config(tmp_path / "pretrain.yaml")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"experts": 4, "shared_experts": 1}, "model.shared_experts: a qwen3_moe has nothing of the kind"),
        ({"family": "llama", "experts": 4, "dense_layers": 1}, "model.dense_layers: a mixtral has nothing of the kind"),
        ({"experts": 4, "dense_layers": 2}, "model.dense_layers: leaves none of 2 blocks for experts"),
    ],
)
def test_what_a_family_cannot_say_of_its_experts_is_named(shape: dict[str, Any], said: str, tmp_path: Path) -> None:
    values = {f"model.{name}": value for name, value in {"depth": 2, "width": 64, **shape}.items()}
    with pytest.raises(PandoError, match=said):
        resolve(Given(tmp_path / "pretrain.yaml", values, {}), CorpusFacts(400, 10_000, 4.0), lambda: 1e9, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["mixture", "mixture, deepseek_v3", "encoder", "encoder-decoder"])
def test_two_ranks_make_the_steps_of_one(shards: Shards, group: str, tmp_path: Path) -> None:
    """FSDP2 shards experts by expert, all else by rows; what balances by a loss depends on the cut, so it is off."""
    objective = {"encoder": "masked", "encoder-decoder": "span"}.get(group, "causal")
    file = config(tmp_path / "pretrain.yaml", group, objective, "balance: 0.0\nkeep: {steps: 5}\n")
    losses = []
    for ranks in (1, 2):
        out = tmp_path / str(ranks)
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"] if ranks > 1 else []
        command = [sys.executable, *launch, "-m", "pando", "pretrain", str(file)]
        environment = {**os.environ, "PANDO_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        where = ["--corpus", str(shards.folder), "--out", str(out), "--json"]
        done = subprocess.run([*command, *where], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([loss for _, loss in logged(read_log(out / "log.jsonl"))])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4
