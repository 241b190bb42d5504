"""What a pretraining run is made of: `pretrain.yaml`, read strictly.

A file says as little as its writer wants; `pando.train.dial` fills in the rest. What came of it, every value in
place, is again such a file and stands beside the run as `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pando.model.config import InitConfig, ModelConfig
from pando.train.optim import OptimConfig

FORMAT = 1
LEARNS = {"encoder": ("masked",), "encoder-decoder": ("span", "supervised")}  # what such families learn by


@dataclass(frozen=True)
class Budget:
    """What the whole run may take: exactly one of the two.

    Attributes:
        hours: of this machine (of all ranks together, side by side).
        usd: US dollars, at the price of this machine (`PANDO_MACHINE_USD`, an hour).
    """

    hours: float | None = None
    usd: float | None = None


@dataclass(frozen=True)
class ShapeConfig:
    """The model's shape; exactly that of a family which transformers knows.

    Attributes:
        family: one that can begin from nothing: "qwen3" (with norms on queries and keys), "llama", "deepseek_v3"
            (latent attention; experts scored by sigmoids and balanced by biases), "modernbert" (an encoder, which
            learns by the objective `masked`), "t5" (1.1: an encoder and a decoder, which learn by `span` or
            `supervised`), or any other whose file says how (`Family.fresh`).
        depth: blocks, of encoder and decoder each. width: d_model. hidden: of the feed-forward layers.
        heads, kv_heads, head_dim: of attention.
        context: most positions, in tokens.
        tied: whether the head is the embedding.
        rope_theta: base of the rotary frequencies.
        experts: of a mixture in every block (Qwen3-MoE, Mixtral, DeepSeek-V3); 0: a plain feed-forward layer.
        top_k: experts that a token goes to.
        shared_experts: further ones that every token goes through (DeepSeek-V3).
        expert_hidden: width of an expert; 0 is `hidden` over those that a token goes through, to a multiple of 16, so
            that it meets as many weights as without.
        groups, top_groups: experts stand in so many groups, and a token's come from so many of these (DeepSeek-V3).
        dense_layers: so many blocks at the beginning have a plain feed-forward layer all the same (DeepSeek-V3).
    """

    family: str = "qwen3"
    depth: int = 12
    width: int = 768
    hidden: int = 2048
    heads: int = 12
    kv_heads: int = 6
    head_dim: int = 64
    context: int = 1024
    tied: bool = True
    rope_theta: float = 10_000.0
    experts: int = 0
    top_k: int = 2
    shared_experts: int = 0
    expert_hidden: int = 0
    groups: int = 1
    top_groups: int = 1
    dense_layers: int = 0


@dataclass(frozen=True)
class MachineConfig:
    """How the work is done; nothing here changes what is learnt, beyond rounding and how `balance` counts.

    Attributes:
        device: "auto" (CUDA, else CPU), "cpu" or "cuda".
        number: dtype of the products: "float32", "bfloat16", or "auto", measured before the run.
        compile: "on", "off", or "auto": blocks are compiled where a compiler exists and the run is long enough.
        micro_rows: rows of one forward pass; 0 takes as many as keep half a million hidden numbers (rows x sequence x
            width) on a CPU and 67 million on a GPU, whatever memory there is.
        recompute: activations of each block are computed again in the backward pass, which saves memory.
        threads: compute threads; 0 leaves the settings' choice.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    number: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    micro_rows: int = 0
    recompute: bool = False
    threads: int = 0


@dataclass(frozen=True)
class KeepConfig:
    """Which checkpoints are written and kept.

    Attributes:
        minutes: between checkpoints, about; 0 leaves it to `steps`.
        steps: a checkpoint after every so many steps; 0 leaves it to `minutes`.
        last: how many of the newest are kept.
        every: a checkpoint after every so many steps is written and kept for good; 0 keeps none.
    """

    minutes: float = 10.0
    steps: int = 0
    last: int = 2
    every: int = 0


@dataclass(frozen=True)
class WatchConfig:
    """What is looked at while the run goes on.

    Attributes:
        validate: steps between validations; 0 validates at the end only.
        validation_tokens: most tokens of held-back documents for one validation; 0 takes all.
        sample: steps between samples; 0 samples at the end only.
        prompts: what the samples continue; "" begins with nothing.
        sample_tokens: length of a sample.
        evaluate: steps between the small evaluations; 0 evaluates at the end only.
        answers: JSON lines with `question` and `answer`, relative to this file: an evaluation says how many bits a
            byte the answers cost (an answer begins with the space that parts it from its question, if any).
    """

    validate: int = 0
    validation_tokens: int = 200_000
    sample: int = 0
    prompts: tuple[str, ...] = ("",)
    sample_tokens: int = 48
    evaluate: int = 0
    answers: str | None = None


