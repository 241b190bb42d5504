"""Before a run: its whole configuration, as the dial and this machine decide it, and what it will take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pando.errors import BaseModelError, DataError
from pando.model.base import open_base
from pando.model.checkpoint import read_json
from pando.model.tokenizer import Tokenizer
from pando.train import plan
from pando.train.config import PretrainConfig
from pando.train.configfile import Given, located
from pando.train.dial import CorpusFacts, Resolved, model_config, resolve, train_flops
from pando.train.lora import fastest_dtype
from pando.train.parallel import Place
from pando.train.shards import Shards
from pando.train.trainer import Trainer

_TOKENIZER = ("normalizer", "pre_tokenizer", "model", "added_tokens")  # what its ids depend on


@dataclass(frozen=True)
class Money:
    """Price of one machine an hour in US dollars, and how many there are."""

    usd_per_hour: float
    machines: int = 1

    def usd(self, seconds: float) -> float:
        """Price of so many seconds of all of them."""
        return seconds * self.usd_per_hour * self.machines / 3600


def corpus_facts(shards: Shards) -> CorpusFacts:
    """What the dial needs of a corpus."""
    tokens = sum(source.tokens for source in shards.sources)
    size = sum(source.bytes for source in shards.sources)
    fresh, held_back = (shards.documents(split).tokens for split in ("train", "validation"))
    return CorpusFacts(shards.vocab_size, fresh, size / max(1, tokens), held_back)


def prepare(given: Given, shards: Shards, place: Place, money: Money) -> Resolved:
    """The whole configuration of a new run: the dial's, and what was measured here for `auto`.

    Where a budget decides, real steps are timed first, so that they fit into it.

    Raises:
        ConfigError: what is given does not go together, or the corpus has another tokenizer than the base.
        BaseModelError: the base cannot be used.
        DataError: the corpus' tokenizer cannot be.
    """
    try:
        Tokenizer(shards.folder)  # the base that the run leaves needs it
    except BaseModelError as error:
        raise DataError(f"the tokenizer of {shards.folder} cannot be used: {error}; build the corpus again") from None
    if given.values.get("base") is not None:
        _check_tokenizer(given, shards)
    number = plan.choose_number(given.values.get("machine.number", "auto"), place.device, fastest_dtype)
    number = ("float32", "bfloat16")[int(place.agree(float(number == "bfloat16")))]

    def guess() -> float:
        # small models on CPUs and large ones on GPUs both reach about this share of a plain product's speed
        return place.agree(0.4 * plan.product_flops(place.device, getattr(torch, number))) * place.world

    found = _resolved(given, shards, place, money, number, guess)
    if any(given.values.get(name) is not None for name in ("budget.hours", "budget.usd")):
        said = foresee(found.config, shards, place, money)
        reached = place.agree(said.flops / (3600 * said.hours))
        found = _resolved(given, shards, place, money, number, lambda: reached)
    return found


def _check_tokenizer(given: Given, shards: Shards) -> None:
    base = open_base(located(given)).folder
    ours, theirs = (
        {part: read_json(folder / "tokenizer.json").get(part) for part in _TOKENIZER}
        for folder in (base, shards.folder)
    )
    if ours != theirs:
        raise given.wrong(
            "base", f"{shards.folder} has another tokenizer: build the corpus with `tokenizer: {base}` in corpus.yaml"
        )


def _resolved(
    given: Given, shards: Shards, place: Place, money: Money, number: str, flops: Callable[[], float]
) -> Resolved:
    found = resolve(given, corpus_facts(shards), flops, money.usd_per_hour * money.machines)
    model = model_config(found.config, shards.vocab_size)
    seconds = found.config.tokens * train_flops(model) / flops()
    compiled = plan.choose_compile(found.config.machine.compile, place.device, seconds)
    machine = replace(found.config.machine, compile="on" if compiled else "off")
    machine = replace(machine, number="bfloat16" if number == "bfloat16" else "float32")
    notes = (*found.notes, f"machine: products in {number}{', compiled blocks' if compiled else ''}")
    return Resolved(replace(found.config, machine=machine), notes)


def foresee(config: PretrainConfig, shards: Shards, place: Place, money: Money) -> plan.Forecast:
    """Times a few steps and says what the run will take. Nothing is written, no state is kept."""
    model = model_config(config, shards.vocab_size, shards.end)
    speed = plan.measure(Trainer(config, model, shards, place))
    usd_per_hour = money.usd_per_hour * money.machines
    return plan.forecast(config, model, corpus_facts(shards), speed, usd_per_hour, place.world)
