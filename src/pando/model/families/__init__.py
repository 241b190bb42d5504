"""Model families: one short file each, which maps a Hugging Face config and its key names to ours and back.

A family is added by writing its file with a `FAMILY` and naming it in `_MODULES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pando.errors import BaseModelError
from pando.model.config import ModelConfig, RouterConfig
from pando.model.families.reading import Switches

if TYPE_CHECKING:
    from torch import Tensor

    from pando.model.families.decoder import Shape

SOFTMAX = RouterConfig(top_k=1)
Keys = Callable[[ModelConfig], Iterator[tuple[str, str]]]

# Hugging Face `model_type` -> module of this package
_MODULES = {
    "bart": "bart",
    "bert": "bert",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "modernbert": "modernbert",
    "mt5": "t5",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "olmoe": "olmoe",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "roberta": "roberta",
    "smollm3": "smollm3",
    "starcoder2": "starcoder2",
    "t5": "t5",
    "xlm-roberta": "roberta",
}


@dataclass(frozen=True)
class Packed:
    """A tensor of a Hugging Face file that is not one of our parameters as it stands.

    Attributes:
        theirs: its key.
        ours: names of the parameters that it holds, one after the other along its outputs.
        heads: where it is not 0, they alternate instead: the first head of each, the second of each, and so on.
        transposed: it is kept as [inputs, outputs] (GPT-2's Conv1D).
        index: it is only this one of the matrices that are stacked in the (single) parameter.
    """

    theirs: str
    ours: tuple[str, ...]
    heads: int = 0
    transposed: bool = False
    index: int | None = None

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Of their tensor, from those of our parameters."""
        if self.index is not None:
            return shapes[self.ours[0]][1:]
        rows, rest = sum(shapes[name][0] for name in self.ours), shapes[self.ours[0]][1:]
        return (*rest, rows) if self.transposed else (rows, *rest)

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The parameters, [outputs, ...] each, with so many outputs."""
        if self.transposed:
            tensor = tensor.T
        if not self.heads:
            return list(tensor.split(list(sizes)))
        rows = tensor.unflatten(0, (self.heads, -1)).split([size // self.heads for size in sizes], dim=1)
        return [part.flatten(0, 1) for part in rows]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The other way round."""
        import torch

        if self.heads:
            whole = torch.cat([part.unflatten(0, (self.heads, -1)) for part in parts], dim=1).flatten(0, 1)
        else:
            whole = torch.cat(list(parts))
        return whole.T if self.transposed else whole


@dataclass(frozen=True)
class Joined:
    """A parameter that GGUF files may keep as several tensors.

    Attributes:
        ours: its name.
        theirs: names and shapes of the tensors.
        join: makes it of them, in that order.
    """

    ours: str
    theirs: tuple[tuple[str, tuple[int, ...]], ...]
    join: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Gguf:
    """How llama.cpp keeps a family.

    Attributes:
        architecture: the file's `general.architecture`.
        config: the metadata below `<architecture>.` -> config. The reader fills in `tied`, `vocab_size`,
            `gated` (whether feed-forward layers have gates) and `token_types`.
        metadata: the other way round; a config that GGUF cannot hold is an error that names the switch. None: files of
            this family are read only.
        keys: (our parameter name, GGUF tensor name) of parameters that are kept as they are; stacks of experts are.
        packed: the other ones.
        joined: of the former, those that a file may have in parts instead.
        paired: name endings of projections whose rows llama.cpp keeps in rotary pairs (2i, 2i + 1) instead of
            halves (i, i + dim/2), with the number of heads.
        norm_offset: what is added to the weights of norms there.
        told_by: the key of the metadata that only its files have, where an architecture has two families.
        ignored: regular expressions of tensors that files carry and nothing needs.
    """

    architecture: str
    config: Callable[[Switches], ModelConfig]
    metadata: Callable[[ModelConfig], Mapping[str, Any]] | None
    keys: Keys
    packed: Callable[[ModelConfig], Iterator[Packed]] = lambda config: iter(())
    joined: Callable[[ModelConfig], Iterator[Joined]] = lambda config: iter(())
    paired: Callable[[ModelConfig], dict[str, int]] = lambda config: {}
    norm_offset: float = 0.0
    told_by: str | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: what `ModelConfig.family` says.
        config: reads a Hugging Face config.json; unsupported switches are errors that name the switch.
        hf_config: the config.json of a config, without token ids; transformers opens it.
        keys: (our parameter name, Hugging Face key) of parameters that are kept as they are.
        packed: the other ones; together every parameter of a model once.
        prefix: files of the bare model, without its head, lack it at the beginning of their keys.
        ignored: regular expressions of keys that files carry and nothing needs; DEPTH in them is the number of layers.
        renamed: what a key of old files is called today.
        copies: of keys that may be there once more and must hold the embedding.
        zeros: of keys that may be there and must hold nothing but zeros.
        group: which stacks it has.
        fresh: a config to train from nothing, from sizes, base of rotary positions, and other fields of `ModelConfig`;
            None: it is not pretrained here.
        ties: whether the head may be the embedding.
        grouped: whether several queries may share a key.
        rotary: whether a config to train from nothing has rotary positions.
        mixture: the family that it is called with experts, where that is covered; itself where it always has some.
        router: how they are chosen in a mixture that is trained from nothing, but for how many.
        gguf: how GGUF files keep it, or None.
    """

    name: str
    config: Callable[[dict[str, Any]], ModelConfig]
    hf_config: Callable[[ModelConfig], dict[str, Any]]
    keys: Keys
    packed: Callable[[ModelConfig], Iterator[Packed]] = lambda config: iter(())
    prefix: str = ""
    ignored: tuple[str, ...] = field(default=())
    renamed: Callable[[str], str] = lambda key: key
    copies: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    group: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    fresh: Callable[[Shape, float, Mapping[str, Any]], ModelConfig] | None = None
    ties: bool = True
    grouped: bool = True
    rotary: bool = True
    mixture: str | None = None
    router: RouterConfig = SOFTMAX
    gguf: Gguf | None = None


def family(name: str) -> Family:
    """The family of this name (`ModelConfig.family`, Hugging Face's `model_type`).

    Raises:
        BaseModelError: no such family.
    """
    if name not in _MODULES:
        raise BaseModelError(f"model_type {name!r} is not supported; supported are {', '.join(sorted(_MODULES))}")
    found = importlib.import_module(f"pando.model.families.{_MODULES[name]}").FAMILY
    assert isinstance(found, Family)
    return found


def families_where(fits: Callable[[Family], object]) -> list[str]:
    """Names of the families that something holds for; one that is the same as another is not named."""
    return [name for name in sorted(_MODULES) if family(name).name == name and fits(family(name))]


def gguf_family(architecture: str, metadata: Mapping[str, Any]) -> Family:
    """The family that llama.cpp calls `architecture`, of the two that one name may stand for the one of this metadata.

    Raises:
        BaseModelError: no such family.
    """
    known = [(f.gguf, f) for f in map(family, sorted(_MODULES)) if f.gguf is not None]
    fitting = [(form.told_by, f) for form, f in known if form.architecture == architecture]
    for told_by, found in fitting:
        if told_by is not None and metadata.get(told_by):
            return found
    for told_by, found in fitting:
        if told_by is None:
            return found
    names = ", ".join(sorted({form.architecture for form, _ in known}))
    raise BaseModelError(f"general.architecture {architecture!r} is not supported in GGUF; supported are {names}")


def read_config(hf: dict[str, Any]) -> ModelConfig:
    """A Hugging Face config.json of any supported family -> config.

    Raises:
        BaseModelError: the family, or a switch in the config, is not supported; the message names it.
    """
    model_type = hf.get("model_type")
    if not isinstance(model_type, str):
        raise BaseModelError("config.json has no model_type: it does not describe a model that can be loaded")
    return family(model_type).config(hf)
