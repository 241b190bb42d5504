"""Runs that go on from a base that is there, in place of fresh weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pando.errors import PandoError
from pando.model.base import open_base
from pando.model.upcycle import upcycle
from pando.train.configfile import read_config
from pando.train.log import losses, read_log
from pando.train.loop import Outcome, pretrain
from pando.train.parallel import joined
from pando.train.prepare import Money, foresee, prepare
from pando.train.shards import Shards, open_shards
from tests.train.corpus import SPECIALS, sentences, tokenizer, write_texts
from tests.train.runs import interrupted

MODEL = "model: {depth: 2, width: 32, hidden: 64, heads: 2, kv_heads: 1, head_dim: 16, context: 64}\n"
RUN = "sequence: 32\nbatch: 256\ntokens: 3072\nmachine: {number: float32, compile: off}\nkeep: {steps: 4}\n"
GENTLE = "optim: {kind: adamw, rate: 0.001, warmup: 0.0}\n"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    texts = [" ".join(sentences(12, seed=seed)) for seed in range(60)]
    return open_shards(write_texts(tmp_path_factory.mktemp("corpus"), texts))


@pytest.fixture(scope="module")
def first(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run from nothing."""
    folder = tmp_path_factory.mktemp("first")
    run(folder, shards, MODEL + RUN)
    return folder


def run(folder: Path, shards: Shards, text: str, **options: Any) -> Outcome:
    (folder / "pretrain.yaml").write_text(text)
    with joined("cpu") as place:
        return pretrain(folder / "pretrain.yaml", shards, folder / "run", place, Money(0.1), quiet=True, **options)


def validations(folder: Path) -> list[float]:
    lines = read_log(folder / "run" / "log.jsonl")
    return [line["bits_per_byte"] for line in lines if line["kind"] == "validation"]


def test_it_begins_where_the_base_ended_and_learns_on(first: Path, shards: Shards, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = run(tmp_path, shards, f"base: {first / 'run' / 'model'}\n{GENTLE}{RUN}")
    before, after = validations(tmp_path)
    assert done.finished and before == pytest.approx(validations(first)[-1], abs=1e-5) and after < before
    base, made = open_base(first / "run" / "model"), open_base(tmp_path / "run" / "model")
    assert made.config == base.config and made.identity.hash != base.identity.hash
    assert (made.folder / "tokenizer.json").read_bytes() == (base.folder / "tokenizer.json").read_bytes()
    assert f"from the weights of model ({base.identity.hash})" in (made.folder / "README.md").read_text()
    ids = torch.arange(5, 25)[None]
    assert AutoModelForCausalLM.from_pretrained(made.folder)(ids).logits.shape == (1, 20, base.config.vocab_size)
    again = read_config(tmp_path / "run" / "config.yaml")
    assert again.values["base"] == str(first / "run" / "model") and not any(
        k.startswith("model.") for k in again.values
    )


def test_it_is_gone_on_with_bit_for_bit_unless_the_base_has_changed(
    first: Path, shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"base: base\n{GENTLE}{RUN}"  # beside the file
    for name in ("whole", "broken"):
        shutil.copytree(first / "run" / "model", tmp_path / name / "base")
    run(tmp_path / "whole", shards, text)
    interrupted(monkeypatch, 6, lambda: run(tmp_path / "broken", shards, text))
    torch.rand(7)
    run(tmp_path / "broken", shards, text, resume=True)
    found = [list(losses(read_log(tmp_path / name / "run" / "log.jsonl"))) for name in ("whole", "broken")]
    assert len(found[0]) == 12 and found[0] == found[1]
    with pytest.raises(PandoError, match="base: changed since the run"):
        run(tmp_path / "broken", shards, text.replace("base: base", f"base: {first / 'run' / 'model'}"), resume=True)
    shutil.rmtree(tmp_path / "broken" / "base")
    shutil.copytree(tmp_path / "whole" / "run" / "model", tmp_path / "broken" / "base")
    with pytest.raises(PandoError, match="base: has changed since the run"):
        run(tmp_path / "broken", shards, text, resume=True)


def test_a_mixture_that_was_upcycled_is_trained_on(first: Path, shards: Shards, tmp_path: Path) -> None:
    upcycle(open_base(first / "run" / "model"), tmp_path / "mixture", 4, 2)
    run(tmp_path, shards, f"base: mixture\n{GENTLE}{RUN}")
    before, after = validations(tmp_path)
    assert before == pytest.approx(validations(first)[-1], abs=1e-4) and after < before
    made = open_base(tmp_path / "run" / "model")
    assert made.config.family == "qwen3_moe"
    experts = dict(made.module().named_parameters())["layers.0.mlp.experts.gate.weight"]
    assert not torch.equal(experts[0], experts[1])  # they have gone ways of their own


def test_the_plan_knows_no_rule_for_its_loss(first: Path, shards: Shards, tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text(f"base: {first / 'run' / 'model'}\nsequence: 32\nbatch: 256\n")
    with joined("cpu") as place:
        found = prepare(read_config(tmp_path / "pretrain.yaml"), shards, place, Money(0.1))
        said = foresee(found.config, shards, place, Money(0.1))
    assert said.bits_per_byte is None and "the corpus once" in " ".join(found.notes)
    assert found.config.tokens == shards.documents("train").tokens


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("size: 4m\n", "size: the base has its own; leave it out"),
        ("model: {width: 64}\n", "model.width: the base has its own"),
        ("sequence: 128\n", "sequence: 128 is longer than what the model holds, 64"),
        ("base: nowhere\n", "nowhere"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    first: Path, shards: Shards, tmp_path: Path, more: str, said: str
) -> None:
    base = "" if more.startswith("base") else f"base: {first / 'run' / 'model'}\n"
    with pytest.raises(PandoError, match=said):
        run(tmp_path, shards, base + more)


def test_another_tokenizer_is_refused_and_the_way_out_named(first: Path, tmp_path: Path) -> None:
    other = open_shards(write_texts(tmp_path / "corpus", sentences(200), made=tokenizer([*SPECIALS, "<|more|>"])))
    with pytest.raises(PandoError, match=f"build the corpus with `tokenizer: {first / 'run' / 'model'}`"):
        run(tmp_path, other, f"base: {first / 'run' / 'model'}\n{RUN}")


def test_an_encoder_without_its_head_is_refused(shards: Shards, tmp_path: Path) -> None:
    from tests.model.test_encoders import theirs, written

    folder = written(theirs("bert", head=False), tmp_path / "encoder")
    shutil.copyfile(shards.folder / "tokenizer.json", folder / "tokenizer.json")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    with pytest.raises(PandoError, match="kept without its output head"):
        run(tmp_path, shards, f"base: encoder\nobjectives: {{masked: 1}}\n{RUN}")
