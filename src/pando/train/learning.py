"""What an adapter can be trained for: to write answers, to tell labels, to bring queries near to what answers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pando.model.context import Adapters, PackedContext
from pando.model.transformer import Transformer
from pando.train.supervised import SupervisedExample, collate, supervised_loss

E = TypeVar("E", contravariant=True)


class Learning(Protocol, Generic[E]):
    """What examples are learnt for. An example has a length, in tokens."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained besides the adapter."""
        ...

    def weight(self, example: E) -> int:
        """How much an example counts in the mean loss."""
        ...

    def loss(self, model: Transformer, examples: Sequence[E], adapters: Adapters | None) -> tuple[Tensor, int]:
        """The summed loss in nats (float32 scalar), and the examples' tokens."""
        ...


@runtime_checkable
class Comparing(Learning[E], Protocol):
    """A loss over the vectors of all examples of a step, which are compared with each other."""

    def vectors(self, model: Transformer, examples: Sequence[E], adapters: Adapters | None) -> Tensor:
        """What is compared of each example, float32 [n, ...]."""
        ...

    def compare(self, vectors: Tensor, examples: Sequence[E]) -> Tensor:
        """The summed loss in nats of all of them, float32 scalar."""
        ...


class Answering:
    """The supervised objective; see `pando.train.supervised`."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """See `Learning`."""
        return ()

    def weight(self, example: SupervisedExample) -> int:
        """See `Learning`."""
        return len(example.answer)

    def loss(
        self, model: Transformer, examples: Sequence[SupervisedExample], adapters: Adapters | None
    ) -> tuple[Tensor, int]:
        """See `Learning`."""
        batch = collate(examples, model.config, model.embed.weight.device)
        return supervised_loss(model, batch, adapters)[0], batch.logical_tokens


@dataclass(frozen=True)
class LabelledExample:
    """Token ids of a text, and the number of its label."""

    tokens: tuple[int, ...]
    label: int

    def __len__(self) -> int:
        return len(self.tokens)


class Labelling:
    """Labels by a linear layer on the last hidden states, pooled. It begins at zero, so that all labels are alike.

    Args:
        labels: how many.
        pooling: as the base makes one vector of a text.

    Attributes:
        matrix, bias: float32 [labels, d_model] and [labels].
    """

    def __init__(self, model: Transformer, labels: int, pooling: Literal["mean", "first", "last"] = "mean") -> None:
        device = model.embed.weight.device
        self.matrix = nn.Parameter(torch.zeros(labels, model.config.d_model, device=device))
        self.bias = nn.Parameter(torch.zeros(labels, device=device))
        self.pooling = pooling

    def parameters(self) -> Iterable[nn.Parameter]:
        """See `Learning`."""
        return (self.matrix, self.bias)

    def weight(self, example: LabelledExample) -> int:
        """See `Learning`."""
        return 1

    def loss(
        self, model: Transformer, examples: Sequence[LabelledExample], adapters: Adapters | None
    ) -> tuple[Tensor, int]:
        """See `Learning`."""
        vectors = text_vectors(model, [example.tokens for example in examples], self.pooling, adapters)
        labels = torch.tensor([example.label for example in examples], device=vectors.device)
        told = F.linear(vectors, self.matrix, self.bias)
        return F.cross_entropy(told, labels, reduction="sum"), sum(map(len, examples))


@dataclass(frozen=True)
class PairExample:
    """Token ids of a query and of a text that answers it.

    Attributes:
        document: what the text is called. wanted: what all texts that answer the query are called.
    """

    query: tuple[int, ...]
    text: tuple[int, ...]
    document: str = ""
    wanted: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.query) + len(self.text)


class Matching:
    """Each query is to be nearest to its own text among all texts of the step (InfoNCE with in-batch negatives, arXiv
    1807.03748, 2004.04906): softmax of cosines over a temperature.

    Args:
        pooling: as the base makes one vector of a text.
        temperature: of the softmax; 0.05 as in SimCSE (arXiv 2104.08821).
    """

    def __init__(self, pooling: Literal["mean", "first", "last"] = "mean", temperature: float = 0.05) -> None:
        self.pooling, self.temperature = pooling, temperature

    def parameters(self) -> Iterable[nn.Parameter]:
        """See `Learning`."""
        return ()

    def weight(self, example: PairExample) -> int:
        """See `Learning`."""
        return 1

    def loss(
        self, model: Transformer, examples: Sequence[PairExample], adapters: Adapters | None
    ) -> tuple[Tensor, int]:
        """See `Learning`."""
        return self.compare(self.vectors(model, examples, adapters), examples), sum(map(len, examples))

    def vectors(self, model: Transformer, examples: Sequence[PairExample], adapters: Adapters | None) -> Tensor:
        """Of each query and its text, unit length, [n, 2, d_model]."""
        texts = [*(one.query for one in examples), *(one.text for one in examples)]
        found = F.normalize(text_vectors(model, texts, self.pooling, adapters), dim=-1)
        each: Tensor = found.unflatten(0, (2, -1)).transpose(0, 1)
        return each

    def compare(self, vectors: Tensor, examples: Sequence[PairExample]) -> Tensor:
        """See `Comparing`. Another text that answers the query too is no wrong answer, nor is its own once more."""
        queries, answers = vectors.unbind(1)
        told = queries @ answers.T / self.temperature
        right = [[a.text == b.text or b.document in a.wanted for b in examples] for a in examples]
        others = torch.tensor(right, device=told.device) & ~torch.eye(len(examples), dtype=torch.bool).to(told.device)
        labels = torch.arange(len(examples), device=told.device)
        return F.cross_entropy(told.masked_fill(others, -torch.inf), labels, reduction="sum")


def text_vectors(
    model: Transformer,
    texts: Sequence[Sequence[int]],
    pooling: Literal["mean", "first", "last"],
    adapters: Adapters | None = None,
) -> Tensor:
    """The last hidden states of texts, pooled, float32 [n, d_model]: of the encoder, where there is one."""
    lengths = [len(text) for text in texts]
    device, reader = model.embed.weight.device, model.config.stacks[0]
    ctx = PackedContext(lengths, device, both_ways=reader.both_ways, adapters=adapters)
    tokens = torch.tensor([token for text in texts for token in text], device=device)
    hidden = model(tokens, ctx) if model.encoder is None else model.encode(tokens, ctx)
    ends = torch.tensor(lengths, device=device).cumsum(0)
    if pooling == "last":
        return hidden[ends - 1].float()
    if pooling == "first":
        return hidden[ends - torch.tensor(lengths, device=device)].float()
    numbers = torch.arange(len(texts), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    sums = torch.zeros(len(texts), hidden.shape[-1], device=device).index_add(0, numbers, hidden.float())
    return sums / torch.tensor(lengths, device=device)[:, None]
