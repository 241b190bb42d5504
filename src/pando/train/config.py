"""What a pretraining run is made of: `pretrain.yaml`, read strictly.

A file says as little as its writer wants; `pando.train.dial` fills in the rest. What came of it, every value in
place, is again such a file and stands beside the run as `config.yaml`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pando.errors import PandoError
from pando.model.config import InitConfig
from pando.train.optim import OptimConfig

FORMAT = 1
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb])", re.IGNORECASE)
_SCALES = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


class ConfigError(PandoError):
    """A pretrain.yaml that cannot be used; the message names file, line and field."""


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
        family: "qwen3" (with norms on queries and keys), "llama", or "modernbert", an encoder, which learns by the
            objective `masked`.
        depth: blocks. width: d_model. hidden: of the feed-forward layers.
        heads, kv_heads, head_dim: of attention.
        context: most positions, in tokens.
        tied: whether the head is the embedding.
        rope_theta: base of the rotary frequencies.
        experts: of a mixture in every block (Qwen3-MoE, Mixtral); 0: a plain feed-forward layer.
        top_k: experts that a token goes to.
        expert_hidden: width of an expert; 0 is `hidden` / `top_k`, so that a token meets as many weights as without.
    """

    family: Literal["qwen3", "llama", "modernbert"] = "qwen3"
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
    expert_hidden: int = 0


@dataclass(frozen=True)
class MachineConfig:
    """How the work is done; nothing here changes what is learnt, beyond rounding.

    Attributes:
        device: "auto" (CUDA, else CPU), "cpu" or "cuda".
        number: dtype of the products: "float32", "bfloat16", or "auto", measured before the run.
        compile: "on", "off", or "auto": blocks are compiled where a compiler exists and the run is long enough.
        micro_rows: rows of one forward pass; 0 fits the memory.
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
        every: checkpoints at multiples of so many steps are kept for good; 0 keeps none.
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
        return {"format_version": FORMAT, **_plain(self)}


# What may change between two halves of one run without making it another run.
FREE = {"name", "keep", "watch", "machine.device", "machine.micro_rows", "machine.threads"}
_LEAST: dict[str, float] = {
    "budget.hours": 1e-6, "budget.usd": 1e-9, "model.depth": 1, "model.width": 1, "model.hidden": 1, "model.heads": 1,
    "model.kv_heads": 1, "model.head_dim": 2, "model.context": 2, "model.rope_theta": 1, "tokens": 1, "batch": 1,
    "sequence": 2, "model.top_k": 1, "keep.last": 1, "watch.sample_tokens": 1, "optim.momentum_steps": 0,
    "optim.epsilon": 1e-30, "optim.spike_window": 2,
}  # fmt: skip
_BELOW_ONE = {"optim.momentum", "optim.second_beta", "optim.beta1", "optim.beta2"}
_SHARES = {"optim.warmup", "optim.decay", "optim.final"}


@dataclass(frozen=True)
class Given:
    """What a file says: values by dotted field, checked; and where each stands."""

    path: Path
    values: dict[str, Any]
    line: Mapping[str, int]

    def wrong(self, name: str, what: str) -> ConfigError:
        """The error for a field that does not go together with another one or with the corpus."""
        return ConfigError(f"{self.path}:{self.line.get(name, 1)}: {name}: {what}")


def read_config(path: str | Path) -> Given:
    """Reads a pretrain.yaml.

    Raises:
        ConfigError: an unknown key, or a value of the wrong kind; names file, line and field.
        PandoError: no such file, or no YAML.
    """
    from pando.yamlfile import read_yaml

    path = Path(path)
    found, locate = read_yaml(
        path, "a pretrain.yaml", "`size: 15m` to begin with; see docs/pretraining.md", ConfigError
    )
    version = found.pop("format_version", FORMAT)
    if version != FORMAT:
        raise ConfigError(f"{path}:{locate(['format_version'])}: format_version is {version!r}; this Pando reads 1")
    values: dict[str, Any] = {}
    _walk(PretrainConfig, found, (), values, lambda loc, what: _complain(path, locate, loc, what))
    given = Given(path, values, {name: locate(name.split(".")) for name in values})
    _together(given)
    return given


def build(values: Mapping[str, Any], cls: Any = PretrainConfig, before: str = "") -> Any:
    """The dataclass of values by dotted field; what is not there keeps its default."""
    hints = typing.get_type_hints(cls)
    made = {}
    for one in dataclasses.fields(cls):
        name, inner = before + one.name, _dataclass(hints[one.name])
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


def _walk(cls: Any, found: Any, loc: tuple[str, ...], values: dict[str, Any], complain: Any) -> None:
    if not isinstance(found, dict):
        raise complain(loc, f"must be a mapping of {', '.join(f.name for f in dataclasses.fields(cls))}")
    hints = typing.get_type_hints(cls)
    for key, value in found.items():
        if key not in hints:
            known = ", ".join(hints)
            raise complain((*loc, str(key)), f"unknown key; known are {known}")
        here, inner = (*loc, key), _dataclass(hints[key])
        if inner is not None:
            _walk(inner, value, here, values, complain)
        else:
            name = ".".join(here)
            values[name] = _typed(hints[key], value, name, lambda what, here=here: complain(here, what))


def _dataclass(hint: Any) -> Any:
    """The dataclass that a field holds, perhaps or None; else None."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((one for one in options if dataclasses.is_dataclass(one)), None)


