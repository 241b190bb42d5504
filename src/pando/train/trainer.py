"""One step after the other: batch, loss, gradients, update. It knows no objective by name, and writes nothing."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pando.model.base import open_base
from pando.model.config import ModelConfig
from pando.train.config import PretrainConfig, learns_causally
from pando.train.loss import batch_loss
from pando.train.objectives import Mixture, make_mixture
from pando.train.optim import Guard, build_optimiser, rate_scale
from pando.train.parallel import Place, last_of_step, lay_out, settle
from pando.train.routing import mixture_layers, routing_facts, shift_biases
from pando.train.shards import Document, Shards
from pando.train.stream import Stream, whole_batches

_MICRO_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}  # hidden numbers (rows x T x width) of one forward pass, about


@dataclass(frozen=True)
class Step:
    """What came of one step; its numbers stay on the device until `read`.

    Attributes:
        step: how many were made before it.
        scale: what the peak rates were multiplied by.
        slots, targets: of the whole step, over all ranks.
        samples: CRC-32 of the tokens that were read, over all ranks: the same samples have the same.
        numbers: [3 + 2 * names] loss (nats a target), gradient norm, whether it was kept, then each objective's nats
            and targets.
        loads: how many tokens each expert got, [layers with experts, experts], or None.
    """

    step: int
    scale: float
    slots: int
    targets: int
    samples: int
    numbers: Tensor
    names: tuple[str, ...]
    loads: Tensor | None = None

    def read(self) -> dict[str, Any]:
        """The numbers, as the log has them. Waits for the device."""
        loss, norm, kept, *sums = self.numbers.tolist()
        pairs = zip(self.names, sums[::2], sums[1::2], strict=True)
        parts = {name: nats / count for name, nats, count in pairs if count}
        return {
            "loss": loss,
            "norm": norm,
            "kept": bool(kept),
            "scale": self.scale,
            "slots": self.slots,
            "targets": self.targets,
            "samples": f"{self.samples:08x}",
            "parts": parts,
            **({} if self.loads is None else {"experts": routing_facts(self.loads.cpu())}),
        }


def beginning(config: PretrainConfig, shards: Shards) -> int:
    """The token that documents are read after: the one that a base's tokenizer puts before texts, else the one that
    ends documents."""
    begin = None if config.base is None else open_base(config.base).tokenizer.begins
    return shards.end if begin is None else begin


class Trainer:
    """A model in training: its weights, optimiser, guard and stream, at one step.

    Args:
        config: resolved; `machine.number` and `machine.compile` say what they are.
        model: the shape.
        shards: the corpus.
        place: this rank.

    Attributes:
        steps_made: how many.
        number: dtype of the products; weights, norms and the residual stream are float32.
    """

    def __init__(self, config: PretrainConfig, model: ModelConfig, shards: Shards, place: Place) -> None:
        self.config, self.place, self.shards = config, place, shards
        self.steps_made = 0
        self.number: torch.dtype = getattr(torch, config.machine.number)
        start = None if model.encoder is None else model.start_token
        self.mixture = make_mixture(config.objectives, shards, start, beginning(config, shards))
        self.stream = Stream(shards, self.mixture, config.sequence, config.rows, config.seed)
        self._share = place.share(config.rows)
        compiled = config.machine.compile == "on"
        recompute = config.machine.recompute
        self.model = lay_out(model, place, config.seed, config.base, compiled=compiled, recompute=recompute)
        self.optimiser = build_optimiser(self.model, config.optim, self.number)
        self.guard = Guard(config.optim, place.device)
        self._mixtures = mixture_layers(model)
        extra = [name for name, on in (("z", config.z_loss), ("balance", self._mixtures and config.balance)) if on]
        self._names: tuple[str, ...] = (*self.mixture.names, *extra)

    @property
    def micro_rows(self) -> int:
        """Rows of one forward pass."""
        each: int = self._share.stop - self._share.start
        limit = _MICRO_NUMBERS.get(self.place.device.type, _MICRO_NUMBERS["cpu"])
        fitting = max(1, limit // (self.config.sequence * self.model.config.d_model))
        return min(each, self.config.machine.micro_rows or fitting)

    def step(self) -> Step:
        """Makes one step: gradients of the mean loss over every target of the step, whatever micro-batch or rank it
        is in, and one update (or none, where the guard says so)."""
        whole = next(self.stream)
        weight = max(1, whole.weight)
        mine = whole.rows(self._share)
        rows = self._share.stop - self._share.start
        sums = torch.zeros(1 + 2 * len(self._names), device=self.place.device)
        loads = None
        starts = range(0, rows, self.micro_rows)
        for start in starts:
            part = mine.rows(slice(start, start + self.micro_rows)).to(self.place.device)
            last_of_step(self.model, start == starts[-1])
            with self.products():
                loss = batch_loss(self.model, part, z_loss=self.config.z_loss, balance=self.config.balance)
            (loss.total / weight).backward()
            if loss.loads is not None:
                loads = loss.loads if loads is None else loads + loss.loads
            sums += torch.cat((loss.total.detach()[None], *(loss.logs[name] for name in self._names)))
        self.place.add_up(sums)
        if loads is not None:
            self.place.add_up(loads)
        mean = sums[0] / weight
        norm = self.optimiser.gradient_norm()
        keep = self.guard.judge(mean, norm)
        scale = rate_scale(self.steps_made, self.config.steps, self.config.optim)
        self.optimiser.step(scale, keep, norm)
        if loads is not None:
            shift_biases(self.model, loads, keep)
        numbers = torch.cat((torch.stack((mean, norm, keep)), sums[1:]))
        self.steps_made += 1
        samples = zlib.crc32(whole.tokens.numpy().tobytes())
        slots, targets = whole.tokens.numel(), whole.weight
        return Step(self.steps_made - 1, scale, slots, targets, samples, numbers, self._names, loads)

    def products(self) -> contextlib.AbstractContextManager[Any]:
        """Products in `number`."""
        if self.number == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.place.device.type, dtype=self.number)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name; a loader fills them in place."""
        settle(self.model)
        return {
            **{f"model.{name}": p.detach() for name, p in self.model.named_parameters()},
            **{f"optimiser.{name}": tensor for name, tensor in self.optimiser.state().items()},
            **{f"guard.{name}": tensor for name, tensor in self.guard.state().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has besides tensors: plain numbers and texts."""
        return {
            "steps_made": self.steps_made,
            "stream": self.stream.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` told; the tensors are loaded besides."""
        self.stream.load_state_dict(state["stream"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps_made = state["steps_made"]

    @torch.no_grad()
    def validate(self, most_tokens: int) -> dict[str, Any]:
        """Loss of held-back documents: for each objective in nats a target; for each source, where the run learns
        causally, in bits per byte of its text (what an encoder reads is not predicted, and has none).

        Args:
            most_tokens: of all sources together, dealt out evenly; 0 takes all.
        """
        chosen = _by_source(self.shards, most_tokens)
        found: dict[str, Any] = {"objectives": self._mean_losses([d for part in chosen.values() for d in part])}
        found |= {"sources": {}, "bits_per_byte": None}
        if not learns_causally(self.config, self.model.config):
            settle(self.model)
            return found
        causal = make_mixture({"causal": 1.0}, self.shards, begin=beginning(self.config, self.shards))
        nats, size = 0.0, 0
        for name, documents in chosen.items():
            lost = self._losses(documents, causal).get("causal", (0.0, 0.0))[0]
            text = sum(document.bytes for document in documents)
            found["sources"][name] = lost / math.log(2) / max(1, text)
            nats, size = nats + lost, size + text
        found["bits_per_byte"] = nats / math.log(2) / size if size else None
        settle(self.model)
        return found

    def _mean_losses(self, documents: Sequence[Document]) -> dict[str, float]:
        return {name: nats / count for name, (nats, count) in self._losses(documents, self.mixture).items() if count}

    def _losses(self, documents: Sequence[Document], mixture: Mixture) -> dict[str, tuple[float, float]]:
        """Nats and targets of each objective. Every rank computes all of it: it is little, and needs no words."""
        sums = {name: torch.zeros(2, dtype=torch.float64) for name in mixture.names}
        batches = whole_batches(documents, mixture, self.config.sequence, self.micro_rows, self.shards.end)
        for batch in batches:
            if not batch.weight:
                continue
            with self.products():
                loss = batch_loss(self.model, batch.to(self.place.device))
            for name in mixture.names:
                sums[name] += loss.logs[name].double().cpu()
        return {name: (float(pair[0]), float(pair[1])) for name, pair in sums.items()}


def _by_source(shards: Shards, most_tokens: int) -> dict[str, list[Document]]:
    """Held-back documents of each source that has some, the first ones of the split: as few as reach an even share of
    the tokens."""
    held = shards.documents("validation")
    there = {shards.sources[source].name for source in held.sources()}
    found: dict[str, list[Document]] = {source.name: [] for source in shards.sources if source.name in there}
    counts = dict.fromkeys(found, 0)
    most = math.inf if not most_tokens else most_tokens / max(1, len(found))
    for document in held:
        name = shards.sources[document.source].name
        if counts[name] < most:
            found[name].append(document)
            counts[name] += len(document.tokens)
        if min(counts.values()) >= most:
            break
    return found
