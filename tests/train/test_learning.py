"""What adapters learn besides answers: labels, and which texts belong together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pando.model.config import HeadConfig, LayerConfig, MlpConfig, NormConfig
from pando.model.context import RowContext
from pando.model.lora import LoraConfig, all_linear
from pando.model.transformer import Transformer
from pando.train.learning import LabelledExample, Labelling, Matching, PairExample, text_vectors
from pando.train.lora import LoraSettings, LoraTrainer
from tests.model import tiny


def encoder(seed: int = 0) -> Transformer:
    shape = tiny.config(heads=4, kv_heads=4, family="modernbert")
    layers = tuple(
        LayerConfig(one.attention, MlpConfig(96, "gelu"), attention_norm=i > 0) for i, one in enumerate(shape.layers)
    )
    head = HeadConfig("gelu", dense_bias=False)
    config = replace(
        shape,
        layers=layers,
        both_ways=True,
        head=head,
        embed_norm=True,
        norm=NormConfig("layer"),
        initializer_range=0.1,
    )
    return tiny.model(config, seed)


def texts(count: int, seed: int, low: int = 3, high: int = 60) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(4, 12, (count,), generator=generator).tolist()
    return [tuple(torch.randint(low, high, (size,), generator=generator).tolist()) for size in sizes]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_vectors_are_those_of_each_text_alone(kind: str, pooling: str) -> None:
    model = encoder() if kind == "encoder" else tiny.model(tiny.config())
    many = texts(5, 1)
    with torch.no_grad():
        found = text_vectors(model, many, pooling)  # type: ignore[arg-type]
        for vector, text in zip(found, many, strict=True):
            ids = torch.tensor([text])
            states = model(ids, RowContext(ids, both_ways=kind == "encoder"))[0]
            wanted = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
            torch.testing.assert_close(vector, wanted, rtol=1e-4, atol=1e-5)


def test_labels_are_learnt_by_heart_and_generalise() -> None:
    """A token that stands in every text of a label and nowhere else tells it."""
    model = encoder()
    examples = [LabelledExample((*text, 100 + i % 3), i % 3) for i, text in enumerate(texts(60, 2))]
    learning = Labelling(model, 3)
    trainer = LoraTrainer(
        model, LoraConfig(8, 16.0, all_linear(model)), examples, LoraSettings(5e-3, 150, 16), 0, learning
    )
    first = trainer.loss(examples)
    assert first == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)
    list(trainer.train(150))
    fresh = [LabelledExample((*text, 100 + i % 3), i % 3) for i, text in enumerate(texts(30, 3))]
    assert trainer.loss(examples) < 0.05 and trainer.loss(fresh) < 0.2


def test_a_query_is_brought_near_to_its_text() -> None:
    model = encoder()
    pairs = [PairExample(query, text) for query, text in zip(texts(16, 4), texts(16, 5), strict=True)]
    trainer = LoraTrainer(
        model, LoraConfig(8, 16.0, all_linear(model)), pairs, LoraSettings(5e-3, 100, 16), 0, Matching()
    )
    before = trainer.loss(pairs)
    list(trainer.train(100))
    assert trainer.loss(pairs) < 0.1 < before


def test_the_loss_of_matching_is_that_of_its_definition() -> None:
    """The same text once more in a step is no wrong answer, nor is another one that the query wants."""
    model = encoder()
    first, second, third = texts(3, 6)
    shared, other, last = texts(3, 7)
    both = frozenset({"a", "b"})
    pairs = [
        PairExample(first, shared, "a", both),
        PairExample(first, other, "b", both),
        PairExample(second, shared, "a2", frozenset({"a2"})),
        PairExample(third, last, "c", frozenset({"c", "b"})),
    ]
    against = [[3], [2, 3], [1, 3], [0, 2]]  # what each is told from
    with torch.no_grad():
        total, tokens = Matching(temperature=0.1).loss(model, pairs, None)
        queries, answers = (
            F.normalize(text_vectors(model, side, "mean"), dim=-1)
            for side in ([p.query for p in pairs], [p.text for p in pairs])
        )
    told = (queries @ answers.T / 0.1).double()
    wanted = -sum(float(told[i, i] - torch.logsumexp(told[i, [i, *others]], 0)) for i, others in enumerate(against))
    assert float(total) == pytest.approx(wanted, abs=1e-4) and tokens == sum(map(len, pairs))


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_micro_batches_change_nothing(kind: str) -> None:
    """Neither where losses add up nor where all examples of a step are compared with each other."""
    model = encoder()
    labelled = [LabelledExample(text, i % 2) for i, text in enumerate(texts(16, 9))]
    paired = [PairExample(query, text) for query, text in zip(texts(16, 4), texts(16, 5), strict=True)]
    losses, held = [], []
    for limit in (2048, 40):
        how = LoraConfig(4, 8.0, all_linear(model)), LoraSettings(1e-2, 5, 8, micro_tokens=limit)
        trainer: LoraTrainer[Any] = (
            LoraTrainer(model, how[0], labelled, how[1], 0, Labelling(model, 2))
            if kind == "labels"
            else LoraTrainer(model, how[0], paired, how[1], 0, Matching())
        )
        losses.append(list(trainer.train(5)))
        held.append(trainer.loss(labelled if kind == "labels" else paired))
    assert losses[0][0] != losses[0][-1]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-3, atol=1e-4)
    assert held[0] == pytest.approx(held[1], rel=1e-3)
