"""The supervised objective against plain definitions: every row computed alone, gradients included."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig
from pando.model.context import RowContext
from pando.model.lora import LoraConfig, TrainableLora, all_linear
from pando.model.transformer import Transformer
from pando.train.batches import length_buckets
from pando.train.lora import LoraSettings, LoraTrainer, training_copy
from pando.train.supervised import SupervisedExample, collate, supervised_loss

LAYER = LayerConfig(AttentionConfig(4, 2, 8, RopeConfig(8)), MlpConfig(48))
CONFIG = ModelConfig("llama", 61, 32, (LAYER,) * 2, 128, tied=True)


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(CONFIG)
    made.initialise(0)
    with torch.no_grad():
        made.embed.weight.mul_(10)
    return made.requires_grad_(False)


def _examples(count: int, shared: int, seed: int = 0) -> list[SupervisedExample]:
    draw = random.Random(seed)
    head = [draw.randrange(61) for _ in range(shared)]
    return [
        SupervisedExample(
            tuple(head + [draw.randrange(61) for _ in range(draw.randrange(1, 12))]),
            tuple(draw.randrange(61) for _ in range(draw.randrange(1, 5))),
        )
        for _ in range(count)
    ]


def _adapter(model: Transformer) -> TrainableLora:
    adapter = TrainableLora(model, LoraConfig(4, 8, all_linear(model)), seed=1)
    with torch.no_grad():
        for b in adapter.b:
            b.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return adapter


def _one_by_one(model: Transformer, examples: list[SupervisedExample], adapter: TrainableLora) -> torch.Tensor:
    total = torch.zeros(())
    for example in examples:
        tokens = torch.tensor([[*example.prompt, *example.answer]])
        logits = model.head(model(tokens, RowContext(tokens, adapters=adapter)))[0]
        start = len(example.prompt)
        total = total + F.cross_entropy(logits[start - 1 : -1], tokens[0, start:], reduction="sum")
    return total


@pytest.mark.parametrize("shared", [0, 1, 20])
def test_shared_prefix_gives_the_loss_and_gradients_of_separate_rows(model: Transformer, shared: int) -> None:
    examples, adapter = _examples(6, shared), _adapter(model)
    loss, weight = supervised_loss(model, collate(examples, model.config), adapter)
    expected = _one_by_one(model, examples, adapter)
    assert weight == sum(len(e.answer) for e in examples)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    parameters = list(adapter.parameters())
    for got, want in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 7), st.integers(0, 9), st.integers(0, 1000))
def test_every_answer_token_is_a_target_and_nothing_else_is(count: int, shared: int, seed: int) -> None:
    examples = _examples(count, shared, seed)
    batch = collate(examples, CONFIG)
    assert batch.targets.tolist() == [t for e in examples for t in e.answer]
    assert batch.logical_tokens == sum(len(e.prompt) + len(e.answer) for e in examples)
    at = 0
    for example in examples:
        before = (example.prompt[-1], *example.answer[:-1])
        places = batch.places[at : at + len(example.answer)]
        assert batch.inputs(None)[0][places].tolist() == list(before)
        at += len(example.answer)


def test_pad_token_never_decides_the_mask(model: Transformer) -> None:
    """A token that equals the padding id (0) is learnt like any other."""
    examples = [SupervisedExample((5, 0, 0), (0, 0)), SupervisedExample((5, 0, 7, 8, 9), (0,))]
    batch = collate(examples, model.config)
    assert batch.targets.tolist() == [0, 0, 0]
    adapter = _adapter(model)
    torch.testing.assert_close(
        supervised_loss(model, batch, adapter)[0], _one_by_one(model, examples, adapter), rtol=1e-5, atol=1e-4
    )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5))
def test_buckets_visit_each_example_once_and_repeat_by_seed(lengths: list[int], size: int, epoch: int) -> None:
    batches = list(length_buckets(lengths, size, 3, epoch))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert batches == list(length_buckets(lengths, size, 3, epoch))


def test_training_learns_and_repeats_bit_for_bit(model: Transformer) -> None:
    examples = _examples(16, 6)
    settings = LoraSettings(learning_rate=3e-2, steps=120, batch_size=8)
    config = LoraConfig(4, 8, all_linear(model))
    runs = []
    for _ in range(2):
        trainer = LoraTrainer(training_copy(model, torch.float32), config, examples, settings, seed=5)
        runs.append(list(trainer.train(120)))
        assert trainer.done
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.3 * runs[0][0]


def test_golden_loss_curve(model: Transformer) -> None:
    """Every fifth loss as it was before pretraining came to share the objective and the model."""
    settings = LoraSettings(learning_rate=1e-2, steps=30, batch_size=8)
    twin, config = training_copy(model, torch.float32), LoraConfig(4, 8, all_linear(model))
    losses = list(LoraTrainer(twin, config, _examples(16, 6), settings, seed=5).train(30))
    golden = [6.59678, 6.30004, 4.72323, 3.70176, 3.68621, 3.51674]
    assert losses[::5] == pytest.approx(golden, rel=1e-3)


def test_bfloat16_copy_keeps_residual_and_norms_in_float32(model: Transformer) -> None:
    twin = training_copy(model, torch.bfloat16)
    kinds = {name.rsplit(".", 2)[-2]: p.dtype for name, p in twin.named_parameters()}
    assert kinds["q"] == kinds["down"] == torch.bfloat16
    assert kinds["embed"] == kinds["norm"] == kinds["mlp_norm"] == torch.float32
    assert model.layers[0].attention.q.weight.dtype == torch.float32
    adapter = _adapter(model)
    exact, _ = supervised_loss(model, collate(_examples(4, 5), model.config), adapter)
    rounded, _ = supervised_loss(twin, collate(_examples(4, 5), model.config), adapter)
    assert abs((exact - rounded).item()) < 0.02 * exact.item()


def test_micro_batches_change_nothing_but_memory(model: Transformer) -> None:
    examples = _examples(16, 4)
    config = LoraConfig(4, 8, all_linear(model))
    curves = []
    for micro in (10_000, 40):
        settings = LoraSettings(learning_rate=1e-2, steps=6, batch_size=8, micro_tokens=micro)
        trainer = LoraTrainer(model, config, examples, settings, seed=5)
        curves.append(list(trainer.train(6)))
        assert trainer.tokens == sum(map(len, examples)) * 3
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
