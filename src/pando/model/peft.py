"""PEFT's files of adapters: `adapter_config.json`, `adapter_model.safetensors`, written and read.

What PEFT keeps as one matrix may hold several of ours (fused projections, experts): their changes then stand side by
side in it, each for its own part of the outputs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pando.errors import SkinError
from pando.model.checkpoint import tensors_of
from pando.model.config import ExpertsConfig
from pando.model.families import Packed, family
from pando.model.layers import ExpertProjection
from pando.model.lora import LoraAdapter, LoraConfig
from pando.model.transformer import Transformer

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# PEFT's name for what a base does, by how many stacks it has and whether its last one sees both ways
_TASKS = {(1, False): "CAUSAL_LM", (1, True): None, (2, False): "SEQ_2_SEQ_LM"}
# Switches of PEFT's LoraConfig that change what the adapter computes and that are not covered here.
_UNSUPPORTED = (
    "use_dora", "alora_invocation_tokens", "modules_to_save", "layer_replication", "megatron_config",
    "trainable_token_indices", "use_bdlora", "arrow_config", "lora_bias",
    "velora_config", "monteclora_config",
)  # fmt: skip
# What `init_lora_weights` may be: how A and B were drawn. All else of it (PiSSA, OLoRA, CorDA, LoftQ and others) takes
# something from the base's own weights, which such an adapter therefore does not fit as they are.
_DRAWN = (None, True, False, "gaussian", "eva", "orthogonal")


def save_peft(
    folder: Path, model: Transformer, config: LoraConfig, tensors: Mapping[str, tuple[Tensor, Tensor]], base: str
) -> None:
    """Writes an adapter that PEFT opens.

    Args:
        folder: an existing folder.
        model: the base it belongs to; its family names the modules.
        config: rank, scale and sites.
        tensors: A and B by site, unscaled.
        base: name or path of the base, for `base_model_name_or_path`.
    """
    from safetensors.torch import save_file

    made = _File({}, {}, set(), [])
    _add_modules(made, model, config, tensors)
    _add_experts(made, model, tensors)
    save_file(made.state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    grown = {module: math.sqrt(n) if config.rank_stabilised else n for module, n in made.widened.items()}
    settings = {
        "peft_type": "LORA",
        "task_type": _TASKS[len(model.config.stacks), model.config.both_ways],
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(made.modules),
        "target_parameters": made.parameters or None,
        "rank_pattern": {module: n * config.rank for module, n in made.widened.items()},
        "alpha_pattern": {module: n * config.alpha for module, n in grown.items()},
        "bias": "none",
        "use_rslora": config.rank_stabilised,
        "fan_in_fan_out": any(part.transposed for part in tensors_of(family(model.config.family), model.config)),
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@dataclass
class _File:
    """What is written of an adapter.

    Attributes:
        state: the tensors. widened: modules with several changes side by side, and how many.
        modules: names for `target_modules`. parameters: for `target_parameters`.
    """

    state: dict[str, Tensor]
    widened: dict[str, int]
    modules: set[str]
    parameters: list[str]


def _add_modules(
    made: _File, model: Transformer, config: LoraConfig, tensors: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Modules of theirs, which may hold several of ours: ranks add up, each part of the outputs has its own."""
    sizes = {site: projection.out_features for site, projection in model.projections().items()}
    # where there are experts, PEFT would take a module's name in a feed-forward layer for the experts' own matrices
    mixture = any(isinstance(layer.mlp, ExpertsConfig) for layer in model.config.layers)
    for module, part in _modules(model).items():
        sites = [site for site in part.ours if site in tensors]
        if not sites:
            continue
        a = torch.cat([tensors[site][0].float().cpu() for site in sites])
        blocks = []
        for site in part.ours:
            block = torch.zeros(sizes[site], len(a))
            if site in tensors:
                at = sites.index(site) * config.rank
                block[:, at : at + config.rank] = tensors[site][1].float().cpu()
            blocks.append(block)
        made.state[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
        made.state[f"base_model.model.{module}.lora_B.weight"] = part.join(blocks).contiguous()
        if mixture and ".mlp." in sites[0]:
            made.parameters.append(f"{module}.weight")
        else:
            made.modules.add(module.rsplit(".", 1)[-1])
        if len(sites) > 1:
            made.widened[module] = len(sites)


def _add_experts(made: _File, model: Transformer, tensors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """The experts' stacks, which are parameters of one module for PEFT: it wraps the first in the second."""
    for module, groups in _expert_modules(model).items():
        for name, every in groups.items():
            there = [site for site in every if site in tensors]
            if not there:
                continue
            nested = name == _INNER and any(site in tensors for site in groups[_OUTER])
            key = f"base_model.model.{module}" + (".base_layer" if nested else "")
            a, b = _joined_experts([tensors[site] for site in there], [site in tensors for site in every])
            made.state |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            if f"{_EXPERTS}.{name}" not in made.parameters:
                made.parameters.append(f"{_EXPERTS}.{name}")
            if len(there) > 1:
                made.widened[rf".*\.{name}"] = len(there)


def load_peft(folder: Path, model: Transformer, device: torch.device, dtype: torch.dtype) -> LoraAdapter:
    """Reads a PEFT LoRA adapter, its own or made elsewhere.

    Raises:
        SkinError: a file is missing or broken, a switch is not supported, or a key or shape does not fit the base.
    """
    config, raw = _read_config(folder), _read_weights(folder)
    modules, stacks = _modules(model), _expert_modules(model)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in raw.items():
        name = key.removeprefix("base_model.model.")
        module, _, rest = name.rpartition(".lora_")
        if module.removesuffix(".base_layer") in stacks and rest in ("A.weight", "B.weight"):
            found.setdefault(module, {})[rest[0]] = tensor
            continue
        if rest not in ("A.weight", "B.weight") or module not in modules:
            raise SkinError(f"{folder / WEIGHTS_FILE}: key {key!r} fits no projection of this base")
        found.setdefault(module, {})[rest[0]] = tensor
    if not found:
        raise SkinError(f"{folder / WEIGHTS_FILE} has no LoRA weights")
    weights = {}
    for module, pair in sorted(found.items()):
        if module not in modules:
            path = module.removesuffix(".base_layer")
            for site, (a, b) in _expert_pairs(folder, model, path, stacks[path], pair, config).items():
                weights[site] = a.to(device, dtype), b.to(device, dtype)
            continue
        rank, alpha = (_of_module(config, name, module) for name in ("r", "lora_alpha"))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        a, parts = _checked_pair(folder, model, modules[module], pair)
        for site, b in zip(modules[module].ours, parts, strict=True):
            weights[site] = a.to(device, dtype), (b.float() * scale).to(device, dtype)
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / CONFIG_FILE).read_bytes())
    digest.update((folder / WEIGHTS_FILE).read_bytes())
    return LoraAdapter(weights, digest.digest())


