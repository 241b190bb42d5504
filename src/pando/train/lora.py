"""Trains a LoRA adapter on a frozen base, for whatever `pando.train.learning` has."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F

from pando.model.layers import ExpertProjection, Projection
from pando.model.lora import LoraConfig, TrainableLora
from pando.model.transformer import Transformer
from pando.train.batches import length_buckets
from pando.train.learning import Answering, Comparing, Learning


@dataclass(frozen=True)
class LoraSettings:
    """How an adapter is trained.

    Attributes:
        learning_rate: peak of AdamW's learning rate.
        steps: optimiser steps in all; the rate warms up over `warmup` of them and falls linearly to zero.
        batch_size: examples a step.
        warmup: share of the steps.
        clip: largest gradient norm.
        micro_tokens: most tokens of a forward pass; larger steps are made of several, which bounds memory and changes
            nothing else.
    """

    learning_rate: float
    steps: int
    batch_size: int = 16
    warmup: float = 0.05
    clip: float = 1.0
    micro_tokens: int = 2048


def rule_learning_rate(d_model: int) -> float:
    """Peak rate for LoRA by model width: 5e-5 * 10 * (2000 / d_model) ** 0.781.

    The rule that Thinking Machines published for the llama family with its Tinker cookbook (2025); it is calibrated
    above the size of the smallest bases, so callers try a few multiples of it.
    """
    return float(5e-5 * 10 * (2000 / d_model) ** 0.781)


def training_copy(model: Transformer, number: torch.dtype) -> Transformer:
    """The frozen base for training: projections in `number`, embedding and norms in float32 (so is the residual).

    Shares what needs no conversion with `model`.
    """
    kept = {id(p): p for p in model.parameters() if p.dtype == torch.float32}
    modules = (m for m in model.modules() if isinstance(m, (Projection, ExpertProjection)))
    projections = {id(p) for m in modules for p in m.parameters(recurse=False)}
    if number == torch.float32:
        projections = set()
    memo = {key: p for key, p in kept.items() if key not in projections}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        if isinstance(module, (Projection, ExpertProjection)):
            module.to(number)
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    return twin.requires_grad_(False)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where this machine multiplies it at least 1.5 times as fast as float32 (measured), else float32."""
    times = {}
    for number in (torch.float32, torch.bfloat16):
        x, w = (torch.randn(512, 512, device=device).to(number) for _ in range(2))
        rounds = []
        for _ in range(9):
            started = time.perf_counter()
            float(F.linear(x, w)[0, 0])
            rounds.append(time.perf_counter() - started)
        times[number] = sorted(rounds)[len(rounds) // 2]
    return torch.bfloat16 if times[torch.float32] > 1.5 * times[torch.bfloat16] else torch.float32


E = TypeVar("E", bound=Sized)


class LoraTrainer(Generic[E]):
    """One adapter in training. Steps are deterministic for a seed, a machine and a number of threads.

    Args:
        model: a `training_copy` of the base.
        config: rank, scale and sites.
        examples: what to learn.
        settings: rate, steps, batch size.
        seed: of the adapter's first weights and the order of the examples.
        learning: what they are learnt for; None: to answer (`Answering`).
    """

    def __init__(
        self,
        model: Transformer,
        config: LoraConfig,
        examples: Sequence[E],
        settings: LoraSettings,
        seed: int,
        learning: Learning[E] | None = None,
    ) -> None:
        self.adapter = TrainableLora(model, config, seed)
        self.learning: Learning[E] = learning or cast("Learning[E]", Answering())
        self.settings = settings
        self.step = 0
        self.tokens = 0
        self.losses: list[float] = []
        self._model = model
        self._examples = examples
        self._order = self._endless(seed)
        self._trained = [*self.adapter.parameters(), *self.learning.parameters()]
        self._optimiser = torch.optim.AdamW(self._trained, lr=settings.learning_rate, weight_decay=0.0)

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.step >= self.settings.steps

    def train(self, steps: int) -> Iterator[float]:
        """Makes up to `steps` steps; yields each one's mean loss in nats (a supervised token, or an example)."""
        for _ in range(min(steps, self.settings.steps - self.step)):
            mean = self._accumulate(next(self._order))
            torch.nn.utils.clip_grad_norm_(self._trained, self.settings.clip)
            for group in self._optimiser.param_groups:
                group["lr"] = self._rate()
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
            self.step += 1
            self.losses.append(mean)
            yield mean

    @torch.no_grad()
    def loss(self, examples: Sequence[E]) -> float:
        """Mean loss of other examples, in nats."""
        parts, learning = list(self._micro(examples)), self.learning
        if isinstance(learning, Comparing):
            vectors = torch.cat([learning.vectors(self._model, part, self.adapter) for part in parts])
            total = float(learning.compare(vectors, [one for part in parts for one in part]))
        else:
            total = sum(float(learning.loss(self._model, part, self.adapter)[0]) for part in parts)
        return total / sum(map(learning.weight, examples))

    def _accumulate(self, indices: Sequence[int]) -> float:
        """Gradients of the mean loss of these examples; returns that mean."""
        examples = [self._examples[i] for i in indices]
        weight = sum(map(self.learning.weight, examples))
        parts = list(self._micro(examples))
        if isinstance(self.learning, Comparing) and len(parts) > 1:
            self.tokens += sum(map(len, examples))
            return self._compare(self.learning, parts, weight)
        total = 0.0
        for part in parts:
            loss, tokens = self.learning.loss(self._model, part, self.adapter)
            (loss / weight).backward()
            self.tokens += tokens
            total += float(loss.detach())
        return total / weight

    def _compare(self, learning: Comparing[E], parts: Sequence[Sequence[E]], weight: int) -> float:
        """The same for examples that are compared with each other: their vectors first, then the loss's gradient for
        these, then that of each part, computed again (GradCache, arXiv 2101.06983). One part at a time is in memory."""
        with torch.no_grad():
            vectors = torch.cat([learning.vectors(self._model, part, self.adapter) for part in parts])
        vectors.requires_grad_()
        loss = learning.compare(vectors, [one for part in parts for one in part])
        (loss / weight).backward()
        assert vectors.grad is not None
        for part, wanted in zip(parts, vectors.grad.split([len(part) for part in parts]), strict=True):
            learning.vectors(self._model, part, self.adapter).backward(wanted)
        return float(loss.detach()) / weight

    def _micro(self, examples: Sequence[E]) -> Iterator[list[E]]:
        """Parts of like length that are at most `micro_tokens` when padded (or a single longer example)."""
        part: list[E] = []
        for example in sorted(examples, key=len):
            if part and (len(part) + 1) * len(example) > self.settings.micro_tokens:
                yield part
                part = []
            part.append(example)
        if part:
            yield part

    def _rate(self) -> float:
        warm = max(1, round(self.settings.warmup * self.settings.steps))
        if self.step < warm:
            return self.settings.learning_rate * (self.step + 1) / warm
        return self.settings.learning_rate * (self.settings.steps - self.step) / max(1, self.settings.steps - warm)

    def _endless(self, seed: int) -> Iterator[list[int]]:
        lengths = [len(example) for example in self._examples]
        epoch = 0
        while True:
            yield from length_buckets(lengths, self.settings.batch_size, seed, epoch)
            epoch += 1