def _typed(hint: Any, value: Any, name: str, wrong: Any) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(one for one in options if one is not type(None))
    origin = typing.get_origin(kind)
    if origin is Literal:
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML's on and off
        if value not in typing.get_args(kind):
            raise wrong(f"{value!r} is not one of {', '.join(typing.get_args(kind))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise wrong("must be a list of texts")
        return tuple(value)
    if origin is dict:
        if not isinstance(value, dict) or not value or not all(isinstance(one, str) for one in value):
            raise wrong("must be a mapping, such as {causal: 1.0}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong(f"must be true or false, not {value!r}")
        return value
    if kind is str:
        if not isinstance(value, str) or not value:
            raise wrong(f"must be a text, not {value!r}; put it in quotes")
        return value
    return _number(kind, value, name, wrong)


def _number(kind: Any, value: Any, name: str, wrong: Any) -> Any:
    value = parse_count(value) if isinstance(value, str) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise wrong(f"must be a number, not {value!r}")
    if kind is int and value != int(value):
        raise wrong(f"must be a whole number, not {value!r}")
    least = _LEAST.get(name, 0)
    if value < least:
        raise wrong(f"must be at least {least:g}, not {value:g}" if least > 1e-4 or not least else "must be above 0")
    if (name in _BELOW_ONE and value >= 1) or (name in _SHARES and value > 1):
        raise wrong(f"must be {'below' if name in _BELOW_ONE else 'at most'} 1, not {value:g}")
    return kind(value)


def parse_count(text: str) -> float | str:
    """20k, 300m, 1.5b or 3e8 -> the number; other texts as they are."""
    match = _COUNT.fullmatch(text.strip())
    if match:
        return round(float(match[1]) * _SCALES[match[2].lower()])
    try:
        return float(text)  # YAML 1.1 takes 3e8 for a text
    except ValueError:
        return text


def _together(given: Given) -> None:
    """What does not go together, before anything is computed."""
    values = given.values
    if values.get("size") is not None and not isinstance(parse_count(values["size"]), (int, float)):
        raise given.wrong("size", f"{values['size']!r} is no size; write 4m, 15m, 125m or 1.5b")
    budget = [name for name in ("budget.hours", "budget.usd") if values.get(name) is not None]
    if len(budget) == 2:
        raise given.wrong("budget.usd", "give hours or usd, not both")
    if values.get("size") is not None and budget and "tokens" in values:
        raise given.wrong(budget[0], "size and tokens are given, which leaves nothing for a budget to decide")
    heads, kv = values.get("model.heads"), values.get("model.kv_heads")
    if heads and kv and heads % kv:
        raise given.wrong("model.kv_heads", f"{heads} heads cannot share {kv} key-value heads")
    experts = values.get("model.experts", 0)
    if experts and values.get("model.top_k", 2) > experts:
        raise given.wrong("model.top_k", f"is more than model.experts, {experts}")
    if values.get("model.family") == "modernbert":
        if experts:
            raise given.wrong("model.experts", "encoders have none")
        if set(values.get("objectives", {"causal": 1.0})) != {"masked"}:
            raise given.wrong("objectives", "an encoder learns by masked alone: write {masked: 1}")
    if values.get("model.head_dim", 2) % 2:
        raise given.wrong("model.head_dim", "must be even, for rotary positions")
    if values.get("sequence", 2) > values.get("model.context", values.get("sequence", 2)):
        raise given.wrong("sequence", f"is longer than model.context, {values['model.context']}")
    if values.get("batch") is not None and values["batch"] < values.get("sequence", 1):
        raise given.wrong("batch", f"is less than one row of {values.get('sequence')} tokens")


def _complain(path: Path, locate: Any, loc: Sequence[str], what: str) -> ConfigError:
    return ConfigError(f"{path}:{locate(loc)}: {'.'.join(loc)}: {what}" if loc else f"{path}: {what}")


def _plain(part: Any) -> dict[str, Any]:
    found = {}
    for one in dataclasses.fields(part):
        value = getattr(part, one.name)
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            found[one.name] = _plain(value) if dataclasses.is_dataclass(value) else plain
    return found


def write_config(config: PretrainConfig, path: Path, notes: Sequence[str] = ()) -> None:
    """Writes a resolved config as a file that `read_config` takes, with notes on where its values come from."""
    import yaml

    from pando.files import atomic_write

    head = "".join(f"# {note}\n" for note in notes)
    atomic_write(path, head + yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True))
