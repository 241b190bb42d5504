"""Reading `pretrain.yaml` strictly: an unknown key or a value of the wrong kind is an error that names file, line and
field.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pando.errors import PandoError
from pando.model.families import Family, families_where, family
from pando.train.config import FORMAT, LEARNS, PretrainConfig, ShapeConfig, inner_dataclass

_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb])", re.IGNORECASE)
_SCALES = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
_LEAST: dict[str, float] = {
    "budget.hours": 1e-6, "budget.usd": 1e-9, "model.depth": 1, "model.width": 1, "model.hidden": 1, "model.heads": 1,
    "model.kv_heads": 1, "model.head_dim": 2, "model.context": 2, "model.rope_theta": 1, "tokens": 1, "batch": 1,
    "sequence": 8, "model.top_k": 1, "keep.last": 1, "watch.sample_tokens": 1, "optim.momentum_steps": 0,
    "optim.epsilon": 1e-30, "optim.spike_window": 2, "model.groups": 1, "model.top_groups": 1,
}  # fmt: skip
_MOST = {"seed": 2**63 - 1, "machine.threads": 4096}
_LARGEST = 1e300
_BELOW_ONE = {"optim.momentum", "optim.second_beta", "optim.beta1", "optim.beta2"}
_SHARES = {"optim.warmup", "optim.decay", "optim.final"}
_OF_EXPERTS = ("experts", "top_k", "shared_experts", "expert_hidden", "groups", "top_groups", "dense_layers")


class ConfigError(PandoError):
    """A pretrain.yaml that cannot be used; the message names file, line and field."""


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


def _walk(cls: Any, found: Any, loc: tuple[str, ...], values: dict[str, Any], complain: Any) -> None:
    if not isinstance(found, dict):
        raise complain(loc, f"must be a mapping of {', '.join(f.name for f in dataclasses.fields(cls))}")
    hints = typing.get_type_hints(cls)
    for key, value in found.items():
        if key not in hints:
            known = ", ".join(hints)
            raise complain((*loc, str(key)), f"unknown key; known are {known}")
        here, inner = (*loc, key), inner_dataclass(hints[key])
        if inner is not None:
            _walk(inner, value, here, values, complain)
        else:
            name = ".".join(here)
            values[name] = _typed(hints[key], value, name, lambda what, here=here: complain(here, what))


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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST < value < _LARGEST:
        raise wrong(f"must be a number, not {repr(value)[:80]}")
    if kind is int and value != int(value):
        raise wrong(f"must be a whole number, not {value!r}")
    least = _LEAST.get(name, 0)
    if value < least:
        raise wrong(f"must be at least {least:g}, not {value:g}" if least > 1e-4 or not least else "must be above 0")
    if value > _MOST.get(name, math.inf):
        raise wrong(f"must be at most {_MOST[name]}, not {value}")
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
    size = parse_count(values["size"]) if values.get("size") is not None else 1
    if not isinstance(size, (int, float)) or not 0 < size < math.inf:
        raise given.wrong("size", f"{values['size']!r} is no size; write 4m, 15m, 125m or 1.5b")
    budget = [name for name in ("budget.hours", "budget.usd") if values.get(name) is not None]
    if len(budget) == 2:
        raise given.wrong("budget.usd", "give hours or usd, not both")
    sized = next((name for name in ("size", "base", "model.width") if values.get(name) is not None), None)
    if sized == "model.width" and "model.depth" not in values:
        sized = None
    if sized and budget and "tokens" in values:
        raise given.wrong(budget[0], f"{sized} and tokens are given, which leaves nothing for a budget to decide")
    if values.get("base") is not None:
        for field in values:
            if field == "size" or field.startswith(("model.", "init.")):
                raise given.wrong(field, "the base has its own; leave it out")
    heads, kv = values.get("model.heads"), values.get("model.kv_heads")
    if heads and kv and heads % kv:
        raise given.wrong("model.kv_heads", f"{heads} heads cannot share {kv} key-value heads")
    name = values.get("model.family", ShapeConfig.family)
    known = families_where(lambda one: one.fresh)
    if name not in known:
        raise given.wrong("model.family", f"{name!r} is not one of {', '.join(known)}")
    found = family(name)
    _experts(given, found)
    if values.get("base") is None:
        check_group(given, found)
    if values.get("model.tied") and not found.ties:
        raise given.wrong("model.tied", f"a {name} has a head of its own")
    if not found.rotary and values.get("model.rope_theta", ShapeConfig.rope_theta) != ShapeConfig.rope_theta:
        raise given.wrong("model.rope_theta", f"a {name} has no rotary positions; leave it out")
    if values.get("model.head_dim", 2) % 2:
        raise given.wrong("model.head_dim", "must be even, for rotary positions")
    if values.get("sequence", 2) > values.get("model.context", values.get("sequence", 2)):
        raise given.wrong("sequence", f"is longer than model.context, {values['model.context']}")
    if values.get("batch") is not None and values["batch"] < values.get("sequence", 1):
        raise given.wrong("batch", f"is less than one row of {values.get('sequence')} tokens")


def located(given: Given) -> str:
    """The base that a file names: beside it, if it is there, else by its name."""
    beside = given.path.parent / str(given.values["base"])
    return str(beside.resolve()) if beside.exists() else str(given.values["base"])


def check_group(given: Given, found: Family) -> None:
    """Whether the objectives fit the family, and what is watched.

    Raises:
        ConfigError: they do not.
    """
    fitting = LEARNS.get(found.group)
    if fitting and not set(given.values.get("objectives", {"causal": 1.0})) <= set(fitting):
        raise given.wrong("objectives", f"a {found.name} learns by {' or '.join(fitting)}: write {{{fitting[0]}: 1}}")
    if given.values.get("watch.answers") is not None and found.group == "encoder":
        raise given.wrong("watch.answers", f"a {found.name} gives no answers; leave it out")


def _experts(given: Given, found: Family) -> None:
    """What does not go together in a mixture."""
    shape = ShapeConfig(**{name: given.values.get(f"model.{name}", getattr(ShapeConfig, name)) for name in _OF_EXPERTS})
    if not shape.experts:
        if found.mixture == found.name:
            raise given.wrong("model.experts", f"a {found.name} has some in every case: write 8")
        for name in _OF_EXPERTS:
            if f"model.{name}" in given.values and getattr(shape, name) != getattr(ShapeConfig, name):
                raise given.wrong(f"model.{name}", "is of no account without model.experts")
        return
    if found.mixture is None:
        raise given.wrong("model.experts", f"a {found.name} has none")
    if found.mixture == found.name and not shape.shared_experts:
        raise given.wrong("model.shared_experts", f"a {found.name} has at least one: write 1")
    if shape.top_k > shape.experts:
        raise given.wrong("model.top_k", f"is more than model.experts, {shape.experts}")
    each = shape.experts // shape.groups
    if shape.experts % shape.groups or (shape.groups > 1 and each < family(found.mixture).router.best):
        raise given.wrong("model.groups", f"{shape.experts} experts cannot stand in {shape.groups} groups")
    if shape.top_groups > shape.groups or shape.top_k > each * shape.top_groups:
        raise given.wrong("model.top_groups", f"{shape.top_k} experts cannot come from {shape.top_groups} groups")


def _complain(path: Path, locate: Any, loc: Sequence[str], what: str) -> ConfigError:
    return ConfigError(f"{path}:{locate(loc)}: {'.'.join(loc)}: {what}" if loc else f"{path}: {what}")


def write_config(config: PretrainConfig, path: Path, notes: Sequence[str] = ()) -> None:
    """Writes a resolved config as a file that `read_config` takes, with notes on where its values come from."""
    import yaml

    from pando.files import atomic_write

    head = "".join(f"# {note}\n" for note in notes)
    atomic_write(path, head + yaml.safe_dump(config.as_dict(), sort_keys=False, allow_unicode=True))