def has_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter."""
    return (folder / CONFIG_FILE).exists()


def _of_module(config: dict[str, Any], name: str, module: str) -> float:
    """`r` or `lora_alpha` of a module: PEFT's patterns name modules, or ends of their paths as regular expressions."""
    pattern = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[name]) or {}
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return float(config[name])


def _checked_pair(
    folder: Path, model: Transformer, part: Packed, pair: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """A [r, in], and B [out, r] of each of the sites that it changes."""
    where = f"{folder / WEIGHTS_FILE}: {part.theirs}"
    if set(pair) != {"A", "B"}:
        raise SkinError(f"{where} has only lora_{next(iter(pair))}")
    projections = [model.projections()[site] for site in part.ours]
    inputs, outputs = projections[0].in_features, [projection.out_features for projection in projections]
    a, b = pair["A"], pair["B"]
    if a.shape[1:] != (inputs,) or b.shape != (sum(outputs), a.shape[0]):
        raise SkinError(
            f"{where} has A {list(a.shape)} and B {list(b.shape)}, the base's projection is "
            f"[{sum(outputs)}, {inputs}]: is this adapter for another base?"
        )
    return a, part.split(b, outputs)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkinError(f"{path} is missing: the folder holds no PEFT adapter") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise SkinError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise SkinError(f"{path}: peft_type is {kind!r}; only LORA adapters can be read")
    wrong: Iterable[str] = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        wrong = [*wrong, "bias"]
    if wrong:
        raise SkinError(f"{path}: {', '.join(wrong)} is set, which is not supported")
    drawn = config.get("init_lora_weights")
    if drawn not in _DRAWN:
        raise SkinError(
            f"{path}: init_lora_weights is {drawn!r}, which changed the base's own weights; save the adapter with "
            "PEFT's path_initial_model_for_weight_conversion, which makes an ordinary one of it"
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)) or config[name] <= 0:
            raise SkinError(f"{path}: {name} must be a positive number, not {config.get(name)!r}")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.exists():
        hint = "; adapter_model.bin is a pickle and is never read" if (folder / "adapter_model.bin").exists() else ""
        raise SkinError(f"{path} is missing{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SkinError(f"{path} is not a readable safetensors file: {error}") from None


_EXPERTS, _INNER, _OUTER = "mlp.experts", "gate_up_proj", "down_proj"  # as transformers 5 and PEFT call them


def _expert_modules(model: Transformer) -> dict[str, dict[str, tuple[str, ...]]]:
    """Path of the experts in transformers -> its two parameters -> the sites that each holds."""
    found = {}
    for i, layer in enumerate(model.config.layers):
        if isinstance(layer.mlp, ExpertsConfig):
            site = f"layers.{i}.mlp.experts"
            found[f"model.layers.{i}.{_EXPERTS}"] = {
                _INNER: (f"{site}.gate", f"{site}.up"),
                _OUTER: (f"{site}.down",),
            }
    return found


def _joined_experts(pairs: Sequence[tuple[Tensor, Tensor]], present: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """A [E * ranks, in] and B [outs, ranks * E], as PEFT keeps the change of a stack [E, outs, in] that holds several
    of ours: ranks side by side, each part of the outputs changed by its own."""
    a = torch.cat([pair[0].float().cpu() for pair in pairs], dim=1)  # [E, ranks, in]
    experts, ranks, _ = a.shape
    rank, size = ranks // len(pairs), pairs[0][1].shape[1]
    b = torch.zeros(experts, size * len(present), ranks)
    for column, row in enumerate(place for place, on in enumerate(present) if on):
        b[:, row * size :][:, :size, column * rank :][:, :, :rank] = pairs[column][1].float().cpu()
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1, 2).contiguous()


def _expert_pairs(
    folder: Path,
    model: Transformer,
    path: str,
    groups: Mapping[str, tuple[str, ...]],
    pair: Mapping[str, Tensor],
    config: dict[str, Any],
) -> dict[str, tuple[Tensor, Tensor]]:
    """What a key of experts holds: A [E, r, in] and B [E, out, r], the scale folded in, by site. Which of the two
    parameters it is for, its shapes tell."""
    where = f"{folder / WEIGHTS_FILE}: {path}"
    if set(pair) != {"A", "B"}:
        raise SkinError(f"{where} has only lora_{next(iter(pair))}")
    a, b = pair["A"], pair["B"]
    for name, sites in groups.items():
        projections = [model.projections()[site] for site in sites]
        first, sizes = projections[0], [one.out_features for one in projections]
        assert isinstance(first, ExpertProjection)
        fits = a.shape[1:] == (first.in_features,) and b.shape == (sum(sizes), a.shape[0])
        if fits and a.shape[0] % first.experts == 0:
            rank, alpha = (_of_module(config, key, f"{path}.{name}") for key in ("r", "lora_alpha"))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            each = (b.float() * scale).unflatten(1, (-1, first.experts)).permute(2, 0, 1)  # [E, outs, r]
            stacked = a.unflatten(0, (first.experts, -1))
            return {site: (stacked, part) for site, part in zip(sites, each.split(sizes, dim=1), strict=True)}
    raise SkinError(
        f"{where} has A {list(a.shape)} and B {list(b.shape)}, which fit no experts of this base: is this adapter for "
        "another base?"
    )


def _modules(model: Transformer) -> dict[str, Packed]:
    """Hugging Face module path -> the sites whose weights it holds, in the order of the forward pass."""
    known = model.projections()
    found = {}
    for part in tensors_of(family(model.config.family), model.config):
        sites = tuple(name.removesuffix(".weight") for name in part.ours)
        if part.index is None and all(site in known for site in sites):
            module = part.theirs.removesuffix(".weight")
            found[module] = Packed(module, sites, part.heads)  # A and B are never transposed
    return found
