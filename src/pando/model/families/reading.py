"""Reading a config strictly: every switch is used, known to change nothing, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pando.errors import BaseModelError
from pando.model.config import RopeConfig, RopeScaling

# What Hugging Face configs carry that does not change the outputs of the model.
_HARMLESS = {
    "architectures", "auto_map", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "diversity_penalty", "dtype", "eos_token_id", "finetuning_task", "id2label",
    "initializer_range", "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id", "length_penalty", "license", "max_length", "max_sequence_length", "min_length", "model_max_length",
    "model_type", "name_or_path", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_past", "pad_token_id",
    "predict_special_tokens", "prefix", "problem_type", "remove_invalid_values",
    "pretraining_tp", "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "temperature",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "transformers.js_config",
    "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version", "use_cache", "use_return_dict",
}  # fmt: skip
_MOST = 2**53  # beyond, numbers are no longer exact
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})


class Switches:
    """A config dict that knows which of its keys have been read.

    Args:
        values: the config.
        what: what it is, for messages ("config.json").
        called: keys as they are asked for here -> what this family calls them.
    """

    def __init__(
        self, values: dict[str, Any], what: str = "config.json", called: Mapping[str, str] | None = None
    ) -> None:
        self._values, self._what, self._called = values, what, called or {}
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(self._called.get(key, key)) is not None

    def names(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return self._called.get(key, key) in self._values

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= _MOST:
            raise self.wrong(key, value, f"a whole number of at least {least}")
        return value

    def token(self, *keys: str) -> int:
        """A token's number, under the first of the keys that is there."""
        key = next((key for key in keys if self.has(key)), keys[0])
        value = self._get(key)
        if type(value) is not int or not 0 <= value <= _MOST:
            raise self.wrong(key, value, "the number of a token")
        return value

    def count(self, default: int, *keys: str) -> int:
        """A whole number that files call by different names; all that are there must agree."""
        found = {self.integer(key) for key in keys if self.has(key)}
        if len(found) > 1:
            raise self.wrong(keys[0], self._get(keys[0]), f"the same as {' and '.join(keys[1:])}")
        return found.pop() if found else default

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value <= _MOST:
            raise self.wrong(key, value, "a number above 0")
        return float(value)

    def maybe(self, key: str) -> float | None:
        """A finite number above 0, or None where there is none."""
        return self.number(key) if self._get(key) is not None else None

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def choice(self, key: str, known: dict[str, Any], default: str) -> Any:
        """`known[value]`; a value that is not in `known` is not supported."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, value, " or ".join(known))
        return known[value]

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses any value but null and `allowed`."""
        value = self._get(key, allowed[0])
        if value not in allowed:
            name = self._called.get(key, key)
            raise BaseModelError(f"{self._what}: {name} = {value!r} is not supported (only {allowed[0]!r} is)")

    def each(self, key: str, *allowed: Any) -> list[Any]:
        """A list of `allowed` values; empty where there is none."""
        value = self._get(key, [])
        if not isinstance(value, list) or any(one not in allowed for one in value):
            only = " or ".join(repr(one) for one in allowed)
            raise BaseModelError(f"{self._what}: {key} = {value!r} is not supported (only {only} in each place is)")
        return value

    def ignore(self, *keys: str) -> None:
        """Lets keys through that change nothing here."""
        self._read.update(keys)

    def part(self, key: str) -> Switches | None:
        """The dict below a key, or None where it is missing or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return Switches(value, f"{self._what}: {key}")

    def same(self, other: Switches) -> bool:
        """Whether both say the same, null being the same as nothing."""
        one, two = ({k: v for k, v in each._values.items() if v is not None} for each in (self, other))
        return one == two

    def close(self) -> None:
        """Refuses keys that nobody read, are not known to be harmless, and are not switched off."""
        for key, value in self._values.items():
            if key not in self._read and key not in _HARMLESS and not key.startswith("_") and value not in _OFF:
                raise BaseModelError(
                    f"{self._what}: {key} = {value!r} is a switch that this family does not support; "
                    "remove it from the file if the model does not depend on it"
                )

    def wrong(self, key: str, value: Any, expected: str) -> BaseModelError:
        """The error for a value that cannot be."""
        told = repr(value)
        found = "is missing" if value is None else f"is {told if len(told) <= 200 else told[:200] + '...'}"
        return BaseModelError(f"{self._what}: {self._called.get(key, key)} {found}; expected {expected}")

    def _get(self, key: str, default: Any = None) -> Any:
        name = self._called.get(key, key)
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value


def architectures(hf: Mapping[str, Any]) -> list[str]:
    """The classes that a model was saved as.

    Raises:
        BaseModelError: they are no list of names.
    """
    found = hf.get("architectures") or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BaseModelError(f"config.json: architectures is {found!r}; expected a list of names")
    return found


def read_rope(
    switches: Switches, head_dim: int, context_length: int, theta: float = 10_000.0, share: float | None = None
) -> RopeConfig:
    """Rotary settings, of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`).

    Args:
        theta, share: base of the frequencies and turned share of a head, where the config does not say. Without a share
            the family turns whole heads, and a config that says otherwise is refused.
    """
    part = rope_part(switches)
    theta, share = switches.number("rope_theta", theta), _share(switches, share)
    if part is None:
        return RopeConfig(int(head_dim * (share or 1.0)), theta)
    return _rope(part, head_dim, context_length, theta, share)


def rope_part(switches: Switches) -> Switches | None:
    """What the config says of positions in `rope_parameters` or `rope_scaling`.

    Raises:
        BaseModelError: both are there and differ: which of them counts, programs do not agree on.
    """
    new, old = switches.part("rope_parameters"), switches.part("rope_scaling")
    if new is not None and old is not None and not new.same(old):
        raise BaseModelError(
            "config.json: rope_scaling and rope_parameters are both there and differ; keep the one that is meant"
        )
    return new or old


def _share(switches: Switches, usual: float | None) -> float | None:
    if usual is not None:
        return switches.number("partial_rotary_factor", usual)
    switches.only("partial_rotary_factor", 1.0)
    return None


def read_ropes(
    switches: Switches, head_dim: int, context_length: int, kinds: Mapping[str, tuple[str, float]]
) -> dict[str, RopeConfig]:
    """Rotary settings of each kind of layer, of which only "full_attention" is stretched by `rope_scaling`.

    Args:
        kinds: kind of layer -> the switch of its base in transformers 4, and what that is where nothing is said.
    """
    rope_part(switches)  # not both
    new, old = switches.part("rope_parameters"), switches.part("rope_scaling")
    found = {}
    for kind, (switch, usual) in kinds.items():
        theta = switches.number(switch, usual)
        part = new.part(kind) if new is not None else old if kind == "full_attention" else None
        plain = RopeConfig(head_dim, theta)
        found[kind] = plain if part is None else _rope(part, head_dim, context_length, theta, None)
    if new is not None:
        new.close()
    return found


def _rope(part: Switches, head_dim: int, context_length: int, theta: float, share: float | None) -> RopeConfig:
    theta, share = part.number("rope_theta", theta), _share(part, share)
    scaling = _scaling(part, context_length)
    part.close()
    return RopeConfig(int(head_dim * (share or 1.0)), theta, scaling)


def _scaling(part: Switches, context_length: int) -> RopeScaling | None:
    name = "rope_type" if part.has("rope_type") else "type"
    part.only("type" if name == "rope_type" else "rope_type", None, "default", "linear", "llama3", "yarn")
    kind = part.choice(name, {k: k for k in ("default", "linear", "llama3", "yarn")}, "default")
    if kind == "default":
        return None
    factor = part.number("factor")
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = part.integer("original_max_position_embeddings", context_length if kind == "yarn" else None)
    if kind == "llama3":
        low, high = part.number("low_freq_factor"), part.number("high_freq_factor")
        return RopeScaling("llama3", factor, original, low_freq_factor=low, high_freq_factor=high)
    return RopeScaling(
        "yarn",
        factor,
        original,
        beta_fast=part.number("beta_fast", 32.0),
        beta_slow=part.number("beta_slow", 1.0),
        attention_factor=_attention_factor(part, factor),
        truncate=part.flag("truncate", True),
    )


def _attention_factor(part: Switches, factor: float) -> float | None:
    """YaRN's factor on cos and sin; DeepSeek's files give it by two multipliers of the logarithm."""
    given = part.number("attention_factor") if part.has("attention_factor") else None
    if not (part.has("mscale") and part.has("mscale_all_dim")):
        part.only("mscale", None, 0)
        part.only("mscale_all_dim", None, 0)
        return given
    above, below = (0.1 * part.number(name) * math.log(max(factor, 1.0)) + 1.0 for name in ("mscale", "mscale_all_dim"))
    return above / below if given is None else given


def write_rope(config: RopeConfig, head_dim: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as transformers 4 and 5, vLLM and llama.cpp's converter read them."""
    out: dict[str, Any] = {"rope_theta": config.theta, "rope_scaling": None}
    if config.dim != head_dim:
        out["partial_rotary_factor"] = config.dim / head_dim
    scaling = config.scaling
    if scaling is None:
        return out
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        found["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        found |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if scaling.kind == "yarn":
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            found["attention_factor"] = scaling.attention_factor
    return out | {"rope_scaling": found}