@dataclass(frozen=True)
class PretrainConfig:
    """A whole run. Counts of tokens may be written as 20k, 300m or 1.5b.

    Attributes:
        name: of the run and of the base model that comes of it.
        size: parameters wanted, such as 4m, 15m or 125m; the dial makes the shape.
        budget: what the run may take; the dial makes size and tokens.
        base: a base (its name, or a folder or GGUF file, relative to this file) to go on from, in place of fresh
            weights. The corpus must have its tokenizer; size, model and init are its own.
        seed: of weights, packing and whatever an objective draws.
        objectives: name -> weight, or -> a mapping with `weight` and the objective's own options.
        tokens: slots that are trained on, over the whole run.
        batch: slots of one step.
        sequence: slots of a row.
        z_loss: factor of the z-loss.
        balance: factor of the loss that spreads tokens over experts.
        init: how fresh weights are drawn (pando.model.config.InitConfig).
        model, optim, machine, keep, watch: see there.
    """

    name: str = "base"
    size: str | None = None
    budget: Budget | None = None
    base: str | None = None
    seed: int = 0
    objectives: dict[str, Any] = field(default_factory=lambda: {"causal": 1.0})
    tokens: int = 0
    batch: int = 0
    sequence: int = 512
    z_loss: float = 0.0
    balance: float = 0.01
    init: InitConfig = field(default_factory=InitConfig)
    model: ShapeConfig = ShapeConfig()
    optim: OptimConfig = field(default_factory=OptimConfig)
    machine: MachineConfig = MachineConfig()
    keep: KeepConfig = KeepConfig()
    watch: WatchConfig = WatchConfig()

    @property
    def rows(self) -> int:
        """Rows of one step."""
        return max(1, self.batch // self.sequence)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return max(1, -(-self.tokens // (self.rows * self.sequence)))

    def as_dict(self) -> dict[str, Any]:
        """As the file has it, without what was not given."""
        own = ("model", "init") if self.base is not None else ()
        return {"format_version": FORMAT, **{key: v for key, v in _plain(self).items() if key not in own}}


def learns_causally(config: PretrainConfig, model: ModelConfig) -> bool:
    """Whether bits per byte say something of the run: the model sees the past alone, and learns to go on from it."""
    return model.causal and not {"causal", "fim"}.isdisjoint(config.objectives)


# What may change between two halves of one run without making it another run.
FREE = {"name", "keep", "watch", "machine.device", "machine.micro_rows", "machine.threads"}


def build(values: Mapping[str, Any], cls: Any = PretrainConfig, before: str = "") -> Any:
    """The dataclass of values by dotted field; what is not there keeps its default."""
    hints = typing.get_type_hints(cls)
    made = {}
    for one in dataclasses.fields(cls):
        name, inner = before + one.name, inner_dataclass(hints[one.name])
        if inner is not None:
            if hints[one.name] is inner or any(key.startswith(f"{name}.") for key in values):
                made[one.name] = build(values, inner, f"{name}.")
        elif name in values:
            made[one.name] = values[name]
    return cls(**made)


def flat(config: PretrainConfig) -> dict[str, Any]:
    """Values by dotted field."""
    found: dict[str, Any] = {}

    def walk(part: Any, before: str) -> None:
        for one in dataclasses.fields(part):
            value = getattr(part, one.name)
            if dataclasses.is_dataclass(value):
                walk(value, f"{before}{one.name}.")
            else:
                found[before + one.name] = list(value) if isinstance(value, tuple) else value

    walk(config, "")
    return found


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that differ between two `flat` configs and bear on what is learnt, as "field (old, now new)"."""
    free = tuple(f"{name}." for name in FREE)
    return [
        f"{name} ({old.get(name)!r}, now {new.get(name)!r})"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and name not in FREE and not name.startswith(free)
    ]


def inner_dataclass(hint: Any) -> Any:
    """The dataclass that a field holds, perhaps or None; else None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((one for one in options if dataclasses.is_dataclass(one)), None)


def _plain(part: Any) -> dict[str, Any]:
    found = {}
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            found[one.name] = _plain(value) if dataclasses.is_dataclass(value) else plain
    return found
